package identity

import (
	"encoding/hex"
	"testing"

	"github.com/cohort-tee/cohort/internal/testworld"
	"github.com/cohort-tee/cohort/internal/wire"
)

// groupVector is testdata/vectors/group.json: values derived from the secret of a roster, a
// policy, statements of parties, and a time. Byte strings are hexadecimal.
type groupVector struct {
	Description  string            `json:"description"`
	RootSecret   string            `json:"root_secret"`
	GroupSecret  string            `json:"group_secret"`
	Sealed       string            `json:"sealed"` // the frame that a TEE seals
	Steps        []string          `json:"steps"`  // of the history: policy, statements
	Roster       string            `json:"roster"`
	Identity     wire.Digest       `json:"group_identity"`
	GroupRoot    wire.Digest       `json:"group_root"`
	ReportData   string            `json:"report_data"` // for the group root, with a nonce of 32 bytes 07
	At           string            `json:"at"`
	Scalars      map[string]string `json:"scalars"`
	Units        map[string]string `json:"unit_keys"` // SubjectPublicKeyInfo
	Extensions   map[string]string `json:"extensions"`
	Certificates map[string]string `json:"certificates"`
}

func TestGroupVector(t *testing.T) {
	w := agreed(t, 'a')
	p := w.policy.GroupByName("trial")
	id, keys, secret := p.ID(), groupKeys(p.ID()), groupSecret(p.ID())
	nonce := make([]byte, 32)
	for i := range nonce {
		nonce[i] = 7
	}
	data := GroupRootData(nonce, id, keys.RootDigest())
	scorer, signing := w.scorer(t), &unitKey("signing").PublicKey
	group := testworld.Must(w.issuer.GroupIdentity(p))
	pair, reporter := testworld.Must(w.issuer.SharedLeaf(scorer, noon)), testworld.Must(w.issuer.GroupAuthorityLeaf(p, noon))
	v := groupVector{
		Description: "docs/spec/group.md, docs/spec/identity.md; group trial, role scorer; the chip is \"chip-7\"",
		RootSecret:  hex.EncodeToString(secretOf('a').Expose()), GroupSecret: hex.EncodeToString(secret.Expose()),
		Sealed: hex.EncodeToString(SealedGroup(secret, id)), Roster: hex.EncodeToString(p.Roster.Bytes()), Identity: id,
		GroupRoot: keys.RootDigest(), ReportData: hex.EncodeToString(data[:]), At: noon.Format("2006-01-02T15:04:05Z"),
		Scalars: map[string]string{
			"group root":               hex.EncodeToString(testworld.Must(keys.root.Bytes())),
			"authority leaf of trial":  hex.EncodeToString(testworld.Must(reporter.Key.Bytes())),
			"shared leaf of scorer":    hex.EncodeToString(testworld.Must(pair.Key.Bytes())),
			"authority root (another)": hex.EncodeToString(testworld.Must(w.keys.root.Bytes())),
		},
		Units:      map[string]string{"signing": hex.EncodeToString(publicKeyInfo(signing))},
		Extensions: map[string]string{}, Certificates: map[string]string{},
	}
	for _, step := range w.policy.Steps() {
		v.Steps = append(v.Steps, string(step.Policy))
	}
	for name, der := range map[string][]byte{
		"authority root": w.issuer.AuthorityRoot(), "group root": group.Root, "group-bus": group.Cross, "authority leaf of trial": reporter.DER,
		"shared leaf of scorer": pair.DER, "unit of scorer": testworld.Must(w.issuer.UnitLeaf(scorer, signing, noon)).DER,
	} {
		v.Certificates[name] = hex.EncodeToString(der)
		v.Extensions[name] = hex.EncodeToString(testworld.Must(testworld.Must(extensionOf(parse(t, der)[0])).encode()))
	}
	checkVector(t, "group.json", v)
}

// FuzzOpenGroup: every secret that opens encodes to the same bytes again.
func FuzzOpenGroup(f *testing.F) {
	roster := wire.Digest{1}
	f.Add(SealedGroup(secretOf(1), roster))
	f.Add(wire.Frame(wire.LabelGroupSecret, nil, roster[:]))
	f.Fuzz(func(t *testing.T, plain []byte) {
		keys, err := OpenGroup(plain, roster)
		if err != nil {
			return
		}
		if again := SealedGroup(keys.secret, roster); string(again) != string(plain) {
			t.Errorf("got %x from %x", again, plain)
		}
	})
}
