package identity

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"flag"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/cohort-tee/cohort/internal/wire"
)

var update = flag.Bool("update", false, "write testdata/vectors anew")

// vector is testdata/vectors/identity.json: everything that a second
// implementation derives and issues from one root secret, policy and time.
// Byte strings are hexadecimal.
type vector struct {
	Description  string            `json:"description"`
	RootSecret   string            `json:"root_secret"`
	Policy       string            `json:"policy"`
	Genesis      wire.Digest       `json:"genesis"`
	Root         wire.Digest       `json:"authority_root"`
	At           string            `json:"at"`
	IDs          map[string]string `json:"identity_ids"`
	Scalars      map[string]string `json:"scalars"`
	MACs         map[string]string `json:"macs"`
	Units        map[string]string `json:"unit_keys"` // SubjectPublicKeyInfo
	Extensions   map[string]string `json:"extensions"`
	Certificates map[string]string `json:"certificates"`
	Digests      map[string]string `json:"certificate_sha256"`
}

// vectorOf is the vector as this implementation makes it.
func vectorOf(t testing.TB) vector {
	t.Helper()
	w := newWorld(t, 'a')
	v := vector{
		Description: "docs/spec/identity.md; the chip is \"chip-7\", the units run the first program of their release",
		RootSecret:  hex.EncodeToString(secretOf('a').Expose()), Policy: string(w.policy.Document().Raw()),
		Genesis: w.policy.Genesis(), Root: w.keys.Root(), At: noon.Format("2006-01-02T15:04:05Z"),
		IDs: map[string]string{}, Extensions: map[string]string{}, Certificates: map[string]string{}, Digests: map[string]string{},
		MACs: map[string]string{
			"nonce of (1, empty)": hex.EncodeToString(w.keys.NonceMAC([]byte{1}, nil)),
			"row of (1, empty)":   hex.EncodeToString(w.keys.RowMAC(wire.LabelRow, []byte{1}, nil)),
			"adopted of (1)":      hex.EncodeToString(w.keys.RowMAC(wire.LabelAdopted, []byte{1})),
		},
		Units: map[string]string{
			"signing": hex.EncodeToString(publicKeyInfo(&unitKey("signing").PublicKey)),
			"tls":     hex.EncodeToString(publicKeyInfo(&unitKey("tls").PublicKey)),
		},
	}
	id := must(ReleaseID(w.policy, "scoring", "2026.11"))
	index := must(windowAt(AuthorityLife, noon)).index // scoring has the same life
	v.IDs["scoring 2026.11"] = id.Hex()
	v.IDs["keys 1.4"] = must(ReleaseID(w.policy, "keys", "1.4")).Hex()
	v.Scalars = map[string]string{
		"authority root":           hex.EncodeToString(must(w.keys.root.Bytes())),
		"authority leaf":           hex.EncodeToString(must(must(w.keys.signingKey(wire.LabelSignerKey, wire.Uint64(index))).Bytes())),
		"identity scoring 2026.11": hex.EncodeToString(must(must(w.keys.signingKey(wire.LabelIdentityKey, id[:])).Bytes())),
		"shared leaf of scoring":   hex.EncodeToString(must(must(w.issuer.Shared(w.grant(t, "scoring", "2026.11"), noon)).Key.Bytes())),
	}
	for name, der := range w.issued(t, noon) {
		v.Certificates[name] = hex.EncodeToString(der)
		v.Digests[name] = wire.Sum(der).Hex()
		v.Extensions[name] = hex.EncodeToString(must(must(extensionOf(parse(t, der)[0])).encode()))
	}
	return v
}

func TestVector(t *testing.T) {
	path := filepath.Join("testdata", "vectors", "identity.json")
	got := append(must(json.MarshalIndent(vectorOf(t), "", "  ")), '\n')
	if *update {
		if err := os.WriteFile(path, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want := must(os.ReadFile(path))
	if bytes.Equal(got, want) {
		return
	}
	var a, b map[string]any
	if json.Unmarshal(got, &a) != nil || json.Unmarshal(want, &b) != nil {
		t.Fatal("got a vector that is no JSON")
	}
	for _, key := range slices.Sorted(maps.Keys(a)) {
		if g, w := string(must(json.Marshal(a[key]))), string(must(json.Marshal(b[key]))); g != w {
			t.Errorf("%s:\ngot  %s\nwant %s", key, g, w)
		}
	}
	t.Error("got another vector than testdata/vectors/identity.json: what is derived or issued has changed")
}
