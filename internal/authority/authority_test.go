package authority

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/x509"
	"testing"

	"github.com/cohort-tee/cohort/identity"
	"github.com/cohort-tee/cohort/internal/api"
	"github.com/cohort-tee/cohort/internal/testworld"
	"github.com/cohort-tee/cohort/internal/wire"
)

// TestEnrolment enrols units over TLS in both key modes and checks each part of their reports.
func TestEnrolment(t *testing.T) {
	w := newWorld(t)
	a := w.open()
	client, _ := w.serve(a)

	one, err := w.scoring().enrol(client)
	if err != nil {
		t.Fatal(err)
	}
	two, err := w.scoring().enrol(client)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(one.Leaf, two.Leaf) || !bytes.Equal(one.LeafKey, two.LeafKey) {
		t.Error("two units of one identity did not receive the same pair")
	}
	if bytes.Equal(one.Unit, two.Unit) {
		t.Error("two units received the same unit certificate")
	}
	if got, want := one.Env["LANG"], "C"; got != want {
		t.Errorf("got LANG %q, want %q", got, want)
	}
	if got := len(one.Calls["keys"]); got != 1 {
		t.Errorf("got %d roots of task keys, want 1", got)
	}
	checkLeaf(t, w, a, one, identity.KindShared)

	applicant := w.applicant("keys")
	three, err := applicant.enrol(client)
	if err != nil {
		t.Fatal(err)
	}
	if len(three.LeafKey) > 0 {
		t.Error("got a leaf key in key mode unit, want none")
	}
	leaf := testworld.Must(x509.ParseCertificate(three.Leaf))
	if !applicant.tls.PublicKey.Equal(leaf.PublicKey.(*ecdsa.PublicKey)) {
		t.Error("the leaf holds another key than the CSR's")
	}
	checkLeaf(t, w, a, three, identity.KindUnit)
	if got, want := issued(t, a), 3; got != want {
		t.Errorf("got %d recorded issuances, want %d", got, want)
	}
}

// checkLeaf checks the chain that a unit serves, as a client does.
func checkLeaf(t *testing.T, w *world, a *Authority, r api.Report, kind identity.Kind) {
	t.Helper()
	chain := []*x509.Certificate{testworld.Must(x509.ParseCertificate(r.Leaf)), testworld.Must(x509.ParseCertificate(r.Cross))}
	at, _ := w.clock.Read()
	_, err := identity.Check(chain, testworld.Must(x509.ParseCertificate(r.Authority)), identity.Expect{
		Policy: a.inForce().approved, Kinds: []identity.Kind{kind}, Use: identity.UseTLS, IDs: []wire.Digest{r.Identity}, At: at,
	})
	if err != nil {
		t.Errorf("checking the leaf: %v", err)
	}
}
