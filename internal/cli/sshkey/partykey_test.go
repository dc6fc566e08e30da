package sshkey

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/policy/sshsig"
	"golang.org/x/crypto/ssh"
)

// TestPartyKeys: the three forms of a key name the same key, and no other text
// names one.
func TestPartyKeys(t *testing.T) {
	dir := t.TempDir()
	o := Pair{Name: "south", Path: filepath.Join(dir, "south")}
	if err := WritePair(o); err != nil {
		t.Fatal(err)
	}
	file, err := os.ReadFile(o.Path + ".pub")
	if err != nil {
		t.Fatal(err)
	}
	key, err := sshsig.ParsePublicKey(file)
	if err != nil {
		t.Fatal(err)
	}
	want, line := sshsig.KeyDigest(key), strings.TrimSpace(string(file))
	write := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	for name, value := range map[string]string{
		"line": line, "line with a comment": line + " south@example", "file": o.Path + ".pub",
		"fingerprint": ssh.FingerprintSHA256(key), "our fingerprint": Fingerprint(want),
	} {
		if got, err := parsePartyKey(value); err != nil || got != want {
			t.Errorf("%s: got %v, %v, want %v", name, got, err, want)
		}
	}
	long := Fingerprint(want)
	for name, value := range map[string]string{
		"nothing":             "",
		"no file":             filepath.Join(dir, "none"),
		"private key":         o.Path,
		"two keys":            write("two", line+"\n"+line+"\n"),
		"options":             "no-pty " + line,
		"another digest":      want.String(),
		"cut fingerprint":     long[:len(long)-1],
		"padded fingerprint":  long + "=",
		"other last bits":     long[:len(long)-1] + "_",
		"zero fingerprint":    Fingerprint(attest.Digest{}),
		"MD5 fingerprint":     ssh.FingerprintLegacyMD5(key),
		"RSA":                 "ssh-rsa AAAAB3NzaC1yc2EAAAADAQABAAAAgQC1",
		"another kind's word": strings.Replace(line, "ssh-ed25519 ", "ecdsa-sha2-nistp256 ", 1),
	} {
		if got, err := parsePartyKey(value); err == nil {
			t.Errorf("%s: accepted as %v", name, got)
		}
	}

	parties, err := ParsePeerParties([]string{"bank=" + line, "bank=" + Fingerprint(attest.Digest{1}), "joiner=" + o.Path + ".pub"})
	if err != nil || !slices.Equal(parties["bank"], []attest.Digest{want, {1}}) || !slices.Equal(parties["joiner"], []attest.Digest{want}) {
		t.Errorf("got peer parties %v, %v", parties, err)
	}
	for _, value := range []string{line, "bank", "=" + line, "Bank=" + line, "bank="} {
		if _, err := ParsePeerParties([]string{value}); err == nil {
			t.Errorf("--peer-party %q: accepted", value)
		}
	}
}
