package cli

import (
	"crypto/ed25519"
	"crypto/rand"
	"crypto/tls"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/cohort-tee/cohort/internal/wire"
	"golang.org/x/crypto/ssh"
)

// cluster describes a running cluster to those who talk to it or judge it: the
// content of dev.json.
type cluster struct {
	Schema    string `json:"schema"` // "cohort/dev/v1"
	Genesis   string `json:"genesis"`
	Authority string `json:"authority"`
	Gateway   string `json:"gateway"`
	Manager   struct {
		PID  int    `json:"pid"`
		Data string `json:"data"` // its data directory
		Bus  string `json:"bus"`  // host:port where units connect
	} `json:"manager"`
	service
	Tasks   []service `json:"tasks"`
	Group   string    `json:"group,omitempty"` // that the units are in, one of each role
	KeyMode string    `json:"key_mode"`
	TEE     string    `json:"tee"`   // socket of the soft daemon
	Agent   string    `json:"agent"` // the measured cohort
	// Program is the measured program with its arguments, as it can be
	// launched again.
	Program []string `json:"program"`
}

// service is one task of a cluster and where its units are.
type service struct {
	Task       string        `json:"task"`
	ServerName string        `json:"server_name"`
	Root       string        `json:"root"` // PEM file
	Units      []clusterUnit `json:"units"`
}

// clusterUnit is one running unit. PID is the process that holds its TLS
// listener.
type clusterUnit struct {
	Address string `json:"address"`
	PID     int    `json:"pid"`
	Health  string `json:"health"` // URL of its health pages
}

// clientTLS is what a Go program knows that was given one root file and one name.
func (c cluster) clientTLS() (*tls.Config, error) {
	roots, err := readPool(c.Root)
	if err != nil {
		return nil, err
	}
	return &tls.Config{RootCAs: roots, ServerName: c.ServerName, MinVersion: tls.VersionTLS13}, nil
}

const (
	devSchema = "cohort/dev/v1"
	devFile   = "dev.json"
	maxDev    = 1 << 20
)

// readCluster reads a dev.json.
func readCluster(path string) (cluster, error) {
	var c cluster
	b, err := readFile(path, maxDev)
	if err != nil {
		return c, err
	}
	if err := json.Unmarshal(b, &c); err != nil || c.Schema != devSchema || len(c.Units) == 0 {
		return c, usage("%s: want a description of schema %s with units", path, devSchema)
	}
	return c, nil
}

// writeCluster replaces dir's dev.json in one step.
func writeCluster(dir string, c cluster) error {
	b, err := json.MarshalIndent(c, "", "  ")
	if err != nil {
		return fmt.Errorf("writing %s: %w", devFile, err)
	}
	return replaceFile(filepath.Join(dir, devFile), append(b, '\n'))
}

// replaceFile writes a file beside the old one and renames it over it.
func replaceFile(path string, content []byte) error {
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

// lockDir takes a directory for this process alone until the file is closed.
func lockDir(dir string) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		return nil, errors.Join(&fault{codeInUse, fmt.Errorf("locking %s: another `cohort dev` runs there", dir), ""}, f.Close())
	}
	return f, nil
}

// owner is one owner of a development policy: its name and the path of its
// private SSH key; the public key stands beside it in ".pub".
type owner struct{ name, path string }

// devOwners are the three owners of a development policy.
func devOwners(dir string) ([]owner, error) { return sshKeys(dir, "owner-1", "owner-2", "owner-3") }

// sshKeys makes, or finds again, an SSH key pair for each name. Where there is
// only a public key the other is somebody else's.
func sshKeys(dir string, names ...string) ([]owner, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	owners := make([]owner, len(names))
	for i, name := range names {
		o := owner{name, filepath.Join(dir, name)}
		if _, err := os.Stat(o.path + ".pub"); errors.Is(err, os.ErrNotExist) && !o.here() {
			if err := writeSSHKey(o); err != nil {
				return nil, fmt.Errorf("making the key of %s: %w", o.name, err)
			}
		}
		owners[i] = o
	}
	return owners, nil
}

// here reports whether the private key is at hand.
func (o owner) here() bool {
	_, err := os.Stat(o.path)
	return err == nil
}

// writeSSHKey makes a key pair in the form of ssh-keygen.
func writeSSHKey(o owner) error {
	public, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return err
	}
	block, err := ssh.MarshalPrivateKey(private, o.name)
	if err != nil {
		return err
	}
	key, err := ssh.NewPublicKey(public)
	if err != nil {
		return err
	}
	line := strings.TrimSuffix(string(ssh.MarshalAuthorizedKey(key)), "\n") + " " + o.name + "\n"
	if err := os.WriteFile(o.path+".pub", []byte(line), 0o644); err != nil {
		return err
	}
	return os.WriteFile(o.path, pem.EncodeToMemory(block), 0o600)
}

// fileDigest is the SHA-256 of a file.
func fileDigest(path string) (wire.Digest, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return wire.Digest{}, err
	}
	return wire.Sum(b), nil
}

// addresses gives n loopback addresses: the ports from base on, each tried, or
// any free ones when base is 0.
func addresses(base, n int) ([]string, error) {
	list := make([]string, n)
	for i := range list {
		port := 0
		if base > 0 {
			port = base + i
		}
		l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port))
		if err != nil {
			return nil, fmt.Errorf("trying port %d: %w", port, err)
		}
		list[i] = l.Addr().String()
		defer l.Close() // all are held until all are found, so that no two are equal
	}
	return list, nil
}
