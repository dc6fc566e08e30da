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

	"github.com/cohort-tee/cohort/internal/testworld"
	"github.com/cohort-tee/cohort/internal/wire"
)

var update = flag.Bool("update", false, "write testdata/vectors anew")

// vector is testdata/vectors/identity.json: all values that a second implementation derives and
// issues from one root secret, policy and time. Byte strings are hexadecimal.
type vector struct {
	Description  string            `json:"description"`
	RootSecret   string            `json:"root_secret"`
	Policy       string            `json:"policy"`
	Cut          string            `json:"cut"` // the next policy, which cuts off a unit of task scoring
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

// vectorOf returns the vector as this implementation makes it.
func vectorOf(t testing.TB) vector {
	t.Helper()
	w := newWorld(t, 'a')
	v := vector{
		Description: "docs/spec/identity.md; the chip is \"chip-7\", the units run the first program of their release",
		RootSecret:  hex.EncodeToString(secretOf('a').Expose()), Policy: string(w.policy.Document().Source()),
		Genesis: w.policy.Genesis(), Root: w.keys.RootDigest(), At: noon.Format("2006-01-02T15:04:05Z"),
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
	id := testworld.Must(ReleaseID(w.policy, "scoring", "2026.11"))
	index := testworld.Must(windowAt(AuthorityLeafLifetime, noon)).index // scoring has the same lifetime
	v.IDs["scoring 2026.11"] = id.Hex()
	v.IDs["keys 1.4"] = testworld.Must(ReleaseID(w.policy, "keys", "1.4")).Hex()
	v.Scalars = map[string]string{
		"authority root":           hex.EncodeToString(testworld.Must(w.keys.root.Bytes())),
		"authority leaf":           hex.EncodeToString(testworld.Must(testworld.Must(w.keys.secret.deriveSigningKey(wire.LabelSignerKey, wire.Uint64(index))).Bytes())),
		"identity scoring 2026.11": hex.EncodeToString(testworld.Must(testworld.Must(w.keys.secret.deriveSigningKey(wire.LabelIdentityKey, id[:])).Bytes())),
		"shared leaf of scoring":   hex.EncodeToString(testworld.Must(testworld.Must(w.issuer.SharedLeaf(w.grant(t, "scoring", "2026.11"), noon)).Key.Bytes())),
	}
	for name, der := range w.issued(t, noon) {
		v.Certificates[name] = hex.EncodeToString(der)
		v.Digests[name] = wire.Sum(der).Hex()
		v.Extensions[name] = hex.EncodeToString(testworld.Must(testworld.Must(extensionOf(parse(t, der)[0])).encode()))
	}
	cut := w.next(cutScoring("a")...)
	v.Cut = string(cut.policy.Document().Source())
	after := testworld.Must(cut.issuer.SharedLeaf(cut.grant(t, "scoring", "2026.11"), noon))
	v.Scalars["shared leaf of scoring after the cut"] = hex.EncodeToString(testworld.Must(after.Key.Bytes()))
	v.Certificates["shared, after the cut"] = hex.EncodeToString(after.DER)
	return v
}

func TestVector(t *testing.T) { checkVector(t, "identity.json", vectorOf(t)) }

// checkVector compares a vector with its file, which -update writes.
func checkVector(t *testing.T, file string, v any) {
	t.Helper()
	path := filepath.Join("testdata", "vectors", file)
	got := append(testworld.Must(json.MarshalIndent(v, "", "  ")), '\n')
	if *update {
		if err := os.WriteFile(path, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want := testworld.Must(os.ReadFile(path))
	if bytes.Equal(got, want) {
		return
	}
	var a, b map[string]any
	if json.Unmarshal(got, &a) != nil || json.Unmarshal(want, &b) != nil {
		t.Fatal("got a vector that is no JSON")
	}
	for _, key := range slices.Sorted(maps.Keys(a)) {
		if g, w := string(testworld.Must(json.Marshal(a[key]))), string(testworld.Must(json.Marshal(b[key]))); g != w {
			t.Errorf("%s:\ngot  %s\nwant %s", key, g, w)
		}
	}
	t.Errorf("got another vector than %s: what is derived or issued has changed", path)
}
