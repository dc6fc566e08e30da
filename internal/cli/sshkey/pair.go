package sshkey

import (
	"crypto/ed25519"
	"crypto/rand"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/crypto/ssh"
)

// Pair is one owner of a development policy: its name and the path of its
// private SSH key; the public key is beside it in ".pub".
type Pair struct{ Name, Path string }

// Pairs makes, or finds again, an SSH key pair for each name. Where there is
// only a public key the other belongs to another person.
func Pairs(dir string, names ...string) ([]Pair, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	owners := make([]Pair, len(names))
	for i, name := range names {
		o := Pair{name, filepath.Join(dir, name)}
		if _, err := os.Stat(o.Path + ".pub"); errors.Is(err, os.ErrNotExist) && !o.HasPrivateKey() {
			if err := WritePair(o); err != nil {
				return nil, fmt.Errorf("making the key of %s: %w", o.Name, err)
			}
		}
		owners[i] = o
	}
	return owners, nil
}

// HasPrivateKey reports whether the private key is at hand.
func (o Pair) HasPrivateKey() bool {
	_, err := os.Stat(o.Path)
	return err == nil
}

// WritePair makes a key pair in the form of ssh-keygen.
func WritePair(o Pair) error {
	public, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return err
	}
	block, err := ssh.MarshalPrivateKey(private, o.Name)
	if err != nil {
		return err
	}
	key, err := ssh.NewPublicKey(public)
	if err != nil {
		return err
	}
	line := strings.TrimSuffix(string(ssh.MarshalAuthorizedKey(key)), "\n") + " " + o.Name + "\n"
	if err := os.WriteFile(o.Path+".pub", []byte(line), 0o644); err != nil {
		return err
	}
	return os.WriteFile(o.Path, pem.EncodeToMemory(block), 0o600)
}
