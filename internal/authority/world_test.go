package authority

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/hpke"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/attest/attesttest"
	"github.com/cohort-tee/cohort/identity"
	"github.com/cohort-tee/cohort/internal/api"
	"github.com/cohort-tee/cohort/internal/authority/store"
	"github.com/cohort-tee/cohort/internal/authority/store/testdb"
	"github.com/cohort-tee/cohort/internal/wire"
	"github.com/cohort-tee/cohort/policy"
	"golang.org/x/crypto/ssh"
)

// noon is when every test begins.
var noon = time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)

const policyText = `schema       = "cohort/policy/v1"
trust_domain = "clinic.example"
sequence     = 1
previous     = ""
created      = 2026-11-22T09:00:00Z
development  = true

[owners]
quorum = 2
approve_within = "168h"
delay = "1h"
keys = [ OWNERS ]

[platform.soft]
roots = ["VENDOR"]

[authority]
root = "ROOT"
reference = [ { platform = "soft", program = "AUTHORITY" } ]

[task.keys]
key_mode = "unit"
names = ["keys.clinic.example"]
life = "30m"
[task.keys.release."1.4"]
reference = [ { platform = "soft", program = "KEYS" } ]

[task.scoring]
key_mode = "shared"
names = ["scoring.clinic.example"]
life = "1h"
calls = ["keys"]
[task.scoring.release."2026.11"]
env = { LANG = "C" }
reference = [ { platform = "soft", program = "SCORING", args = ["--model", "m.json"] } ]
`

var owners = []string{"ana", "ben", "eva"}

// handClock is both clocks of a machine, moved by hand.
type handClock struct {
	mu      sync.Mutex
	wall    time.Time
	elapsed time.Duration
}

func (c *handClock) read() (time.Time, time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.wall, c.elapsed
}

// pass lets time go by; jump moves the wall clock alone.
func (c *handClock) pass(d time.Duration) { c.jump(d); c.mu.Lock(); c.elapsed += d; c.mu.Unlock() }
func (c *handClock) jump(d time.Duration) { c.mu.Lock(); c.wall = c.wall.Add(d); c.mu.Unlock() }

