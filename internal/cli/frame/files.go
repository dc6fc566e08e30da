package frame

import (
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
)

// ReadFile reads a file of at most limit bytes.
func ReadFile(path string, limit int64) ([]byte, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if info.Size() > limit {
		return nil, Usage("%s: got %d bytes, want at most %d", path, info.Size(), limit)
	}
	return os.ReadFile(path)
}

// ReplaceFile writes a file beside the old one and renames it over it.
func ReplaceFile(path string, content []byte) error {
	f, err := os.CreateTemp(filepath.Dir(path), filepath.Base(path)+".*")
	if err != nil {
		return err
	}
	_, err = f.Write(content)
	if err == nil {
		err = f.Chmod(0o644)
	}
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	return os.Rename(f.Name(), path)
}

// maxPEM bounds a file of certificates, in bytes.
const maxPEM = 1 << 20

// ReadCertificates reads a PEM file that holds nothing but certificates.
func ReadCertificates(path string) ([]*x509.Certificate, error) {
	rest, err := ReadFile(path, maxPEM)
	if err != nil {
		return nil, err
	}
	var list []*x509.Certificate
	for {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			break
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if block.Type != "CERTIFICATE" || err != nil {
			return nil, Usage("%s: got a block of %s, want certificates", path, block.Type)
		}
		list = append(list, c)
	}
	if len(list) == 0 {
		return nil, Usage("%s: no certificate", path)
	}
	return list, nil
}

// ReadPool is a file of certificates as roots.
func ReadPool(path string) (*x509.CertPool, error) {
	pool := x509.NewCertPool()
	list, err := ReadCertificates(path)
	for _, c := range list {
		pool.AddCert(c)
	}
	return pool, err
}

// ProgramPath finds a program as a shell would.
func ProgramPath(name string) (string, error) {
	path, err := exec.LookPath(name)
	if err != nil {
		return "", &Fault{CodeFile, fmt.Errorf("finding program: %w", err), "give the path of an executable file"}
	}
	return filepath.Abs(path)
}

// StateDir is a folder of the state directory ($XDG_STATE_HOME).
func (a *App) StateDir(name string) (string, error) {
	if base, ok := a.Env("XDG_STATE_HOME"); ok && filepath.IsAbs(base) {
		return filepath.Join(base, "cohort", name), nil
	}
	home, ok := a.Env("HOME")
	if !ok {
		return "", Usage("neither XDG_STATE_HOME nor HOME is set: give --dir")
	}
	return filepath.Join(home, ".local", "state", "cohort", name), nil
}

// CertificatePEM is a certificate as a file has it.
func CertificatePEM(c *x509.Certificate) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})
}
