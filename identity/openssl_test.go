package identity

import (
	"encoding/pem"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cohort-tee/cohort/internal/testworld"
)

func parseURIs(s string) []*url.URL { return []*url.URL{testworld.Must(url.Parse(s))} }

// findOpenSSL returns the path of openssl, and skips the test visibly without it.
func findOpenSSL(t testing.TB) string {
	t.Helper()
	path, err := exec.LookPath("openssl")
	if err != nil {
		t.Skip("SKIPPED: openssl is not installed, so no other implementation judges our certificates")
	}
	return path
}

// TestOpenSSLVerify: OpenSSL with one root accepts the chains that units and authorities serve,
// and no others.
func TestOpenSSLVerify(t *testing.T) {
	openssl := findOpenSSL(t)
	w, other := newWorld(t, 'a'), newWorld(t, 'b')
	dir := t.TempDir()
	file := func(name string, ders ...[]byte) string {
		var text []byte
		for _, der := range ders {
			text = append(text, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})...)
		}
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, text, 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	grant, keys := w.grant(t, "scoring", "2026.11"), w.grant(t, "keys", "1.4")
	id, keysID := testworld.Must(w.issuer.Identity("scoring", "2026.11")), testworld.Must(w.issuer.Identity("keys", "1.4"))
	old := testworld.Must(w.issuer.Identity("scoring", "2026.10"))
	unit := unitKey("signing")
	shared := file("shared", testworld.Must(w.issuer.SharedLeaf(grant, noon)).DER)
	signing := file("signing", testworld.Must(w.issuer.UnitLeaf(grant, &unit.PublicKey, noon)).DER)
	perUnit := file("unit", testworld.Must(w.issuer.UnitTLSLeaf(keys, &unitKey("tls").PublicKey, [16]byte{1}, noon)).DER)
	authority := file("authority", testworld.Must(w.issuer.AuthorityLeaf(noon)).DER)
	identityRoot, cross := file("identity-root", id.Root), file("cross", id.Cross)
	keysRoot := file("keys-root", keysID.Root)
	root, otherRoot := file("root", w.issuer.AuthorityRoot()), file("other-root", other.issuer.AuthorityRoot())
	host := func(name string) []string { return []string{"-purpose", "sslserver", "-verify_hostname", name} }
	tests := []struct {
		name string
		ok   bool
		args []string
	}{
		{"shared under identity root", true, append(host("scoring.clinic.example"), "-CAfile", identityRoot, shared)},
		{"shared under identity root, chain as served", true, append(host("score.clinic.example"), "-CAfile", identityRoot, "-untrusted", cross, shared)},
		{"shared under authority root", true, append(host("scoring.clinic.example"), "-CAfile", root, "-untrusted", cross, shared)},
		{"strict", true, []string{"-x509_strict", "-CAfile", root, "-untrusted", cross, shared}},
		{"strict under identity root", true, []string{"-x509_strict", "-CAfile", identityRoot, "-untrusted", cross, shared}},
		{"unit's TLS leaf", true, append(host("keys.clinic.example"), "-CAfile", keysRoot, perUnit)},
		{"unit's signing certificate", true, []string{"-CAfile", identityRoot, signing}},
		{"authority", true, append(host("authority.clinic.example"), "-CAfile", root, authority)},
		{"another name", false, append(host("keys.clinic.example"), "-CAfile", identityRoot, shared)},
		{"another release's root", false, []string{"-CAfile", file("old", old.Root), "-untrusted", cross, shared}},
		{"another task's root", false, []string{"-CAfile", keysRoot, "-untrusted", cross, shared}},
		{"another authority's root", false, []string{"-CAfile", otherRoot, "-untrusted", cross, shared}},
		{"authority under an identity root", false, []string{"-CAfile", identityRoot, authority}},
		{"shared without cross-certificate", false, []string{"-CAfile", root, shared}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			args := append([]string{"verify", "-attime", "1795348800"}, tt.args...)
			out, err := exec.Command(openssl, args...).CombinedOutput()
			if (err == nil) != tt.ok {
				t.Errorf("got %v from openssl %s: %s, want accepted %v", err, strings.Join(args, " "), out, tt.ok)
			}
		})
	}
}
