// Package sshkey opens the SSH keys of owners and parties: private key files, and public ones
// whose private half an SSH agent holds. It signs statements with them, and reads the forms in
// which a command line names a party's key.
//
// A passphrase is read from the terminal alone. [SignPolicy] refuses a first policy, which is
// signed only after the evidence of its root was checked.
//
// Files, each using those before it: terminal_linux.go, terminal.go, pair.go,
// partykey.go, sign.go, sshkey.go.
package sshkey

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"

	"github.com/cohort-tee/cohort/internal/cli/frame"
	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/agent"
)

// MaxKeyFile bounds an SSH key file in bytes.
const MaxKeyFile = 64 << 10

// Signer opens the SSH key that --ssh-key names: a private key file, whose
// passphrase is asked for on the terminal, or a public key file whose private
// half an SSH agent holds. close ends the connection to the agent.
func Signer(a *frame.App, path string) (signer ssh.Signer, closeAgent func(), err error) {
	b, err := frame.ReadFile(path, MaxKeyFile)
	if err != nil {
		return nil, nil, fmt.Errorf("reading SSH key: %w", err)
	}
	if public, _, _, _, err := ssh.ParseAuthorizedKey(b); err == nil {
		return agentSigner(a, public)
	}
	signer, err = ssh.ParsePrivateKey(b)
	var locked *ssh.PassphraseMissingError
	if errors.As(err, &locked) {
		signer, err = unlock(path, b)
	}
	if err == nil {
		return signer, func() {}, nil
	}
	// Hardware keys have files without a secret in them: the agent uses the key.
	if pub, readErr := frame.ReadFile(path+".pub", MaxKeyFile); readErr == nil {
		if public, _, _, _, parseErr := ssh.ParseAuthorizedKey(pub); parseErr == nil && strings.HasPrefix(public.Type(), "sk-") {
			return agentSigner(a, public)
		}
	}
	return nil, nil, frame.Usage("reading SSH key %s: %w", path, err)
}

// agentSigner finds a key in the agent at SSH_AUTH_SOCK.
func agentSigner(a *frame.App, public ssh.PublicKey) (ssh.Signer, func(), error) {
	socket, ok := a.Env("SSH_AUTH_SOCK")
	if !ok {
		return nil, nil, &frame.Fault{Code: frame.CodeUsage, Cause: errors.New("the key is a public one and SSH_AUTH_SOCK names no agent"), Hint: "give the private key file, or start ssh-agent and `ssh-add` the key"}
	}
	conn, err := net.Dial("unix", socket)
	if err != nil {
		return nil, nil, fmt.Errorf("reaching the SSH agent: %w", err)
	}
	signers, err := agent.NewClient(conn).Signers()
	if err != nil {
		return nil, nil, errors.Join(fmt.Errorf("asking the SSH agent: %w", err), conn.Close())
	}
	for _, s := range signers {
		if bytes.Equal(s.PublicKey().Marshal(), public.Marshal()) {
			return s, func() { conn.Close() }, nil
		}
	}
	return nil, nil, errors.Join(&frame.Fault{Code: frame.CodeUsage, Cause: fmt.Errorf("the SSH agent does not hold %s", ssh.FingerprintSHA256(public)), Hint: "add it with `ssh-add`"}, conn.Close())
}

// unlock asks for the passphrase of a private key on the terminal.
func unlock(path string, key []byte) (ssh.Signer, error) {
	passphrase, err := AskPassphrase(path)
	if err != nil {
		return nil, err
	}
	defer clear(passphrase)
	return ssh.ParsePrivateKeyWithPassphrase(key, passphrase)
}

// AskPassphrase asks on the terminal.
func AskPassphrase(path string) ([]byte, error) {
	tty, err := os.OpenFile("/dev/tty", os.O_RDWR, 0)
	if err != nil {
		return nil, errors.New("the key has a passphrase and there is no terminal to ask for it: use ssh-agent")
	}
	defer tty.Close()
	fmt.Fprintf(tty, "Passphrase of %s: ", path)
	passphrase, err := readSilently(tty)
	if err != nil {
		return nil, fmt.Errorf("reading the passphrase: %w", err)
	}
	return passphrase, nil
}
