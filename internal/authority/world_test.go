package authority

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/hpke"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/attest/attesttest"
	"github.com/cohort-tee/cohort/identity"
	"github.com/cohort-tee/cohort/internal/api"
	"github.com/cohort-tee/cohort/internal/authority/admission"
	"github.com/cohort-tee/cohort/internal/authority/records"
	"github.com/cohort-tee/cohort/internal/authority/sealed"
	"github.com/cohort-tee/cohort/internal/authority/store"
	"github.com/cohort-tee/cohort/internal/authority/store/testdb"
	"github.com/cohort-tee/cohort/internal/founding"
	"github.com/cohort-tee/cohort/internal/testworld"
	"github.com/cohort-tee/cohort/internal/wire"
	"github.com/cohort-tee/cohort/policy"
	"github.com/cohort-tee/cohort/policy/policydraft"
	"github.com/cohort-tee/cohort/policy/sshsig"
)

// noon is the time at which every test starts.
var noon = testworld.Noon

const tasks = `
[task.keys]
key_mode = "unit"
names = ["keys.clinic.example"]
lifetime = "30m"
[task.keys.release."1.4"]
reference = [ { platform = "soft", program = "keys" } ]

[task.scoring]
key_mode = "shared"
names = ["scoring.clinic.example"]
lifetime = "1h"
calls = ["keys"]
[task.scoring.release."2026.11"]
env = { LANG = "C" }
reference = [ { platform = "soft", program = "scoring", args = ["--model", "m.json"] } ]
`

// wait advances the clock of a running authority by d, with a Sync in each step.
func (w *world) wait(a *Authority, d time.Duration) {
	w.T.Helper()
	for step := 50 * time.Second; d > 0; d -= step {
		w.clock.Advance(min(step, d))
		if err := a.history.Sync(w.T.Context()); err != nil {
			w.T.Fatal(err)
		}
	}
}

// world is a trust domain of three owners, whose authority has a store with a root.
type world struct {
	*testworld.World
	dsn     string
	root    wire.Digest
	genesis policy.Step
	clock   *testworld.Clock
	log     *bytes.Buffer // guarded by logMu
	logMu   sync.Mutex
}

func (w *world) Write(b []byte) (int, error) {
	w.logMu.Lock()
	defer w.logMu.Unlock()
	return w.log.Write(b)
}

func newWorld(t testing.TB, edits ...string) *world {
	t.Helper()
	vendor := attesttest.NewVendor()
	return newWorldOf(t, vendor, vendor.Chip(), edits...)
}

// newWorldOf is newWorld with a given vendor and chip.
func newWorldOf(t testing.TB, vendor *attesttest.Vendor, chip *attesttest.Chip, edits ...string) *world {
	t.Helper()
	return newWorldAt(t, newDSN(t), vendor, chip, edits...)
}

// newWorldAt is newWorldOf on a given empty store.
func newWorldAt(t testing.TB, dsn string, vendor *attesttest.Vendor, chip *attesttest.Chip, edits ...string) *world {
	t.Helper()
	w := &world{World: testworld.New(t, "ana", "ben", "eva"), log: new(bytes.Buffer), dsn: dsn, clock: testworld.NewClock(noon)}
	w.Vendor, w.Chip = vendor, chip
	w.found(edits...)
	return w
}

// found makes the root for a draft in the world's store, and signs the genesis.
func (w *world) found(edits ...string) {
	w.T.Helper()
	w.root = w.init(w.dsn, "authority", edits...).Root
	w.genesis = w.SignPolicy(w.text(edits...), "ana", "ben")
}

// draft returns the genesis with these edits, without a root.
func (w *world) draft(edits ...string) policydraft.Draft {
	w.T.Helper()
	root := w.root
	w.root = wire.Digest{}
	defer func() { w.root = root }()
	d, err := policydraft.Parse([]byte(w.text(edits...)))
	if err != nil {
		w.T.Fatal(err)
	}
	return d
}

// onServer names the environment variable that puts the stores of worlds in PostgreSQL.
const onServer = "AUTHORITY_TEST_ON_SERVER"

// newDSN returns the address of an empty store.
func newDSN(t testing.TB) string {
	if os.Getenv(onServer) != "" {
		return testdb.Database(t)
	}
	return "sqlite:" + filepath.Join(t.TempDir(), "authority.db")
}

