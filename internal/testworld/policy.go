package testworld

import (
	"crypto/ed25519"
	"crypto/rand"
	"fmt"
	"regexp"
	"strings"
	"testing"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/internal/wire"
	"github.com/cohort-tee/cohort/policy"
	"github.com/cohort-tee/cohort/policy/policyfile"
	"github.com/cohort-tee/cohort/policy/sshsig"
	"golang.org/x/crypto/ssh"
)

// Created is the line with the date of every first policy, for tests that edit it. The date
// is before every clock of a test, real or not.
const Created = "created      = 2026-01-02T03:04:05Z\n"

// head is the beginning of every policy.
const head = `schema       = "cohort/policy/v1"
trust_domain = "clinic.example"
sequence     = 1
previous     = ""
` + Created + `development  = true

[owners]
quorum = 1
approve_within = "168h"
delay = "0s"
keys = [ OWNERS ]

[platform.soft]
roots = ["VENDOR"]

[authority]
root = "ROOT"
machines = "any"
reference = [ { platform = "soft", program = "authority" } ]
`

// Key is the key of an owner or party. It signs policies and statements, and opens the
// shares that are sealed to it.
type Key struct {
	ssh.Signer
	Private ed25519.PrivateKey
}

// NewKey generates a random key.
func NewKey() Key {
	var seed [ed25519.SeedSize]byte
	rand.Read(seed[:])
	return KeyOf(seed)
}

// KeyOf returns the key of a seed, which is the same in every run.
func KeyOf(seed [ed25519.SeedSize]byte) Key {
	private := ed25519.NewKeyFromSeed(seed[:])
	return Key{Signer: Must(ssh.NewSignerFromKey(private)), Private: private}
}

// AuthorizedKey returns the public key in the form that policies contain.
func (k Key) AuthorizedKey() string {
	return strings.TrimSpace(string(ssh.MarshalAuthorizedKey(k.PublicKey())))
}

// Digest returns the digest of the public key, which statements contain.
func (k Key) Digest() attest.Digest { return sshsig.KeyDigest(k.PublicKey()) }

// OwnerRows returns the rows of a policy's list of owners or parties with these names.
func (w *World) OwnerRows(names ...string) string {
	var rows []string
	for _, name := range names {
		rows = append(rows, fmt.Sprintf("{ name = %q, ssh = %q }", name, w.Keys[name].AuthorizedKey()))
	}
	return strings.Join(rows, ", ")
}

// PolicyText returns a first policy after edits, which are pairs of old and new text. It
// names a root, or none as a draft does. OWNERS, VENDOR and ROOT are replaced after the
// edits, so edits may contain them.
func (w *World) PolicyText(root, tasks string, edits ...string) string {
	w.T.Helper()
	return finish(strings.NewReplacer("OWNERS", w.OwnerRows(w.Owners...), "VENDOR", w.Vendor.Root().String(), "ROOT", root).
		Replace(replace(w.T, head+tasks, edits)))
}

// NextText returns the text of the policy that follows p, after edits, which are pairs of
// old and new text.
func (w *World) NextText(p policy.Approved, edits ...string) string {
	w.T.Helper()
	doc, previous := p.Document(), ""
	if !doc.Previous.IsZero() {
		previous = doc.Previous.String()
	}
	return EditPolicy(w.T, string(doc.Source()), append(edits,
		fmt.Sprintf("sequence     = %d\n", doc.Sequence), fmt.Sprintf("sequence     = %d\n", doc.Sequence+1),
		fmt.Sprintf("previous     = %q\n", previous), fmt.Sprintf("previous     = %q\n", doc.Digest()))...)
}

// EditPolicy returns a policy after edits, which are pairs of old and new text.
func EditPolicy(t testing.TB, text string, edits ...string) string {
	t.Helper()
	return finish(replace(t, text, edits))
}

// replace fails the test if the text lacks an old text: an edit without effect would test
// nothing.
func replace(t testing.TB, text string, edits []string) string {
	t.Helper()
	for i := 0; i < len(edits); i += 2 {
		if !strings.Contains(text, edits[i]) {
			t.Fatalf("the test policy has no %q", edits[i])
		}
		text = strings.ReplaceAll(text, edits[i], edits[i+1])
	}
	return text
}

// finish replaces program names, as [attesttest.Measure] takes them, by digests, and copies
// the authority's table into groups without one.
func finish(text string) string {
	text = regexp.MustCompile(`program = "[^":@]*"`).ReplaceAllStringFunc(text, func(s string) string {
		return fmt.Sprintf("program = %q", wire.Sum([]byte(strings.Split(s, `"`)[1])))
	})
	if copied, err := policyfile.CopyAuthority([]byte(text)); err == nil {
		return string(copied)
	}
	return text // invalid on purpose
}

// SignPolicy returns a policy as a step of the history, signed by the named owners, or by
// all without names.
func (w *World) SignPolicy(text string, owners ...string) policy.Step {
	w.T.Helper()
	if len(owners) == 0 {
		owners = w.Owners
	}
	step := policy.Step{Policy: []byte(text)}
	for _, name := range owners {
		step.Signatures = append(step.Signatures, w.Signature(name, sshsig.ForPolicy, text))
	}
	return step
}

// Signature returns a text's signature by the named key.
func (w *World) Signature(name string, ns sshsig.Namespace, text string) string {
	w.T.Helper()
	armored, err := sshsig.Sign(w.Keys[name], ns, []byte(text))
	NoError(w.T, err)
	return armored
}

// Statement returns a signed step of the history: the statement by which a party approves a
// group under its root. A change, if not nil, edits the statement before the party signs.
func (w *World) Statement(group, party string, root attest.Digest, change func(*policy.Statement)) policy.Step {
	w.T.Helper()
	s, err := w.Policy().GroupByName(group).Statement(w.Keys[party].Digest(), root)
	NoError(w.T, err)
	if change != nil {
		change(&s)
	}
	return policy.Step{Policy: s.Bytes(), Signatures: []string{w.Signature(party, s.Namespace(), string(s.Bytes()))}}
}
