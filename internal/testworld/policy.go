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

// Created is the line with the date of every first policy, for tests that edit it. It lies
// before every clock of a test, real or not.
const Created = "created      = 2026-01-02T03:04:05Z\n"

// head begins every policy.
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

// Key is the key of an owner or of a party, which signs policies and statements and opens
// the shares that are sealed to it.
type Key struct {
	ssh.Signer
	Private ed25519.PrivateKey
}

// NewKey draws a key.
func NewKey() Key {
	var seed [ed25519.SeedSize]byte
	rand.Read(seed[:])
	return KeyOf(seed)
}

// KeyOf is the key of a seed, the same in every run.
func KeyOf(seed [ed25519.SeedSize]byte) Key {
	private := ed25519.NewKeyFromSeed(seed[:])
	return Key{Signer: Must(ssh.NewSignerFromKey(private)), Private: private}
}

// AuthorizedKey is the public key as policies contain it.
func (k Key) AuthorizedKey() string {
	return strings.TrimSpace(string(ssh.MarshalAuthorizedKey(k.PublicKey())))
}

// Digest is the public key as statements name it.
func (k Key) Digest() attest.Digest { return sshsig.KeyDigest(k.PublicKey()) }

// OwnerRows are the owners or parties of these names as a policy lists them.
func (w *World) OwnerRows(names ...string) string {
	var rows []string
	for _, name := range names {
		rows = append(rows, fmt.Sprintf("{ name = %q, ssh = %q }", name, w.Keys[name].AuthorizedKey()))
	}
	return strings.Join(rows, ", ")
}

// PolicyText is a first policy, after edits "old", "new". It names a root, or none as a draft
// does. OWNERS, VENDOR and ROOT are filled in after the edits, which may contain them.
func (w *World) PolicyText(root, tasks string, edits ...string) string {
	w.T.Helper()
	return finish(strings.NewReplacer("OWNERS", w.OwnerRows(w.Owners...), "VENDOR", w.Vendor.Root().String(), "ROOT", root).
		Replace(replace(w.T, head+tasks, edits)))
}

// NextText is the text of the policy that follows p, after edits "old", "new".
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

// EditPolicy is a policy after edits "old", "new".
func EditPolicy(t testing.TB, text string, edits ...string) string {
	t.Helper()
	return finish(replace(t, text, edits))
}

// replace fails where the text has no old text: a test that edits nothing tests nothing.
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

// finish writes programs that are known by the names that [attesttest.Measure] takes as
// digests, and copies the authority's table into groups that name no other.
func finish(text string) string {
	text = regexp.MustCompile(`program = "[^":@]*"`).ReplaceAllStringFunc(text, func(s string) string {
		return fmt.Sprintf("program = %q", wire.Sum([]byte(strings.Split(s, `"`)[1])))
	})
	if copied, err := policyfile.CopyAuthority([]byte(text)); err == nil {
		return string(copied)
	}
	return text // a test spoils it on purpose
}

// SignPolicy is a policy as a step of the history, signed by the owners of these names, or by
// all.
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

// Signature is a signature of a text by the key of a name.
func (w *World) Signature(name string, ns sshsig.Namespace, text string) string {
	w.T.Helper()
	armored, err := sshsig.Sign(w.Keys[name], ns, []byte(text))
	NoError(w.T, err)
	return armored
}

// Statement returns the statement by which a party approves a group under its root, signed,
// as a step of the history. A change, if not nil, edits it before the party signs.
func (w *World) Statement(group, party string, root attest.Digest, change func(*policy.Statement)) policy.Step {
	w.T.Helper()
	s, err := w.Policy().GroupByName(group).Statement(w.Keys[party].Digest(), root)
	NoError(w.T, err)
	if change != nil {
		change(&s)
	}
	return policy.Step{Policy: s.Bytes(), Signatures: []string{w.Signature(party, s.Namespace(), string(s.Bytes()))}}
}