// init makes a root for the draft with these edits.
func (w *world) init(dsn, program string, edits ...string) founding.Root {
	w.T.Helper()
	db, err := store.Create(w.T.Context(), dsn)
	if err != nil {
		w.T.Fatal(err)
	}
	defer db.Close()
	tee := w.Device(program)
	made, err := sealed.CreateRoot(w.T.Context(), sealed.InitConfig{Store: db, Attester: tee, Sealer: tee, Draft: w.draft(edits...)})
	if err != nil {
		w.T.Fatal(err)
	}
	return made
}

// text returns the genesis policy, which two owners must sign; edits are pairs of old and new
// text.
func (w *world) text(edits ...string) string {
	w.T.Helper()
	root := ""
	if !w.root.IsZero() {
		root = w.root.String()
	}
	return w.PolicyText(root, tasks, append([]string{testworld.Created, "created      = 2026-11-22T09:00:00Z\n",
		"quorum = 1", "quorum = 2", `delay = "0s"`, `delay = "1h"`}, edits...)...)
}

// config returns the configuration of an authority over the world's store.
func (w *world) config(program string) Config {
	w.T.Helper()
	db, err := store.Open(w.T.Context(), w.dsn)
	if err != nil {
		w.T.Fatal(err)
	}
	w.T.Cleanup(func() { db.Close() })
	return w.configOn(db, program)
}

func (w *world) configOn(db *store.Store, program string) Config {
	tee := w.Device(program)
	return Config{
		Store: db, Attester: tee, Sealer: tee, Verifier: attesttest.Verifier(), Clock: w.clock.Read,
		Log: slog.New(slog.NewTextHandler(w, nil)), Genesis: &w.genesis, Limits: admission.Limits{PerAddress: 10_000, Total: 10_000},
	}
}

// open opens an authority over the world's store.
func (w *world) open() *Authority {
	w.T.Helper()
	a, err := Open(w.T.Context(), w.config("authority"))
	if err != nil {
		w.T.Fatal(err)
	}
	return a
}

// serve serves an authority, and returns its address and a client that demands a certificate of
// kind authority under the root that the policy names.
func (w *world) serve(a *Authority) (*api.Authority, string) {
	w.T.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		w.T.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan error)
	go func() { done <- a.Serve(ctx, listener) }()
	w.T.Cleanup(func() {
		stop()
		if err := <-done; err != nil {
			w.T.Error("serving:", err)
		}
	})
	address := "https://" + listener.Addr().String()
	client, err := api.NewAuthority(address, w.clientTLS(a))
	if err != nil {
		w.T.Fatal(err)
	}
	w.T.Cleanup(client.Close)
	return client, address
}

// clientTLS returns a configuration that demands the authority that its policy names.
func (w *world) clientTLS(a *Authority) *tls.Config {
	root := testworld.Must(x509.ParseCertificate(a.inForce().issuer.AuthorityRoot()))
	return identity.ClientTLS("authority.clinic.example", func() *x509.Certificate { return root }, func() identity.Expect {
		at, _ := w.clock.Read()
		return identity.Expect{Policy: a.inForce().approved, Kinds: []identity.Kind{identity.KindAuthority}, Use: identity.UseTLS, At: at}
	})
}

// asker makes challenges and serves certificate requests: a client, or an authority itself.
type asker interface {
	Challenge(context.Context) (api.Challenge, error)
	Certify(context.Context, api.CertificateRequest) (api.SealedReport, error)
}

// direct calls an authority without HTTP.
type direct struct{ a *Authority }

func (d direct) Challenge(context.Context) (api.Challenge, error) {
	return d.a.challenge(api.ChallengeRequest{})
}

// Certify sends the request again when another authority has the lease, as if that had ended.
func (d direct) Certify(ctx context.Context, r api.CertificateRequest) (api.SealedReport, error) {
	response, err := d.a.certify(ctx, r, "")
	if errors.Is(err, wire.RingElsewhere) {
		d.a.freeLease(ctx)
		if response, err = d.a.certifyOnce(ctx, r, ""); errors.Is(err, errPolicyChanged) { // the challenge is spent, so certify cannot be called again
			if err = d.a.history.Refresh(ctx); err == nil {
				response, err = d.a.certifyOnce(ctx, r, "")
			}
		}
	}
	return response, err
}