// world is one vendor, one chip, three owners, and a store with a root.
type world struct {
	t       testing.TB
	vendor  *attesttest.Vendor
	chip    *attesttest.Chip
	owners  map[string]ssh.Signer
	dsn     string
	root    wire.Digest
	genesis policy.Step
	clock   *handClock
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

// newWorldOf is newWorld of a given vendor and chip.
func newWorldOf(t testing.TB, vendor *attesttest.Vendor, chip *attesttest.Chip, edits ...string) *world {
	t.Helper()
	return newWorldAt(t, newDSN(t), vendor, chip, edits...)
}

// newWorldAt is newWorldOf on a given store, an empty one.
func newWorldAt(t testing.TB, dsn string, vendor *attesttest.Vendor, chip *attesttest.Chip, edits ...string) *world {
	t.Helper()
	w := &world{t: t, vendor: vendor, chip: chip, owners: map[string]ssh.Signer{}, log: new(bytes.Buffer),
		dsn: dsn, clock: &handClock{wall: noon}}
	for _, name := range owners {
		w.owners[name] = newOwner(t)
	}
	w.root = w.init(w.dsn, "authority").Root
	w.genesis = w.signed(w.text(edits...), "ana", "ben")
	return w
}

// onServer says, in the environment, that worlds live in PostgreSQL.
const onServer = "AUTHORITY_TEST_ON_SERVER"

// newDSN is the address of an empty store.
func newDSN(t testing.TB) string {
	if os.Getenv(onServer) != "" {
		return testdb.Database(t)
	}
	return "sqlite:" + filepath.Join(t.TempDir(), "authority.db")
}

// owner is an owner's key, which signs and opens shares.
type owner struct {
	ssh.Signer
	key ed25519.PrivateKey
}

func newOwner(t testing.TB) ssh.Signer {
	t.Helper()
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	signer, err := ssh.NewSignerFromKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return owner{signer, key}
}

func (w *world) init(dsn, program string) InitResult {
	w.t.Helper()
	db, err := store.Create(w.t.Context(), dsn)
	if err != nil {
		w.t.Fatal(err)
	}
	defer db.Close()
	tee := w.chip.Attester(attesttest.Measure(program))
	made, err := Init(w.t.Context(), InitConfig{Store: db, Attester: tee, Sealer: tee})
	if err != nil {
		w.t.Fatal(err)
	}
	return made
}

// text is the genesis policy; edits are pairs of old and new.
func (w *world) text(edits ...string) string {
	w.t.Helper()
	var keys []string
	for _, name := range owners {
		line := strings.TrimSpace(string(ssh.MarshalAuthorizedKey(w.owners[name].PublicKey())))
		keys = append(keys, fmt.Sprintf("{ name = %q, ssh = %q }", name, line))
	}
	program := func(name string) string { return wire.Sum([]byte(name)).String() }
	return edit(w.t, policyText, append(edits,
		"OWNERS", strings.Join(keys, ", "), "VENDOR", w.vendor.Root().String(), "ROOT", w.root.String(),
		"AUTHORITY", program("authority"), "KEYS", program("keys"), "SCORING", program("scoring"))...)
}

// after is the policy that follows the given one, edited.
func (w *world) after(p policy.Approved, edits ...string) string {
	w.t.Helper()
	doc := p.Document()
	old := "\"\""
	if !doc.Previous.IsZero() {
		old = fmt.Sprintf("%q", doc.Previous)
	}
	return edit(w.t, string(doc.Raw()), append(edits,
		fmt.Sprintf("sequence     = %d\n", doc.Sequence), fmt.Sprintf("sequence     = %d\n", doc.Sequence+1),
		"previous     = "+old+"\n", fmt.Sprintf("previous     = %q\n", doc.Digest()))...)
}

func edit(t testing.TB, text string, edits ...string) string {
	t.Helper()
	for i := 0; i < len(edits); i += 2 {
		if !strings.Contains(text, edits[i]) {
			t.Fatalf("the test policy has no %q", edits[i])
		}
		text = strings.ReplaceAll(text, edits[i], edits[i+1])
	}
	return text
}

func (w *world) signed(text string, names ...string) policy.Step {
	w.t.Helper()
	step := policy.Step{Policy: []byte(text)}
	for _, name := range names {
		step.Signatures = append(step.Signatures, w.signature(name, policy.ForPolicy, text))
	}
	return step
}

func (w *world) signature(name string, ns policy.Namespace, text string) string {
	w.t.Helper()
	armored, err := policy.Sign(w.owners[name], ns, []byte(text))
	if err != nil {
		w.t.Fatal(err)
	}
	return armored
}

// config is that of an authority over the world's store.
func (w *world) config(program string) Config {
	w.t.Helper()
	db, err := store.Open(w.t.Context(), w.dsn)
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { db.Close() })
	return w.configOn(db, program)
}

func (w *world) configOn(db *store.Store, program string) Config {
	tee := w.chip.Attester(attesttest.Measure(program))
	return Config{
		Store: db, Attester: tee, Sealer: tee, Verifier: attesttest.Verifier(), Clock: w.clock.read,
		Log: slog.New(slog.NewTextHandler(w, nil)), Genesis: &w.genesis, Limits: Limits{PerAddress: 10_000, Total: 10_000},
	}
}

// open opens an authority over the world's store.
func (w *world) open() *Authority {
	w.t.Helper()
	a, err := Open(w.t.Context(), w.config("authority"))
	if err != nil {
		w.t.Fatal(err)
	}
	return a
}

// serve serves an authority and gives a client of it that demands kind
// authority under the root policy names.
func (w *world) serve(a *Authority) (*api.Authority, string) {
	w.t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		w.t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan error)
	go func() { done <- a.Serve(ctx, listener) }()
	w.t.Cleanup(func() {
		stop()
		if err := <-done; err != nil {
			w.t.Error("serving:", err)
		}
	})
	address := "https://" + listener.Addr().String()
	client, err := api.NewAuthority(address, w.clientTLS(a))
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(client.Close)
	return client, address
}

