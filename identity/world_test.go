package identity

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/x509"
	"slices"
	"strings"
	"testing"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/attest/attesttest"
	"github.com/cohort-tee/cohort/internal/testworld"
	"github.com/cohort-tee/cohort/internal/wire"
	"github.com/cohort-tee/cohort/policy"
)

// noon is the time of most tests.
var noon = testworld.Noon

// world is a trust domain with its issuer, the same in every run.
type world struct {
	*testworld.World
	keys   *Keys
	policy policy.Approved
	issuer *Issuer
}

const tasks = `
[task.keys]
key_mode = "unit"
names = ["keys.clinic.example"]
lifetime = "30m"
[task.keys.release."1.4"]
reference = [ { platform = "soft", program = "sha256:3333333333333333333333333333333333333333333333333333333333333333", any = ["agent", "args"] } ]

[task.scoring]
key_mode = "shared"
names = ["scoring.clinic.example", "score.clinic.example"]
lifetime = "1h"
calls = ["keys"]
[task.scoring.release."2026.10"]
reference = [ { platform = "soft", program = "sha256:4444444444444444444444444444444444444444444444444444444444444444" } ]
[task.scoring.release."2026.11"]
reference = [
  { platform = "soft", program = "sha256:6666666666666666666666666666666666666666666666666666666666666666" },
  { platform = "soft", program = "sha256:5555555555555555555555555555555555555555555555555555555555555555", args = ["--model", "m.json"] },
]
`

// secretOf returns a root secret that is the same in every run.
func secretOf(seed byte) Secret {
	return testworld.Must(OpenSecret([]byte(strings.Repeat(string(rune(seed)), 32))))
}

// newWorld returns the world of a root secret; edits "old, new" change its policy. The vectors
// contain it, so owner, vendor and programs are the same in every run.
func newWorld(t testing.TB, seed byte, edits ...string) *world {
	t.Helper()
	keys, w := testworld.Must(Derive(secretOf(seed))), testworld.New(t)
	w.Keys["ana"] = testworld.KeyOf(wire.Sum([]byte("identity test owner")))
	w.Keys["north"], w.Keys["south"] = party("north"), party("south")
	return worldOf(keys, w.SignFirst(keys.RootDigest(), tasks, append(edits,
		testworld.Created, "created      = 2026-11-22T09:00:00Z\n",
		"VENDOR", "sha256:"+strings.Repeat("1", 64), `program = "authority"`, `program = "sha256:`+strings.Repeat("2", 64)+`"`)...))
}

// worldOf returns a world with an issuer of the keys under the newest policy of w.
func worldOf(keys *Keys, w *testworld.World) *world {
	p := w.Policy()
	return &world{World: w, keys: keys, policy: p, issuer: issuerOf(keys, p)}
}

// groupKeys returns the keys of a roster, the same in every run.
func groupKeys(roster attest.Digest) *GroupKeys {
	return testworld.Must(DeriveGroup(groupSecret(roster), roster))
}

func groupSecret(roster attest.Digest) Secret {
	secret := wire.Sum([]byte("identity test secret of roster " + roster.Hex()))
	return testworld.Must(OpenSecret(secret[:]))
}

// issuerOf returns the issuer of an authority that has the keys of every roster.
func issuerOf(keys *Keys, p policy.Approved) *Issuer {
	var all []*GroupKeys
	for _, name := range p.Document().GroupNames() {
		for pact := p.GroupByName(name); pact != nil; pact = pact.Predecessor {
			all = append(all, groupKeys(pact.ID()))
		}
	}
	return testworld.Must(keys.Issuer(p, all...))
}

// next returns the world under the next policy, after edits.
func (w *world) next(edits ...string) *world { return worldOf(w.keys, w.NextPolicy(edits...)) }

// grant returns the policy's grant for a unit with the first program of a release.
func (w *world) grant(t testing.TB, task, release string) policy.Grant {
	t.Helper()
	m := w.policy.Document().Tasks[task].Releases[release].References[0]
	m.Registers = slices.Clone(m.Registers)
	for i := range m.Registers {
		m.Registers[i].Any = false
	}
	data := attest.BindReportData(wire.LabelIssue)
	claims := attest.Claims{Measurement: m, ReportData: data[:], Chip: "chip-7"}
	result, err := attest.NewVerifier(attesttest.Vouch(claims)).Appraise(attest.Question{
		Evidence: attest.Evidence{Platform: attest.Soft}, ReportData: data,
		Rules: w.policy.Document().Platforms, At: noon,
	})
	if err != nil {
		t.Fatal(err)
	}
	g, err := w.policy.Admit(task, result)
	if err != nil {
		t.Fatal(err)
	}
	return g
}

// unitKey returns a unit's key, the same in every run.
func unitKey(name string) *ecdsa.PrivateKey {
	d := wire.Sum([]byte("unit key " + name))
	return testworld.Must(ecdsa.ParseRawPrivateKey(elliptic.P256(), d[:]))
}

func parse(t testing.TB, ders ...[]byte) []*x509.Certificate {
	t.Helper()
	var list []*x509.Certificate
	for _, der := range ders {
		c, err := x509.ParseCertificate(der)
		if err != nil {
			t.Fatal(err)
		}
		list = append(list, c)
	}
	return list
}

func (w *world) root(t testing.TB) *x509.Certificate {
	t.Helper()
	return parse(t, w.issuer.AuthorityRoot())[0]
}

// sharedChain returns the chain that a unit of scoring 2026.11 serves.
func (w *world) sharedChain(t testing.TB) []*x509.Certificate {
	t.Helper()
	leaf := testworld.Must(w.issuer.SharedLeaf(w.grant(t, "scoring", "2026.11"), noon))
	return parse(t, leaf.DER, testworld.Must(w.issuer.Identity("scoring", "2026.11")).Cross)
}

// expectShared returns an expectation that accepts sharedChain.
func (w *world) expectShared(t testing.TB) Expect {
	t.Helper()
	return Expect{Policy: w.policy, Kinds: []Kind{KindShared}, Use: UseTLS, IDs: testworld.Must(LiveIDs(w.policy, "scoring")), At: noon}
}
