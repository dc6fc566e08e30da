package authority

import (
	"bytes"
	"context"
	"crypto/hpke"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/cohort-tee/cohort/attest/attesttest"
	"github.com/cohort-tee/cohort/internal/api"
	"github.com/cohort-tee/cohort/internal/authority/records"
	"github.com/cohort-tee/cohort/internal/authority/store"
	"github.com/cohort-tee/cohort/internal/testworld"
	"github.com/cohort-tee/cohort/internal/wire"
)

// TestRefusals changes the least thing in a good request. Each change must give exactly one
// reason, no issuance, and a refusal in the log. None may cause a request to the vendor, though
// no documents are cached.
func TestRefusals(t *testing.T) {
	w := newWorld(t)
	config, desk := w.config("authority"), &vendorDesk{absent: true}
	config.Endorser = desk.open
	a, err := Open(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	client, _ := w.serve(a)
	desk.asked = nil
	type change = func(*api.CertificateRequest)
	rows := []struct {
		name   string
		want   wire.Reason
		who    func() *applicant
		before change // applied before the evidence is made
		after  change // applied after the evidence is made
	}{
		{"another task", wire.NotFound, w.scoring, func(r *api.CertificateRequest) { r.Task = "nothing" }, nil},
		{"a task of other code", wire.NotMeasured, w.scoring, func(r *api.CertificateRequest) {
			r.Task = "keys"
			r.CSR = testworld.Must(x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, newKey(t)))
		}, nil},
		{"other code", wire.NotMeasured, func() *applicant { return w.applicant("scoring") }, nil, nil},
		{"another root", wire.WrongRoot, w.scoring, func(r *api.CertificateRequest) { r.Root[0] ^= 1 }, nil},
		{"a newer head", wire.Behind, w.scoring, func(r *api.CertificateRequest) { r.Head[0] = 1 }, nil},
		{"no nonce", wire.NonceUsed, w.scoring, func(r *api.CertificateRequest) { r.Nonce = nil }, nil},
		{"a nonce of somebody else", wire.NonceUsed, w.scoring, func(r *api.CertificateRequest) { r.Nonce[20] ^= 1 }, nil},
		{"a longer nonce", wire.NonceUsed, w.scoring, func(r *api.CertificateRequest) { r.Nonce = append(r.Nonce, 0) }, nil},
		{"a short HPKE key", wire.BadRequest, w.scoring, func(r *api.CertificateRequest) { r.HPKEKey = r.HPKEKey[1:] }, nil},
		{"a broken signing key", wire.BadRequest, w.scoring, func(r *api.CertificateRequest) { r.SigningKey = r.SigningKey[1:] }, nil},
		{"a signing key with more behind", wire.BadRequest, w.scoring, func(r *api.CertificateRequest) { r.SigningKey = append(r.SigningKey, 0) }, nil},
		{"a CSR in key mode shared", wire.BadCSR, w.scoring, func(r *api.CertificateRequest) { r.CSR = []byte{1} }, nil},
		{"no CSR in key mode unit", wire.BadCSR, func() *applicant { return w.applicant("keys") }, func(r *api.CertificateRequest) { r.CSR = nil }, nil},
		{"a CSR with a name", wire.BadCSR, func() *applicant { return w.applicant("keys") }, csr(t, &x509.CertificateRequest{Subject: pkix.Name{CommonName: "keys"}}), nil},
		{"a CSR with a DNS name", wire.BadCSR, func() *applicant { return w.applicant("keys") }, csr(t, &x509.CertificateRequest{DNSNames: []string{"keys.clinic.example"}}), nil},
		{"HPKE key swapped", wire.BadNonce, w.scoring, nil, func(r *api.CertificateRequest) {
			r.HPKEKey = testworld.Must(hpke.MLKEM768X25519().GenerateKey()).PublicKey().Bytes()
		}},
		{"signing key swapped", wire.BadNonce, w.scoring, nil, func(r *api.CertificateRequest) {
			r.SigningKey = testworld.Must(x509.MarshalPKIXPublicKey(&newKey(t).PublicKey))
		}},
		{"CSR swapped", wire.BadNonce, func() *applicant { return w.applicant("keys") }, nil, csr(t, &x509.CertificateRequest{})},
		{"nonce swapped", wire.BadNonce, w.scoring, nil, func(r *api.CertificateRequest) { r.Nonce = testworld.Must(a.challenge(api.ChallengeRequest{})).Nonce }},
		{"head swapped", wire.BadNonce, w.scoring, nil, func(r *api.CertificateRequest) { r.Head = a.inForce().approved.PolicyHead() }},
		{"evidence that is no wrapper", wire.Malformed, w.scoring, nil, func(r *api.CertificateRequest) { r.Evidence = json.RawMessage(`{}`) }},
		{"no evidence", wire.Malformed, w.scoring, nil, func(r *api.CertificateRequest) { r.Evidence = nil }},
		{"an unknown platform", wire.NoPlatform, w.scoring, nil, func(r *api.CertificateRequest) {
			r.Evidence = bytes.Replace(r.Evidence, []byte("soft"), []byte("hard"), 1)
		}},
		{"a platform without rules", wire.NoPlatform, w.scoring, nil, func(r *api.CertificateRequest) {
			r.Evidence = bytes.Replace(r.Evidence, []byte("soft"), []byte("snp"), 1)
		}},
		{"truncated evidence", wire.Malformed, truncated(w), nil, nil},
		{"debug", wire.Debug, debugged(w), nil, nil},
		{"a vendor nobody knows", wire.UnknownRoot, stranger(w), nil, nil},
	}
	for _, row := range rows {
		t.Run(row.name, func(t *testing.T) {
			challenge := testworld.Must(client.Challenge(t.Context()))
			r := row.who().request(challenge.Nonce, row.before)
			if row.after != nil {
				row.after(&r)
			}
			response, err := client.Certify(t.Context(), r)
			testworld.Refused(t, err, row.want)
			if len(response.Ciphertext) > 0 {
				t.Error("got a ciphertext with a refusal")
			}
			page := testworld.Must(a.readLogPage(t.Context(), store.Query{Limit: 1}))
			if got := page.Entries[0]; got.Kind != records.KindRefused || got.Reason != row.want {
				t.Errorf("got log entry %+v, want a refusal with reason %q", got, row.want)
			}
			if desk.asked != nil || desk.proved != nil {
				t.Errorf("the vendor was asked about %v, and told of %v", desk.asked, desk.proved)
			}
		})
	}
	if got := issued(t, a); got != 0 {
		t.Errorf("got %d issuances, want 0", got)
	}
	if _, err := w.scoring().enrol(client); err != nil {
		t.Errorf("a good request after all these: %v", err)
	}
	if len(desk.asked) != 1 || len(desk.proved) != 1 || desk.proved[0] != desk.from[0] || !strings.HasPrefix(desk.from[0], "127.0.0.1:") {
		t.Errorf("after a good request: asked about %v, for %q, told of %q", desk.asked, desk.from, desk.proved)
	}
}

