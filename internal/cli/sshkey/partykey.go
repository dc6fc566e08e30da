package sshkey

import (
	"bytes"
	"encoding/base64"
	"fmt"
	"strings"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/internal/cli/frame"
	"github.com/cohort-tee/cohort/internal/wire"
	"github.com/cohort-tee/cohort/policy/sshsig"
)

// fingerprintPrefix begins a fingerprint as ssh-keygen -lf prints it.
const fingerprintPrefix = "SHA256:"

// maxKeyLine bounds an OpenSSH public key line, in bytes.
const maxKeyLine = 4 << 10

// Fingerprint is the digest of an SSH public key as ssh-keygen -lf prints it.
func Fingerprint(key attest.Digest) string {
	return fingerprintPrefix + base64.RawStdEncoding.EncodeToString(key[:])
}

// parsePartyKey reads what names an SSH key on a command line, and returns the
// SHA-256 of the key: an OpenSSH public key line, a file that holds one, or the
// fingerprint that ssh-keygen -lf prints.
func parsePartyKey(value string) (attest.Digest, error) {
	if encoded, ok := strings.CutPrefix(value, fingerprintPrefix); ok {
		b, err := base64.RawStdEncoding.Strict().DecodeString(encoded)
		if err != nil || len(b) != len(attest.Digest{}) || attest.Digest(b).IsZero() {
			return attest.Digest{}, wire.Refuse(wire.Malformed, "SSH key: fingerprint", value, `"SHA256:" and 43 characters, as ssh-keygen -lf prints it`)
		}
		return attest.Digest(b), nil
	}
	line := []byte(value)
	if !strings.Contains(value, " ") {
		var err error
		if line, err = frame.ReadFile(value, MaxKeyFile); err != nil {
			return attest.Digest{}, err
		}
	}
	// A file of several keys, or a line with options, would name another key than its reader thinks.
	line = bytes.TrimRight(line, "\n")
	if bytes.ContainsAny(line, "\n\r") || len(line) > maxKeyLine || !bytes.HasPrefix(line, []byte("ssh-")) && !bytes.HasPrefix(line, []byte("ecdsa-")) && !bytes.HasPrefix(line, []byte("sk-")) {
		return attest.Digest{}, wire.Refuse(wire.Malformed, "SSH key", fmt.Sprintf("a text of %d bytes in another form", len(line)), "one OpenSSH public key line")
	}
	key, err := sshsig.ParsePublicKey(line)
	if err != nil {
		return attest.Digest{}, err
	}
	return sshsig.KeyDigest(key), nil
}

// PartyKeyHelp describes the values of --party-key.
const PartyKeyHelp = "SSH public key (line, file or SHA256:...)"

// ParsePartyKeys reads the values of --party-key.
func ParsePartyKeys(values []string) (keys []attest.Digest, err error) {
	for _, value := range values {
		key, err := parsePartyKey(value)
		if err != nil {
			return nil, frame.Usage("--party-key: %w", err)
		}
		keys = append(keys, key)
	}
	return keys, nil
}

// ParsePeerParties reads the values ROLE=KEY of --peer-party: by role, the keys of
// the parties whose programs are accepted.
func ParsePeerParties(values []string) (map[string][]attest.Digest, error) {
	parties := map[string][]attest.Digest{}
	for _, value := range values {
		role, name, ok := strings.Cut(value, "=")
		if !ok || !wire.ValidName(role) {
			return nil, frame.Usage("--peer-party: got %q, want ROLE=KEY", value)
		}
		key, err := parsePartyKey(name)
		if err != nil {
			return nil, frame.Usage("--peer-party: role %s: %w", role, err)
		}
		parties[role] = append(parties[role], key)
	}
	return parties, nil
}
