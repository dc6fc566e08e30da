package bench

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/hpke"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"testing"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/identity"
	"github.com/cohort-tee/cohort/internal/api"
	"github.com/cohort-tee/cohort/internal/channel"
	"github.com/cohort-tee/cohort/internal/testworld"
	"github.com/cohort-tee/cohort/internal/wire"
)

// estate is an authority with the pins and device that its units need.
type estate struct {
	url           string
	authority     *api.Authority
	genesis, root wire.Digest
	attester      func(p attest.Platform, task string) attest.Attester
}

// applicant is a unit that requests a certificate report.
type applicant struct {
	api.CertificateRequest
	signing *ecdsa.PrivateKey
	hpke    hpke.PrivateKey
}

// challenges requests the nonces of n requests.
func (e estate) challenges(ctx context.Context, n int) [][]byte {
	var nonces [][]byte
	for range n {
		nonces = append(nonces, testworld.Must(e.authority.Challenge(ctx)).Nonce)
	}
	return nonces
}

// applicant creates a valid request. The task in key mode unit has the name "own".
func (e estate) applicant(ctx context.Context, p attest.Platform, task string, nonce []byte) applicant {
	a := applicant{
		signing: testworld.Must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader)),
		hpke:    testworld.Must(hpke.MLKEM768X25519().GenerateKey()),
	}
	a.CertificateRequest = api.CertificateRequest{
		Task: task, Nonce: nonce, Root: e.root, HPKEKey: a.hpke.PublicKey().Bytes(),
		SigningKey: testworld.Must(x509.MarshalPKIXPublicKey(&a.signing.PublicKey)),
	}
	if task == "own" {
		a.CSR = newCSR()
	}
	data := attest.BindReportData(wire.LabelIssue, a.Bound()...)
	a.Evidence = testworld.Must(json.Marshal(testworld.Must(e.attester(p, task).Attest(ctx, data))))
	return a
}

func newCSR() []byte {
	key := testworld.Must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
	return testworld.Must(x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key))
}

// report requests the report and opens it.
func (a applicant) report(ctx context.Context, e estate) (r api.Report) {
	sealed := testworld.Must(e.authority.Certify(ctx, a.CertificateRequest))
	recipient := testworld.Must(hpke.NewRecipient(sealed.Encapsulated, a.hpke, hpke.HKDFSHA256(), hpke.AES256GCM(), api.SealInfo(a.CertificateRequest, sealed.GroupRoot)))
	var signed api.SignedReport
	if err := json.Unmarshal(testworld.Must(recipient.Open(nil, sealed.Ciphertext)), &signed); err != nil {
		panic(err)
	}
	if err := json.Unmarshal(signed.Report, &r); err != nil {
		panic(err)
	}
	return r
}

// host enrols a unit of task scoring, and returns its side of the channel.
func (e estate) host(t testing.TB) *channel.Host {
	t.Helper()
	a := e.applicant(t.Context(), attest.SNP, "scoring", e.challenges(t.Context(), 1)[0])
	r := a.report(t.Context(), e)
	h := testworld.Must(channel.NewHost(a.signing, channel.Limits{}))
	err := h.Update(channel.UnitCredentials{
		Task: r.Task, Identity: r.Identity, Genesis: e.genesis, Root: e.root, Head: r.Head, Unit: r.Unit, Cross: r.Cross,
		NotAfter: r.NotAfter, Ring: identity.Ring{Strict: ringKeys(r.Rings.Strict), Follow: ringKeys(r.Rings.Follow)},
	})
	if err != nil {
		t.Fatal(err)
	}
	return h
}

func ringKeys(from api.RingKeys) identity.RingKeys {
	key := func(k *api.RingKey) *identity.RingKey { return testworld.Must(identity.OpenRingKey(k.Key, k.End)) }
	return identity.RingKeys{Current: key(from.Current), Next: key(from.Next)}
}
