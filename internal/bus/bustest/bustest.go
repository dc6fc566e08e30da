// Package bustest gives tests of the bus and the manager an authority that
// issues real certificates to units, without a cluster around it. Nothing in it
// verifies anything.
//
// It is for tests only: no package of the product imports it.
package bustest

import (
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/identity"
	"github.com/cohort-tee/cohort/internal/bus"
	"github.com/cohort-tee/cohort/internal/wire"
	"github.com/cohort-tee/cohort/policy"
	"golang.org/x/crypto/ssh"
)

// Tasks of every authority, all in key mode shared: two with a long life, and
// one whose certificates end within 3 seconds.
const (
	Scoring = "scoring"
	Keys    = "keys"
	Short   = "short"
)

// Name is the DNS name of a task.
func Name(task string) string { return task + ".test.example" }

// Authority issues certificates.
type Authority struct {
	Root   *x509.Certificate
	t      testing.TB
	policy policy.Approved
	issuer *identity.Issuer
}

// Unit is what one start of a unit holds.
type Unit struct {
	ID       wire.UnitID
	Cluster  bus.Cluster
	Identity wire.Digest
	Task     string
	Signing  tls.Certificate // of its signing key, for the bus
	Serving  tls.Certificate // the shared leaf
}

// New makes an authority with a root of its own.
func New(t testing.TB) *Authority {
	t.Helper()
	var seed [32]byte
	rand.Read(seed[:])
	secret, err := identity.OpenSecret(seed[:])
	check(t, err)
	keys, err := identity.Derive(secret)
	check(t, err)
	_, private, err := ed25519.GenerateKey(nil)
	check(t, err)
	owner, err := ssh.NewSignerFromKey(private)
	check(t, err)
	text := policyText(keys.Root(), owner)
	signature, err := policy.Sign(owner, policy.ForPolicy, []byte(text))
	check(t, err)
	p, err := policy.Genesis(wire.Sum([]byte(text)), policy.Step{Policy: []byte(text), Signatures: []string{signature}})
	check(t, err)
	issuer, err := keys.Issuer(p)
	check(t, err)
	root, err := x509.ParseCertificate(issuer.AuthorityRoot())
	check(t, err)
	return &Authority{Root: root, t: t, policy: p, issuer: issuer}
}

// Roots is the pool of the authority's root.
func (a *Authority) Roots() *x509.CertPool {
	pool := x509.NewCertPool()
	pool.AddCert(a.Root)
	return pool
}

// Leaf is the authority's own leaf, directly under its root.
func (a *Authority) Leaf() tls.Certificate {
	a.t.Helper()
	leaf, err := a.issuer.Authority(time.Now())
	check(a.t, err)
	return tls.Certificate{Certificate: [][]byte{leaf.DER, a.Root.Raw}, PrivateKey: leaf.Key}
}

// Unit starts a unit of a task.
func (a *Authority) Unit(task string) Unit {
	a.t.Helper()
	now := time.Now()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	check(a.t, err)
	id, err := a.issuer.Identity(task, "1")
	check(a.t, err)
	grant := a.grant(task)
	signing, err := a.issuer.Unit(grant, &key.PublicKey, now)
	check(a.t, err)
	serving, err := a.issuer.Shared(grant, now)
	check(a.t, err)
	leaf, err := x509.ParseCertificate(signing.DER)
	check(a.t, err)
	cross, err := x509.ParseCertificate(id.Cross)
	check(a.t, err)
	return Unit{
		ID: wire.UnitIDOf(leaf.RawSubjectPublicKeyInfo), Cluster: bus.ClusterOf(cross.RawSubjectPublicKeyInfo), Identity: id.ID, Task: task,
		Signing: tls.Certificate{Certificate: [][]byte{signing.DER, id.Cross}, PrivateKey: key},
		Serving: tls.Certificate{Certificate: [][]byte{serving.DER, id.Cross}, PrivateKey: serving.Key},
	}
}

// grant is what policy gives the program of a task.
func (a *Authority) grant(task string) policy.Grant {
	a.t.Helper()
	m := a.policy.Document().Tasks[task].Releases["1"].References[0]
	data := attest.Bind(wire.LabelIssue)
	claims := attest.Claims{Measurement: m, ReportData: data[:], Chip: "chip"}
	result, err := attest.NewVerifier(voucher{claims}).Appraise(attest.Question{
		Evidence: attest.Evidence{Platform: attest.Soft}, ReportData: data, Rules: a.policy.Document().Platforms, At: time.Now(),
	})
	check(a.t, err)
	grant, err := a.policy.Admit(task, result)
	check(a.t, err)
	return grant
}

// voucher is an appraiser that says yes to one measurement.
type voucher struct{ attest.Claims }

func (voucher) Platform() attest.Platform { return attest.Soft }

func (v voucher) Appraise([]byte, attest.Endorsements, attest.Rules, time.Time) (attest.Claims, error) {
	return v.Claims, nil
}

func policyText(root wire.Digest, owner ssh.Signer) string {
	var b strings.Builder
	fmt.Fprintf(&b, "schema = %q\ntrust_domain = \"test.example\"\nsequence = 1\nprevious = \"\"\n", policy.Schema)
	fmt.Fprintf(&b, "created = %s\ndevelopment = true\n", time.Now().Add(-time.Hour).UTC().Format(time.RFC3339))
	fmt.Fprintf(&b, "[owners]\nquorum = 1\napprove_within = \"1h\"\ndelay = \"0s\"\nkeys = [ { name = \"ana\", ssh = %q } ]\n",
		strings.TrimSpace(string(ssh.MarshalAuthorizedKey(owner.PublicKey()))))
	fmt.Fprintf(&b, "[platform.soft]\nroots = [%q]\n[authority]\nroot = %q\n", wire.Sum([]byte("vendor")), root)
	fmt.Fprintf(&b, "reference = [ { platform = \"soft\", program = %q } ]\n", wire.Sum([]byte("authority")))
	for task, life := range map[string]string{Scoring: "1h", Keys: "1h", Short: "3s"} {
		fmt.Fprintf(&b, "[task.%s]\nkey_mode = \"shared\"\nlife = %q\nnames = [%q]\n", task, life, Name(task))
		fmt.Fprintf(&b, "[task.%s.release.\"1\"]\nreference = [ { platform = \"soft\", program = %q } ]\n", task, wire.Sum([]byte(task)))
	}
	return b.String()
}

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
