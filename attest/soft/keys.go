//go:build linux

package soft

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/cohort-tee/cohort/internal/wire"
	"golang.org/x/sys/unix"
)

// Types of the two PEM blocks of a daemon's key file, in their order.
const (
	pemAttestation = "PRIVATE KEY" // PKCS #8, P-256
	pemSealing     = "COHORT SEALING KEY"
)

// keys are what makes a daemon the same daemon after a restart.
type keys struct {
	attestation *ecdsa.PrivateKey
	sealing     []byte
}

// openKeys reads the key file, or makes it when there is none. A file that is
// damaged, or open to others, is refused and left as it is.
func openKeys(path string) (keys, error) {
	info, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return createKeys(path)
	}
	if err != nil {
		return keys{}, fmt.Errorf("looking for the daemon's keys: %w", err)
	}
	if mode := info.Mode().Perm(); mode&0o077 != 0 {
		return keys{}, wire.Refuse(wire.StoreForeign, "soft daemon: mode of "+path, mode, "-rw-------")
	}
	text, err := os.ReadFile(path)
	if err != nil {
		return keys{}, fmt.Errorf("reading the daemon's keys: %w", err)
	}
	k, err := parseKeys(text)
	if err != nil {
		return keys{}, wire.Refuse(wire.StoreForeign, "soft daemon: keys in "+path, err, "the keys that a daemon wrote")
	}
	return k, nil
}

func createKeys(path string) (keys, error) {
	attestation, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return keys{}, fmt.Errorf("drawing the daemon's key: %w", err)
	}
	k := keys{attestation: attestation, sealing: make([]byte, SealingKeySize)}
	rand.Read(k.sealing)
	text, err := k.encode()
	if err != nil {
		return keys{}, err
	}
	if err := writeAtomically(path, text); err != nil {
		return keys{}, fmt.Errorf("writing the daemon's keys: %w", err)
	}
	return k, nil
}

func (k keys) encode() ([]byte, error) {
	der, err := x509.MarshalPKCS8PrivateKey(k.attestation)
	if err != nil {
		return nil, fmt.Errorf("encoding the daemon's key: %w", err)
	}
	text := pem.EncodeToMemory(&pem.Block{Type: pemAttestation, Bytes: der})
	return append(text, pem.EncodeToMemory(&pem.Block{Type: pemSealing, Bytes: k.sealing})...), nil
}

// parseKeys reads what [keys.encode] writes, and nothing else. Its errors hold
// nothing of the text.
func parseKeys(text []byte) (keys, error) {
	first, rest := pem.Decode(text)
	second, _ := pem.Decode(rest)
	if first == nil || second == nil || len(second.Bytes) != SealingKeySize {
		return keys{}, errors.New("not two PEM blocks")
	}
	parsed, err := x509.ParsePKCS8PrivateKey(first.Bytes)
	attestation, ok := parsed.(*ecdsa.PrivateKey)
	if err != nil || !ok || attestation.Curve != elliptic.P256() {
		return keys{}, errors.New("no P-256 key")
	}
	k := keys{attestation: attestation, sealing: second.Bytes}
	if again, err := k.encode(); err != nil || !bytes.Equal(again, text) {
		return keys{}, errors.New("another encoding")
	}
	return k, nil
}

// writeAtomically leaves the whole file, mode 0600, on the disk or nothing.
func writeAtomically(path string, b []byte) error {
	f, err := os.CreateTemp(filepath.Dir(path), ".new-*")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	defer f.Close()
	if _, err := f.Write(b); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	if err := os.Rename(f.Name(), path); err != nil {
		return err
	}
	return syncDir(filepath.Dir(path))
}

func syncDir(path string) error {
	dir, err := os.Open(path)
	if err != nil {
		return err
	}
	defer dir.Close()
	return dir.Sync()
}

// lockDir makes the daemon the only one on a directory for as long as the file
// it returns is open.
func lockDir(dir string) (*os.File, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("making the daemon's directory: %w", err)
	}
	f, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("locking the daemon's directory: %w", err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		return nil, wire.Refuse(wire.Unavailable, "soft daemon: directory "+dir, "a directory that a running daemon uses", "a directory of its own")
	}
	return f, nil
}