// freeLease releases the ring lease instead of the authority that has it.
func (a *Authority) freeLease(ctx context.Context) {
	old := testworld.Must(a.store.Lease(ctx, "rings"))
	var found struct{ Holder string }
	_ = a.records.Open(records.TableLease, old, &found) // a damaged row is released as well
	if found.Holder == a.holder {
		return // another request of this authority took it meanwhile
	}
	next := testworld.Must(a.records.Seal(records.TableLease, old.Key, map[string]string{"freed": rand.Text()}))
	if err := a.store.SwapLease(ctx, old, next); err != nil && !errors.Is(err, wire.Behind) {
		panic(err)
	}
}

// applicant is a unit that enrols.
type applicant struct {
	w       *world
	device  *attesttest.Device
	task    string
	group   string // with role, instead of task
	role    string
	party   string // in a group: the party whose key the unit pins
	signing *ecdsa.PrivateKey
	hpke    hpke.PrivateKey
	tls     *ecdsa.PrivateKey   // if the request has a CSR
	signer  []*x509.Certificate // chain of the report that was opened last
}

func (w *world) applicant(task string, args ...string) *applicant {
	w.T.Helper()
	a := &applicant{w: w, task: task, device: w.Device(task, args...), signing: newKey(w.T)}
	a.hpke = testworld.Must(hpke.MLKEM768X25519().GenerateKey())
	if task == "keys" {
		a.tls = newKey(w.T)
	}
	return a
}

func (w *world) scoring() *applicant { return w.applicant("scoring", "--model", "m.json") }

func newKey(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// request makes a good request. before, which may be nil, changes it before its evidence is made.
func (p *applicant) request(nonce []byte, before func(*api.CertificateRequest)) api.CertificateRequest {
	p.w.T.Helper()
	r := api.CertificateRequest{
		Task: p.task, Group: p.group, Role: p.role, Nonce: nonce, Root: p.w.root, HPKEKey: p.hpke.PublicKey().Bytes(),
		SigningKey: testworld.Must(x509.MarshalPKIXPublicKey(&p.signing.PublicKey)),
	}
	if p.party != "" {
		r.PartyKeys = []wire.Digest{sshsig.KeyDigest(p.w.Keys[p.party].PublicKey())}
	}
	if p.tls != nil {
		r.CSR = testworld.Must(x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, p.tls))
	}
	if before != nil {
		before(&r)
	}
	r.Evidence = testworld.Must(json.Marshal(testworld.Must(p.device.Attest(p.w.T.Context(), attest.BindReportData(wire.LabelIssue, r.Bound()...)))))
	return r
}

// enrol requests a report and opens it.
func (p *applicant) enrol(to asker) (api.Report, error) {
	ctx := p.w.T.Context()
	challenge, err := to.Challenge(ctx)
	if err != nil {
		return api.Report{}, err
	}
	r := p.request(challenge.Nonce, nil)
	sealed, err := to.Certify(ctx, r)
	if err != nil {
		return api.Report{}, err
	}
	return p.openReport(r, sealed)
}

// openReport decrypts a report and checks its signature.
func (p *applicant) openReport(r api.CertificateRequest, sealed api.SealedReport) (api.Report, error) {
	var report api.Report
	recipient, err := hpke.NewRecipient(sealed.Encapsulated, p.hpke, hpke.HKDFSHA256(), hpke.AES256GCM(), api.SealInfo(r, sealed.GroupRoot))
	if err != nil {
		return report, err
	}
	plain, err := recipient.Open(nil, sealed.Ciphertext)
	if err != nil {
		return report, err
	}
	var signed api.SignedReport
	if err := json.Unmarshal(plain, &signed); err != nil {
		return report, err
	}
	p.signer = nil
	for _, der := range signed.Chain {
		c, err := x509.ParseCertificate(der)
		if err != nil {
			return report, err
		}
		p.signer = append(p.signer, c)
	}
	signer := p.signer[0]
	digest := sha256.Sum256(api.ReportMessage(signed.Report, r.Digest()))
	if !ecdsa.VerifyASN1(signer.PublicKey.(*ecdsa.PublicKey), digest[:], signed.Signature) {
		return report, errors.New("the report's signature does not hold")
	}
	return report, json.Unmarshal(signed.Report, &report)
}

// issued counts the issuances in the log.
func issued(t testing.TB, a *Authority) int {
	t.Helper()
	n := 0
	for before := int64(0); ; {
		page, err := a.readLogPage(t.Context(), store.Query{Limit: logMaxLimit, Before: before})
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range page.Entries {
			if e.Kind == records.KindIssued {
				n++
			}
		}
		if before = page.Next; before == 0 {
			return n
		}
	}
}
