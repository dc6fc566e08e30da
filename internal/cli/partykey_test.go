package cli

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/internal/wire"
	"github.com/cohort-tee/cohort/policy"
	"golang.org/x/crypto/ssh"
)

// TestPartyKeys: the three forms of a key name the same key, and no other text
// names one.
func TestPartyKeys(t *testing.T) {
	dir := t.TempDir()
	o := owner{name: "south", path: filepath.Join(dir, "south")}
	if err := writeSSHKey(o); err != nil {
		t.Fatal(err)
	}
	file, err := os.ReadFile(o.path + ".pub")
	if err != nil {
		t.Fatal(err)
	}
	key, err := policy.ParsePublicKey(file)
	if err != nil {
		t.Fatal(err)
	}
	want, line := policy.KeyDigest(key), strings.TrimSpace(string(file))
	write := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	for name, value := range map[string]string{
		"line": line, "line with a comment": line + " south@example", "file": o.path + ".pub",
		"fingerprint": ssh.FingerprintSHA256(key), "our fingerprint": fingerprint(want),
	} {
		if got, err := parsePartyKey(value); err != nil || got != want {
			t.Errorf("%s: got %v, %v, want %v", name, got, err, want)
		}
	}
	long := fingerprint(want)
	for name, value := range map[string]string{
		"nothing":             "",
		"no file":             filepath.Join(dir, "none"),
		"private key":         o.path,
		"two keys":            write("two", line+"\n"+line+"\n"),
		"options":             "no-pty " + line,
		"another digest":      want.String(),
		"cut fingerprint":     long[:len(long)-1],
		"padded fingerprint":  long + "=",
		"other last bits":     long[:len(long)-1] + "_",
		"zero fingerprint":    fingerprint(attest.Digest{}),
		"MD5 fingerprint":     ssh.FingerprintLegacyMD5(key),
		"RSA":                 "ssh-rsa AAAAB3NzaC1yc2EAAAADAQABAAAAgQC1",
		"another kind's word": strings.Replace(line, "ssh-ed25519 ", "ecdsa-sha2-nistp256 ", 1),
	} {
		if got, err := parsePartyKey(value); err == nil {
			t.Errorf("%s: accepted as %v", name, got)
		}
	}

	parties, err := parsePeerParties([]string{"bank=" + line, "bank=" + fingerprint(attest.Digest{1}), "joiner=" + o.path + ".pub"})
	if err != nil || !slices.Equal(parties["bank"], []attest.Digest{want, {1}}) || !slices.Equal(parties["joiner"], []attest.Digest{want}) {
		t.Errorf("got peer parties %v, %v", parties, err)
	}
	for _, value := range []string{line, "bank", "=" + line, "Bank=" + line, "bank="} {
		if _, err := parsePeerParties([]string{value}); err == nil {
			t.Errorf("--peer-party %q: accepted", value)
		}
	}
}

// TestUnitNamesItsParty: a unit in a group does not start without its party's key,
// and one of a task has no party.
func TestUnitNamesItsParty(t *testing.T) {
	key := fingerprint(attest.Digest{1})
	roster := attest.Digest{2}.String()
	for name, tt := range map[string]struct {
		flags unitFlags
		ok    bool
	}{
		"group":                    {unitFlags{group: "trial", partyKeys: []string{key}, roster: roster, peerParties: []string{"bank=" + key}}, true},
		"task":                     {unitFlags{task: "keys"}, true},
		"group without a key":      {unitFlags{group: "trial"}, false},
		"group, peers' keys alone": {unitFlags{group: "trial", peerParties: []string{"bank=" + key}}, false},
		"task with a key":          {unitFlags{task: "keys", partyKeys: []string{key}}, false},
		"task with a roster":       {unitFlags{task: "keys", roster: roster}, false},
		"task with a peer's key":   {unitFlags{task: "keys", peerParties: []string{"bank=" + key}}, false},
		"no digest":                {unitFlags{group: "trial", partyKeys: []string{key}, roster: "sha256:1"}, false},
		"no key":                   {unitFlags{group: "trial", partyKeys: []string{"north"}}, false},
	} {
		c, err := tt.flags.parties()
		if (err == nil) != tt.ok {
			t.Errorf("%s: got %v", name, err)
		}
		if name == "group" && (!slices.Equal(c.PartyKeys, []attest.Digest{{1}}) || c.Roster != (wire.Digest{2}) || len(c.PeerParties["bank"]) != 1) {
			t.Errorf("%s: got %+v", name, c)
		}
	}
}
