package identity

import (
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/x509"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/internal/wire"
	"github.com/cohort-tee/cohort/policy"
	"golang.org/x/crypto/ssh"
)

// noon is when most tests happen.
var noon = time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)

// world is an authority with its policy, all of it the same in every run.
type world struct {
	keys   *Keys
	policy policy.Approved
	issuer *Issuer
}

const policyText = `schema       = "cohort/policy/v1"
trust_domain = "clinic.example"
sequence     = 1
previous     = ""
created      = 2026-11-22T09:00:00Z
development  = true

[owners]
quorum = 1
approve_within = "168h"
delay = "0s"
keys = [ { name = "ana", ssh = "OWNER" } ]

[platform.soft]
roots = ["sha256:1111111111111111111111111111111111111111111111111111111111111111"]

[authority]
root = "ROOT"
reference = [ { platform = "soft", program = "sha256:2222222222222222222222222222222222222222222222222222222222222222" } ]

[task.keys]
key_mode = "unit"
names = ["keys.clinic.example"]
life = "30m"
[task.keys.release."1.4"]
reference = [ { platform = "soft", program = "sha256:3333333333333333333333333333333333333333333333333333333333333333", any = ["agent", "args"] } ]

[task.scoring]
key_mode = "shared"
names = ["scoring.clinic.example", "score.clinic.example"]
life = "1h"
calls = ["keys"]
[task.scoring.release."2026.10"]
reference = [ { platform = "soft", program = "sha256:4444444444444444444444444444444444444444444444444444444444444444" } ]
[task.scoring.release."2026.11"]
reference = [
  { platform = "soft", program = "sha256:6666666666666666666666666666666666666666666666666666666666666666" },
  { platform = "soft", program = "sha256:5555555555555555555555555555555555555555555555555555555555555555", args = ["--model", "m.json"] },
]
`

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// secretOf is a root secret that is the same in every run.
func secretOf(seed byte) Secret {
	return must(OpenSecret([]byte(strings.Repeat(string(rune(seed)), 32))))
}

// owner is the one owner of the test policies.
func owner() ssh.Signer {
	seed := wire.Sum([]byte("identity test owner"))
	return must(ssh.NewSignerFromKey(ed25519.NewKeyFromSeed(seed[:])))
}

// newWorld is the world of a root secret; edits "old, new" change its policy.
func newWorld(t testing.TB, seed byte, edits ...string) *world {
	t.Helper()
	keys := must(Derive(secretOf(seed)))
	text := policyText
	edits = append(edits, "ROOT", keys.Root().String(), "OWNER", strings.TrimSpace(string(ssh.MarshalAuthorizedKey(owner().PublicKey()))))
	for i := 0; i < len(edits); i += 2 {
		if !strings.Contains(text, edits[i]) {
			t.Fatalf("the test policy has no %q", edits[i])
		}
		text = strings.ReplaceAll(text, edits[i], edits[i+1])
	}
	p, err := policy.Genesis(wire.Sum([]byte(text)), signedStep(text))
	if err != nil {
		t.Fatal(err)
	}
	return &world{keys: keys, policy: p, issuer: must(keys.Issuer(p))}
}

func signedStep(text string) policy.Step {
	return policy.Step{Policy: []byte(text), Signatures: []string{must(policy.Sign(owner(), policy.ForPolicy, []byte(text)))}}
}

// next is the world under the policy that follows, after edits.
func (w *world) next(t testing.TB, edits ...string) *world {
	t.Helper()
	doc := w.policy.Document()
	text := string(doc.Raw())
	edits = append(edits,
		fmt.Sprintf("sequence     = %d\n", doc.Sequence), fmt.Sprintf("sequence     = %d\n", doc.Sequence+1),
		"previous     = \"\"\n", fmt.Sprintf("previous     = %q\n", doc.Digest()))
	for i := 0; i < len(edits); i += 2 {
		text = strings.ReplaceAll(text, edits[i], edits[i+1])
	}
	p, err := w.policy.Next(signedStep(text))
	if err != nil {
		t.Fatal(err)
	}
	return &world{keys: w.keys, policy: p, issuer: must(w.keys.Issuer(p))}
}

// voucher is an appraiser that says yes to one measurement: appraisal is not
// what this package's tests are about.
type voucher struct{ attest.Claims }

func (voucher) Platform() attest.Platform { return attest.Soft }

func (v voucher) Appraise([]byte, attest.Endorsements, attest.Rules, time.Time) (attest.Claims, error) {
	return v.Claims, nil
}

// grant is what policy gives a unit that runs the first program of a release.
func (w *world) grant(t testing.TB, task, release string) policy.Grant {
	t.Helper()
	m := w.policy.Document().Tasks[task].Releases[release].References[0]
	m.Registers = slices.Clone(m.Registers)
	for i := range m.Registers {
		m.Registers[i].Any = false
	}
	data := attest.Bind(wire.LabelIssue)
	claims := attest.Claims{Measurement: m, ReportData: data[:], Chip: "chip-7"}
	result, err := attest.NewVerifier(voucher{claims}).Appraise(attest.Question{
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

// unitKey is the key of a unit, the same in every run.
func unitKey(name string) *ecdsa.PrivateKey {
	d := wire.Sum([]byte("unit key " + name))
	return must(ecdsa.ParseRawPrivateKey(elliptic.P256(), d[:]))
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

// sharedChain is what a unit of scoring 2026.11 serves.
func (w *world) sharedChain(t testing.TB) []*x509.Certificate {
	t.Helper()
	leaf := must(w.issuer.Shared(w.grant(t, "scoring", "2026.11"), noon))
	return parse(t, leaf.DER, must(w.issuer.Identity("scoring", "2026.11")).Cross)
}

// expectShared accepts sharedChain.
func (w *world) expectShared(t testing.TB) Expect {
	t.Helper()
	return Expect{Policy: w.policy, Kinds: []Kind{KindShared}, Use: UseTLS, IDs: must(LiveIDs(w.policy, "scoring")), At: noon}
}

// refused demands exactly this reason.
func refused(t testing.TB, err error, want attest.Reason) {
	t.Helper()
	if err == nil {
		t.Fatalf("got no error, want reason %q", want)
	}
	if got := wire.ReasonOf(err); got != want {
		t.Fatalf("got reason %q (%v), want %q", got, err, want)
	}
}