// clientTLS demands the authority that its policy names.
func (w *world) clientTLS(a *Authority) *tls.Config {
	root := must(x509.ParseCertificate(a.current.Load().issuer.AuthorityRoot()))
	return identity.ClientTLS("authority.clinic.example", func() *x509.Certificate { return root }, func() identity.Expect {
		at, _ := w.clock.read()
		return identity.Expect{Policy: a.current.Load().approved, Kinds: []identity.Kind{identity.KindAuthority}, Use: identity.UseTLS, At: at}
	})
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// asker is whatever answers challenges and certificate requests: a client or an
// authority itself.
type asker interface {
	Challenge(context.Context) (api.Challenge, error)
	Certify(context.Context, api.CertificateRequest) (api.SealedReport, error)
}

// direct asks an authority without HTTP.
type direct struct{ a *Authority }

func (d direct) Challenge(context.Context) (api.Challenge, error) {
	return d.a.challenge(api.ChallengeRequest{})
}

// Certify asks as soon as the lease of another authority has ended.
func (d direct) Certify(ctx context.Context, r api.CertificateRequest) (api.SealedReport, error) {
	answer, err := d.a.certify(ctx, r)
	if errors.Is(err, wire.RingElsewhere) {
		d.a.lease.seen = -leaseTerm
		answer, err = d.a.certify(ctx, r)
	}
	return answer, err
}

// applicant plays a unit that enrols.
type applicant struct {
	w       *world
	device  *attesttest.Device
	task    string
	group   string // and role, instead of task
	role    string
	signing *ecdsa.PrivateKey
	hpke    hpke.PrivateKey
	tls     *ecdsa.PrivateKey // where the request has a CSR
}

func (w *world) applicant(task string, args ...string) *applicant {
	w.t.Helper()
	a := &applicant{w: w, task: task, device: w.chip.Attester(attesttest.Measure(task, args...)), signing: newKey(w.t)}
	a.hpke = must(hpke.MLKEM768X25519().GenerateKey())
	if task == "keys" {
		a.tls = newKey(w.t)
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

// request makes a good request, spoilt by before ahead of its evidence and by
// after behind it; either may be nil.
func (p *applicant) request(nonce []byte, before func(*api.CertificateRequest)) api.CertificateRequest {
	p.w.t.Helper()
	r := api.CertificateRequest{
		Task: p.task, Group: p.group, Role: p.role, Nonce: nonce, Root: p.w.root, HPKEKey: p.hpke.PublicKey().Bytes(),
		SigningKey: must(x509.MarshalPKIXPublicKey(&p.signing.PublicKey)),
	}
	if p.tls != nil {
		r.CSR = must(x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, p.tls))
	}
	if before != nil {
		before(&r)
	}
	r.Evidence = must(json.Marshal(must(p.device.Attest(p.w.t.Context(), attest.Bind(wire.LabelIssue, r.Bound()...)))))
	return r
}

// enrol asks for a report and opens it.
func (p *applicant) enrol(to asker) (api.Report, error) {
	ctx := p.w.t.Context()
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
	recipient, err := hpke.NewRecipient(sealed.Encapsulated, p.hpke, hpke.HKDFSHA256(), hpke.AES256GCM(), api.SealInfo(r))
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
	signer, err := x509.ParseCertificate(signed.Chain[0])
	if err != nil {
		return report, err
	}
	digest := sha256.Sum256(api.ReportMessage(signed.Report, r.Digest()))
	if !ecdsa.VerifyASN1(signer.PublicKey.(*ecdsa.PublicKey), digest[:], signed.Signature) {
		return report, errors.New("the report's signature does not hold")
	}
	return report, json.Unmarshal(signed.Report, &report)
}

// wantReason checks that err is a refusal with a reason.
func wantReason(t testing.TB, err error, want wire.Reason) {
	t.Helper()
	if got := wire.ReasonOf(err); err == nil || got != want {
		t.Errorf("got error %v (reason %q), want reason %q", err, got, want)
	}
}

// issued counts the issuances of the store.
func issued(t testing.TB, a *Authority) int {
	t.Helper()
	n := 0
	for before := int64(0); ; {
		page, err := a.page(t.Context(), store.Query{Limit: logMaxLimit, Before: before})
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range page.Entries {
			if e.Kind == kindIssued {
				n++
			}
		}
		if before = page.Next; before == 0 {
			return n
		}
	}
}
