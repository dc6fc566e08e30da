package systest

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/hpke"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/attest/attesttest"
	"github.com/cohort-tee/cohort/internal/api"
	"github.com/cohort-tee/cohort/internal/loopback"
	"github.com/cohort-tee/cohort/internal/testworld"
	"github.com/cohort-tee/cohort/internal/wire"
	"github.com/cohort-tee/cohort/policy"
	"github.com/cohort-tee/cohort/policy/policyfile"
	"github.com/cohort-tee/cohort/policy/sshsig"
	"github.com/cohort-tee/cohort/unit"
)

// The acceptance cases of docs/threat-cases.md that need a whole cluster. Cases that one
// package shows by itself are tested there.

// draft returns a request of the program "scoring 1" without its evidence, and the key that
// opens the response.
func draft(t *testing.T, c *Cluster, a *api.Authority) (api.CertificateRequest, hpke.PrivateKey) {
	t.Helper()
	challenge, err := a.Challenge(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	key := testworld.Must(hpke.MLKEM768X25519().GenerateKey())
	return api.CertificateRequest{
		Task: "scoring", Nonce: challenge.Nonce, HPKEKey: key.PublicKey().Bytes(),
		SigningKey: testworld.Must(x509.MarshalPKIXPublicKey(newKey(t).Public())), Root: c.Root,
	}, key
}

func newKey(t *testing.T) *ecdsa.PrivateKey {
	t.Helper()
	return testworld.Must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
}

// attested returns a request with a device's evidence over all of it.
func attested(t *testing.T, r api.CertificateRequest, device attest.Attester) api.CertificateRequest {
	t.Helper()
	evidence := testworld.Must(device.Attest(t.Context(), attest.BindReportData(wire.LabelIssue, r.Bound()...)))
	r.Evidence = testworld.Must(json.Marshal(evidence))
	return r
}

// apply returns a valid request, and the key that opens the response.
func apply(t *testing.T, c *Cluster, a *api.Authority, device attest.Attester) (api.CertificateRequest, hpke.PrivateKey) {
	t.Helper()
	r, key := draft(t, c, a)
	return attested(t, r, device), key
}

// scorer returns an honest device of the program "scoring 1".
func scorer(c *Cluster) *attesttest.Device { return c.Chip.Attester(attesttest.Measure("scoring 1")) }

// logged counts the log entries of a kind.
func logged(t *testing.T, a *api.Authority, kind string) (n int) {
	t.Helper()
	page, err := a.IssuanceLog(t.Context(), api.LogQuery{})
	if err != nil {
		t.Fatal(err)
	}
	for _, entry := range page.Entries {
		if entry.Kind == kind {
			n++
		}
	}
	return n
}

// TestRequestTwice is case 5: a request is sent a second time, to the same authority, to
// another authority on the same store, and to a restarted authority.
func TestRequestTwice(t *testing.T) {
	c := New(t, scoring(time.Hour))
	other := *c
	other.addr = loopback.FreeAddress(t)
	other.StartAuthority()
	t.Cleanup(other.StopAuthority)

	a := authorityOf(t, c)
	r, _ := apply(t, c, a, scorer(c))
	if _, err := a.Certify(t.Context(), r); err != nil {
		t.Fatal(err)
	}
	_, err := a.Certify(t.Context(), r)
	testworld.Refused(t, err, wire.NonceUsed)
	_, err = authorityOf(t, &other).Certify(t.Context(), r)
	testworld.Refused(t, err, wire.RingElsewhere) // it issues nothing while the first one does
	c.StopAuthority()
	_, err = authorityOf(t, &other).Certify(t.Context(), r)
	testworld.Refused(t, err, wire.NonceUsed)
	other.StopAuthority()
	c.StartAuthority()
	a = authorityOf(t, c)
	_, err = a.Certify(t.Context(), r)
	testworld.Refused(t, err, wire.NonceUsed)

	if issued, refused := logged(t, a, "issued"), logged(t, a, "refused"); issued != 1 || refused != 3 {
		t.Errorf("got %d issued and %d refused in the log, want 1 and 3", issued, refused)
	}
	again, _ := apply(t, c, a, scorer(c))
	if _, err := a.Certify(t.Context(), again); err != nil {
		t.Errorf("a new request after all these: %v", err)
	}
}

// TestHPKEKeySwapped is case 6 where TLS does not protect: the attacker reads all traffic
// between a unit and the authority, and replaces the HPKE key with hers.
func TestHPKEKeySwapped(t *testing.T) {
	c := New(t, scoring(time.Hour))
	hers := testworld.Must(hpke.MLKEM768X25519().GenerateKey())
	between := newRelay(t, "127.0.0.1:0", newMallory(t, c).authority(), c.addr)
	between.set(func(path string, body []byte) []byte {
		var r api.CertificateRequest
		if path != api.PathCertificates || json.Unmarshal(body, &r) != nil {
			return body
		}
		r.HPKEKey = hers.PublicKey().Bytes()
		return testworld.Must(json.Marshal(r))
	})
	a := testworld.Must(api.NewAuthority(between.url(), insecure()))
	r, _ := apply(t, c, a, scorer(c))
	_, err := a.Certify(t.Context(), r)
	testworld.Refused(t, err, wire.BadNonce)
	if strings.Contains(between.carried(), "ciphertext") {
		t.Error("a ciphertext went to her")
	}
	if n := logged(t, a, "issued"); n != 0 {
		t.Errorf("got %d issued in the log, want none", n)
	}

	// The nonce of that request is spent. The next request is forwarded unchanged: its
	// response opens with the unit's key and for this request alone.
	between.set(nil)
	_, err = a.Certify(t.Context(), r)
	testworld.Refused(t, err, wire.NonceUsed)
	r, key := apply(t, c, a, scorer(c))
	sealed, err := a.Certify(t.Context(), r)
	if err != nil {
		t.Fatal(err)
	}
	other := r
	other.Nonce = slices.Clone(r.Nonce)
	other.Nonce[0] ^= 1
	for _, opening := range []struct {
		name string
		key  hpke.PrivateKey
		as   api.CertificateRequest
		want bool
	}{{"its own key", key, r, true}, {"her key", hers, r, false}, {"its own key, as the answer to another", key, other, false}} {
		if got := opens(sealed, opening.key, opening.as); got != opening.want {
			t.Errorf("%s: opens is %v, want %v", opening.name, got, opening.want)
		}
	}
}

// opens reports whether a key opens a report as the response to a request.
func opens(sealed api.SealedReport, key hpke.PrivateKey, as api.CertificateRequest) bool {
	recipient, err := hpke.NewRecipient(sealed.Encapsulated, key, hpke.HKDFSHA256(), hpke.AES256GCM(), api.SealInfo(as, sealed.GroupRoot))
	if err != nil {
		return false
	}
	_, err = recipient.Open(nil, sealed.Ciphertext)
	return err == nil
}

// TestFakeAuthority is case 9: an authority with a root of its own presents the genuine
// history. A new unit does not enrol and sends it nothing. An enrolled unit keeps its
// certificate until it ends, and then serves nothing and reports why.
func TestFakeAuthority(t *testing.T) {
	c := New(t, scoring(4*time.Second))
	enrolled := c.Start("scoring", "scoring 1", hello("ok"))
	cl := c.Client("scoring", enrolled.Address)
	other := *c // the genuine authority moves; hers takes its address
	c.StopAuthority()
	other.addr = loopback.FreeAddress(t)
	other.StartAuthority()
	t.Cleanup(other.StopAuthority)
	fake := newRelay(t, c.addr, newMallory(t, c).authority(), other.addr)

	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	u, err := unit.Start(ctx, c.UnitConfig("scoring", "scoring 1"))
	testworld.Refused(t, err, wire.WrongRoot)
	if u != nil {
		t.Error("got a unit beside the error")
	}
	testworld.Within(t, 10*time.Second, "the end of the certificate", func() bool { return enrolled.Unit.Ready() != nil })
	testworld.Refused(t, enrolled.Unit.Ready(), wire.CertExpired)
	if got := enrolled.Unit.Stats().LastFailure; got != wire.WrongRoot {
		t.Errorf("got last failure %q, want %q", got, wire.WrongRoot)
	}
	page := httptest.NewRecorder()
	enrolled.Unit.Health().ServeHTTP(page, httptest.NewRequest(http.MethodGet, "/readyz", nil))
	if body := page.Body.String(); page.Code != http.StatusServiceUnavailable || !strings.Contains(body, string(wire.CertExpired)) {
		t.Errorf("got readiness %d %s, want 503 with the reason", page.Code, body)
	}
	if answer, err := get(t, cl, "https://"+ServerName("scoring")); err == nil {
		t.Errorf("got %q of a unit that is not ready", answer)
	}
	if saw := fake.saw("GET " + api.PathHistory); len(saw) > 0 {
		t.Errorf("the fake was sent %q, want nothing but questions for the history", saw)
	}
}

// TestOwnersTogether is case 23 over the HTTP API, with two of three owners.
func TestOwnersTogether(t *testing.T) {
	c := New(t, scoring(time.Hour))
	a := authorityOf(t, c)
	owners := map[string]testworld.Key{"ana": c.owner, "ben": testworld.NewKey(), "eva": testworld.NewKey()}
	keys := fmt.Sprintf("{ name = \"ben\", ssh = %q }, { name = \"eva\", ssh = %q } ]", owners["ben"].AuthorizedKey(), owners["eva"].AuthorizedKey())
	push(t, c, c.NextPolicy("quorum = 1", "quorum = 2", "approve_within = \"1h\"", "approve_within = \"2s\"", "} ]\n[platform", "}, "+keys+"\n[platform"))
	sign := func(digest wire.Digest, name string, text []byte) (api.Proposal, error) {
		return a.AddSignature(t.Context(), digest, api.SignatureRequest{Signature: testworld.Must(sshsig.Sign(owners[name], sshsig.ForPolicy, text))})
	}
	propose := func(edit string) (wire.Digest, []byte) {
		t.Helper()
		step := c.NextPolicy("lifetime = \"1h0m0s\"", edit)
		c.Steps = c.Steps[:len(c.Steps)-1] // it is not in force
		p, err := a.Propose(t.Context(), api.ProposeRequest{Policy: step.Policy, Signatures: step.Signatures})
		if err != nil {
			t.Fatal(err)
		}
		if p.State != string(policy.Pending) || p.Quorum != 2 || !slices.Equal(p.Missing, []string{"ben", "eva"}) {
			t.Errorf("got %s, %v of %d missing, want pending without ben and eva", p.State, p.Missing, p.Quorum)
		}
		return p.Digest, step.Policy
	}

	digest, text := propose("lifetime = \"59m0s\"")
	_, err := sign(digest, "ana", text)
	testworld.Refused(t, err, wire.NoQuorum)
	_, err = sign(digest, "ben", append(text, '\n'))
	testworld.Refused(t, err, wire.BadSignature)
	if p := testworld.Must(a.Policy(t.Context())); p.Sequence != 2 {
		t.Errorf("got policy %d in force with one signature, want 2", p.Sequence)
	}
	time.Sleep(2 * time.Second) // the authority measures approve_within by its own clock
	_, err = sign(digest, "ben", text)
	testworld.Refused(t, err, wire.ProposalOver)

	digest, text = propose("lifetime = \"58m0s\"")
	if p, err := sign(digest, "eva", text); err != nil || p.State != string(policy.Adopted) {
		t.Errorf("two of three: got %v, %v, want it adopted", p.State, err)
	}
	if p := testworld.Must(a.Policy(t.Context())); p.Sequence != 3 || p.Digest != digest {
		t.Errorf("got policy %d in force, want 3", p.Sequence)
	}
}

// TestPeersNobodyNamed is case 10 for outgoing calls: a unit that connects to a server
// which the policy does not name closes the connection before it sends any byte of the
// request.
func TestPeersNobodyNamed(t *testing.T) {
	tasks := []Task{
		{Name: "a", KeyMode: policyfile.Shared, Life: time.Hour, Calls: []string{"b"}, Programs: []string{"program a"}},
		{Name: "b", KeyMode: policyfile.Shared, Life: time.Hour, Programs: []string{"program b"}},
	}
	c := New(t, tasks...)
	a, b := c.Start("a", "program a", hello("a")), c.Start("b", "program b", hello("b"))
	between := newRelay(t, "127.0.0.1:0", newMallory(t, c).shared(t, "b", "program b"), b.Address)
	rt := &http.Transport{TLSClientConfig: testworld.Must(a.Unit.ClientTLS("b"))}
	defer rt.CloseIdleConnections()
	_, err := get(t, rt, between.url())
	testworld.Refused(t, err, wire.WrongGenesis)
	if saw := between.saw(); len(saw) > 0 {
		t.Errorf("she read %q, want nothing", saw)
	}
}

// insecure returns a TLS configuration that authenticates no server.
func insecure() *tls.Config {
	return &tls.Config{MinVersion: tls.VersionTLS13, InsecureSkipVerify: true}
}