// TestChallengeServesOnce: a challenge serves one request, whether or not that succeeds. Fifty
// requests with one challenge cause no request to the vendor, and one appraisal.
func TestChallengeServesOnce(t *testing.T) {
	w := newWorld(t)
	config, desk := w.config("authority"), &vendorDesk{absent: true}
	config.Endorser = desk.open
	a, err := Open(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	desk.asked = nil
	good := w.scoring().request(testworld.Must(a.challenge(api.ChallengeRequest{})).Nonce, nil)
	broken := good
	broken.Evidence = bytes.Clone(good.Evidence)
	broken.Evidence[len(broken.Evidence)-9] ^= 1
	for i := range 50 {
		_, err := a.certify(t.Context(), broken, "192.0.2.1:1")
		if first := i == 0; first == errors.Is(err, wire.NonceUsed) || err == nil {
			t.Fatalf("request %d: got %v", i, err)
		}
	}
	_, err = a.certify(t.Context(), good, "192.0.2.1:1")
	testworld.Refused(t, err, wire.NonceUsed)
	if desk.asked != nil {
		t.Errorf("the vendor was asked about %v", desk.asked)
	}
	desk.err = wire.Refuse(wire.Unavailable, "vendor", "nothing", "an answer")
	late := w.scoring().request(testworld.Must(a.challenge(api.ChallengeRequest{})).Nonce, nil)
	_, err = a.certify(t.Context(), late, "192.0.2.1:1")
	testworld.Refused(t, err, wire.Unavailable)
	_, err = a.certify(t.Context(), late, "192.0.2.1:1")
	testworld.Refused(t, err, wire.NonceUsed) // a fault on the authority's side does not free the challenge
	if len(desk.asked) != 1 {
		t.Errorf("asked %d times, want once", len(desk.asked))
	}
}

func csr(t *testing.T, template *x509.CertificateRequest) func(*api.CertificateRequest) {
	return func(r *api.CertificateRequest) {
		r.CSR = testworld.Must(x509.CreateCertificateRequest(rand.Reader, template, newKey(t)))
	}
}

func truncated(w *world) func() *applicant {
	return func() *applicant { p := w.scoring(); p.device.Faults.Truncated = true; return p }
}

func debugged(w *world) func() *applicant {
	return func() *applicant { p := w.scoring(); p.device.Faults.Debug = true; return p }
}

func stranger(w *world) func() *applicant {
	return func() *applicant { p := w.scoring(); p.device.Faults.OtherRoot = true; return p }
}

// TestReplay sends one request again: to the same authority, to another over the same store, and
// to one that started later. All refuse it with "nonce-used".
func TestReplay(t *testing.T) {
	w := newWorld(t)
	first, second := w.open(), w.open()
	p := w.scoring()
	r := p.request(testworld.Must(first.challenge(api.ChallengeRequest{})).Nonce, nil)
	if _, err := first.certify(t.Context(), r, ""); err != nil {
		t.Fatal(err)
	}
	for name, a := range map[string]*Authority{"same": first, "another": second, "restarted": w.open()} {
		_, err := direct{a}.Certify(t.Context(), r)
		t.Run(name, func(t *testing.T) { testworld.Refused(t, err, wire.NonceUsed) })
	}
	if got := issued(t, first); got != 1 {
		t.Errorf("got %d issuances, want 1", got)
	}
	late := p.request(testworld.Must(first.challenge(api.ChallengeRequest{})).Nonce, nil)
	w.clock.Advance(wire.NonceLifetime + time.Second)
	_, err := direct{first}.Certify(t.Context(), late)
	testworld.Refused(t, err, wire.NonceUsed)
}

// TestSecondAuthority: an authority accepts a challenge that another authority of the same root
// made.
func TestSecondAuthority(t *testing.T) {
	w := newWorld(t)
	first, second := w.open(), w.open()
	r := w.scoring().request(testworld.Must(first.challenge(api.ChallengeRequest{})).Nonce, nil)
	if _, err := second.certify(t.Context(), r, ""); err != nil {
		t.Error(err)
	}
}

// TestRepeatedCertificate: a unit enrols twice within one window with one signing key. The
// certificates are equal, so they may have the same serial number.
func TestRepeatedCertificate(t *testing.T) {
	w := newWorld(t)
	a, p := w.open(), w.scoring()
	one, err := p.enrol(direct{a})
	if err != nil {
		t.Fatal(err)
	}
	two, err := p.enrol(direct{a})
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(one.Unit, two.Unit) {
		t.Error("one key, window and policy gave two certificates")
	}
}

// TestWindows: the shared leaf stays the same until its window ends, and then changes.
func TestWindows(t *testing.T) {
	w := newWorld(t)
	a := w.open()
	one := testworld.Must(w.scoring().enrol(direct{a}))
	w.clock.Advance(one.RenewAfter.Sub(noon) - time.Second)
	same := testworld.Must(w.scoring().enrol(direct{a}))
	w.clock.Advance(time.Second)
	next := testworld.Must(w.scoring().enrol(direct{a}))
	if !bytes.Equal(one.Leaf, same.Leaf) {
		t.Error("the leaf changed inside its window")
	}
	if bytes.Equal(one.Leaf, next.Leaf) {
		t.Error("the leaf did not change with the window")
	}
}

// TestDevelopment: a policy that names the soft TEE without "development = true" is refused.
func TestDevelopment(t *testing.T) {
	w := newWorld(t)
	w.genesis = w.SignPolicy(w.text("development  = true\n", ""), "ana", "ben")
	_, err := Open(t.Context(), w.config("authority"))
	testworld.Refused(t, err, wire.BadPolicy)
}

// TestNothingWithoutRecord locks the store: no report is sent. When the store works again, the
// authority issues again.
func TestNothingWithoutRecord(t *testing.T) {
	w := newWorld(t)
	config := w.config("authority")
	a, err := Open(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	client, _ := w.serve(a)
	p := w.scoring()
	r := p.request(testworld.Must(client.Challenge(t.Context())).Nonce, nil)
	if err := a.rings.EnsureLease(t.Context()); err != nil {
		t.Fatal(err)
	}
	restore := lockStore(t, w.dsn)
	response, err := client.Certify(t.Context(), r)
	testworld.Refused(t, err, wire.StoreFailed)
	if len(response.Ciphertext) > 0 {
		t.Error("got a report without a record")
	}
	if strings.Contains(err.Error(), "locked") {
		t.Errorf("got %q, which tells strangers about the disk", err)
	}
	restore()
	_, err = client.Certify(t.Context(), r)
	testworld.Refused(t, err, wire.NonceUsed) // the failed request spent its challenge
	if _, err := p.enrol(client); err != nil {
		t.Errorf("another request once the store is back: %v", err)
	}
	if got := issued(t, a); got != 1 {
		t.Errorf("got %d issuances, want 1", got)
	}
}

// TestGoneClient: the client disconnects before the store responds. The request ends with
// context.Canceled.
func TestGoneClient(t *testing.T) {
	w := newWorld(t)
	a := w.open()
	r := w.scoring().request(testworld.Must(a.challenge(api.ChallengeRequest{})).Nonce, nil)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := a.certify(ctx, r, ""); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want %v", err, context.Canceled)
	}
}

// TestAttesterGone: the authority's own TEE stops responding. Trust requests fail, but units can
// still enrol.
func TestAttesterGone(t *testing.T) {
	w := newWorld(t)
	config := w.config("authority")
	a, err := Open(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	config.Attester.(*attesttest.Device).Faults.Error = wire.Refuse(wire.NotThisDevice, "TEE", "silence", "an answer")
	client, _ := w.serve(a)
	_, err = client.Trust(t.Context(), api.TrustQuery{Task: "scoring"})
	testworld.Refused(t, err, wire.NotThisDevice)
	if _, err := w.scoring().enrol(client); err != nil {
		t.Error(err)
	}
}

// BenchmarkCertify issues to further replicas of a known identity, without HTTP.
func BenchmarkCertify(b *testing.B) {
	w := newWorld(b)
	a := w.open()
	p := w.scoring()
	requests := make([]api.CertificateRequest, b.N)
	for i := range requests {
		requests[i] = p.request(testworld.Must(a.challenge(api.ChallengeRequest{})).Nonce, nil)
	}
	b.ResetTimer()
	for _, r := range requests {
		if _, err := a.certify(b.Context(), r, ""); err != nil {
			b.Fatal(err)
		}
	}
}
