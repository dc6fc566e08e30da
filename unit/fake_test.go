package unit

import (
	"context"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/hpke"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/attest/attesttest"
	"github.com/cohort-tee/cohort/identity"
	"github.com/cohort-tee/cohort/internal/api"
	"github.com/cohort-tee/cohort/internal/history"
	"github.com/cohort-tee/cohort/internal/wire"
	"github.com/cohort-tee/cohort/policy"
	"golang.org/x/crypto/ssh"
)

// world is one owner, one vendor and the policies the owner signed.
type world struct {
	t      *testing.T
	owner  ssh.Signer
	vendor *attesttest.Vendor
	keys   *identity.Keys
	root   wire.Digest // of keys, or of a real authority
	steps  []api.HistoryEntry
}

// newWorld makes a world whose genesis policy gives certificates of this life.
func newWorld(t *testing.T, life string) *world {
	t.Helper()
	_, key, err := ed25519.GenerateKey(rand.Reader)
	check(t, err)
	owner, err := ssh.NewSignerFromKey(key)
	check(t, err)
	w := &world{t: t, owner: owner, vendor: attesttest.NewVendor(), keys: newKeys(t)}
	w.root = w.keys.Root()
	w.found(life)
	return w
}

// edited is a world that goes on from w with one more policy, a copy of the
// newest with one change; w itself stays where it is.
func (w *world) edited(old, new string) *world {
	w.t.Helper()
	text := string(w.steps[len(w.steps)-1].Policy)
	if !strings.Contains(text, old) {
		w.t.Fatalf("policy does not contain %q", old)
	}
	var sequence int
	var previous string
	for line := range strings.Lines(text) {
		fmt.Sscanf(line, "sequence     = %d", &sequence)
		fmt.Sscanf(line, "previous     = %q", &previous)
	}
	text = strings.Replace(text, fmt.Sprintf("sequence     = %d", sequence), fmt.Sprintf("sequence     = %d", sequence+1), 1)
	text = strings.Replace(text, fmt.Sprintf("previous     = %q", previous), fmt.Sprintf("previous     = %q", wire.Sum(w.steps[len(w.steps)-1].Policy)), 1)
	next := *w
	next.steps = slices.Clip(w.steps)
	next.sign(strings.Replace(text, old, new, 1))
	return &next
}

func newKeys(t *testing.T) *identity.Keys {
	t.Helper()
	keys, err := identity.Derive(identity.NewSecret())
	check(t, err)
	return keys
}

// found writes the genesis policy.
func (w *world) found(life string) {
	w.sign(fmt.Sprintf(policyText, ssh.MarshalAuthorizedKey(w.owner.PublicKey())[:80],
		w.vendor.Root(), w.root, sumOf("authority"), life, sumOf("scoring"), life, sumOf("keys"), life, sumOf("other")))
}

// sign appends a policy, with the owner's signature, to the history.
func (w *world) sign(text string) {
	w.t.Helper()
	signature, err := policy.Sign(w.owner, policy.ForPolicy, []byte(text))
	check(w.t, err)
	w.steps = append(w.steps, api.HistoryEntry{Policy: []byte(text), Signatures: []string{signature}})
}

// sumOf is the digest of the program that plays a role.
func sumOf(name string) wire.Digest { return wire.Sum([]byte(name)) }

const policyText = `schema       = "cohort/policy/v1"
trust_domain = "clinic.example"
sequence     = 1
previous     = ""
created      = 2026-01-02T03:04:05Z
development  = true

[owners]
quorum = 1
approve_within = "168h"
delay = "0s"
keys = [ { name = "ana", ssh = "%s" } ]

[platform.soft]
roots = ["%v"]

[authority]
root = "%v"
reference = [ { platform = "soft", program = "%v" } ]

[task.scoring]
key_mode = "shared"
names = ["scoring.clinic.example"]
life  = "%s"
calls = ["keys"]
[task.scoring.release."1"]
reference = [ { platform = "soft", program = "%v" } ]
env = { LANG = "C" }

[task.keys]
key_mode = "unit"
names = ["keys.clinic.example"]
life  = "%s"
[task.keys.release."1"]
reference = [ { platform = "soft", program = "%v" } ]

[task.other]
key_mode = "shared"
life  = "%s"
[task.other.release."1"]
reference = [ { platform = "soft", program = "%v" } ]
`

func (w *world) genesis() attest.Digest { return wire.Sum(w.steps[0].Policy) }

func (w *world) approved() policy.Approved {
	w.t.Helper()
	h, err := history.History{}.Extend(w.genesis(), w.steps)
	check(w.t, err)
	return h.Policy()
}

// config is that of a unit that runs the program of a task.
func (w *world) config(task string, authorities ...*fake) Config {
	c := Config{
		Genesis:  w.genesis(),
		Task:     task,
		Attester: w.vendor.Chip().Attester(attesttest.Measure(task)),
		Log:      slog.New(slog.NewTextHandler(w.t.Output(), nil)),
	}
	for _, a := range authorities {
		c.Authorities = append(c.Authorities, a.URL)
	}
	return c
}

// start starts a unit that the test closes.
func (w *world) start(task string, authorities ...*fake) *Unit {
	w.t.Helper()
	u, err := Start(w.t.Context(), w.config(task, authorities...))
	check(w.t, err)
	w.t.Cleanup(u.Close)
	return u
}

// fake is an authority that can be made to misbehave. It holds all checks that
// units rely on an authority for, and keeps nothing.
type fake struct {
	*httptest.Server
	world *world
	keys  *identity.Keys

	mu       sync.Mutex
	steps    []api.HistoryEntry
	requests []api.CertificateRequest
	clock    func() time.Time
	faults   faults
}

// faults change what a fake answers, from inside to outside.
type faults struct {
	history func(*api.History)
	deaf    bool                          // adopts nothing that is pushed
	request func(*api.CertificateRequest) // the request as the fake understands it
	report  func(*api.Report)
	signed  func(*api.SignedReport)
	sealed  func(*api.SealedReport)
	refusal error        // instead of a report
	serve   http.Handler // instead of the fake
}

// authority starts an authority of the world with a root secret.
func (w *world) authority(keys *identity.Keys) *fake {
	f := &fake{world: w, keys: keys, steps: w.steps, clock: time.Now}
	f.Server = httptest.NewUnstartedServer(f)
	f.Listener = tls.NewListener(f.Listener, identity.ServerTLS(f.certificate))
	f.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, 0)
	f.Start()
	f.URL = "https://" + f.Listener.Addr().String()
	w.t.Cleanup(f.Close)
	return f
}

// set changes the fake while it serves.
func (f *fake) set(change func(*fake)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	change(f)
}

// issuer issues under the newest policy, whatever root that names.
func (f *fake) issuer() (*identity.Issuer, policy.Approved) {
	h, err := history.History{}.Extend(f.world.genesis(), f.steps)
	if err != nil {
		panic(err)
	}
	i, err := f.keys.Issuer(h.Policy())
	if err != nil {
		panic(err)
	}
	return i, h.Policy()
}

func (f *fake) certificate() (*tls.Certificate, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	i, _ := f.issuer()
	leaf, err := i.Authority(f.clock())
	return &tls.Certificate{Certificate: [][]byte{leaf.DER, i.AuthorityRoot()}, PrivateKey: leaf.Key}, err
}

func (f *fake) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.faults.serve != nil {
		f.faults.serve.ServeHTTP(w, r)
		return
	}
	body, err := f.answer(r)
	if err != nil {
		api.ProblemOf(err).Write(w)
		return
	}
	json.NewEncoder(w).Encode(body)
}

func (f *fake) answer(r *http.Request) (any, error) {
	_, p := f.issuer()
	switch r.Method + " " + r.URL.Path {
	case "GET " + api.PathHistory:
		from, err := strconv.Atoi(r.URL.Query().Get("from"))
		h := api.History{From: from, Entries: f.steps[min(from, len(f.steps)):], Head: p.Head()}
		apply(f.faults.history, &h)
		return h, err
	case "POST " + api.PathHistory:
		var pushed api.History
		err := json.NewDecoder(r.Body).Decode(&pushed)
		if all := append(slices.Clone(f.steps[:pushed.From]), pushed.Entries...); !f.faults.deaf && len(all) > len(f.steps) {
			f.steps = all
		}
		return api.Policy{}, err
	case "POST " + api.PathChallenge:
		return api.Challenge{Nonce: []byte(rand.Text())}, nil
	case "POST " + api.PathCertificates:
		var request api.CertificateRequest
		if err := json.NewDecoder(r.Body).Decode(&request); err != nil {
			return nil, err
		}
		f.requests = append(f.requests, request)
		return f.certify(request)
	}
	return nil, wire.Refuse(wire.BadRequest, "path", r.URL.Path, "")
}

func (f *fake) certify(request api.CertificateRequest) (any, error) {
	if f.faults.refusal != nil {
		return nil, f.faults.refusal
	}
	apply(f.faults.request, &request)
	report, err := f.report(request)
	if err != nil {
		return nil, err
	}
	apply(f.faults.report, &report)
	signed, err := f.sign(request, report)
	if err != nil {
		return nil, err
	}
	apply(f.faults.signed, &signed)
	plain, err := json.Marshal(signed)
	if err != nil {
		return nil, err
	}
	public, err := hpke.MLKEM768X25519().NewPublicKey(request.HPKEKey)
	if err != nil {
		return nil, err
	}
	enc, sender, err := hpke.NewSender(public, hpke.HKDFSHA256(), hpke.AES256GCM(), api.SealInfo(request))
	if err != nil {
		return nil, err
	}
	ciphertext, err := sender.Seal(nil, plain)
	sealed := api.SealedReport{Encapsulated: enc, Ciphertext: ciphertext}
	apply(f.faults.sealed, &sealed)
	return sealed, err
}

func apply[T any](change func(*T), v *T) {
	if change != nil {
		change(v)
	}
}

// report appraises the request and fills a report.
func (f *fake) report(request api.CertificateRequest) (api.Report, error) {
	i, p := f.issuer()
	if !p.Knows(request.Head) {
		return api.Report{}, wire.Refuse(wire.Behind, "head", request.Head, p.Head())
	}
	var evidence attest.Evidence
	if err := json.Unmarshal(request.Evidence, &evidence); err != nil {
		return api.Report{}, err
	}
	result, err := attesttest.Verifier().Appraise(attest.Question{
		Evidence: evidence, ReportData: attest.Bind(wire.LabelIssue, request.Bound()...), Rules: p.Rules(), At: f.clock(),
	})
	if err != nil {
		return api.Report{}, err
	}
	if request.Group != "" {
		return f.groupReport(i, p, request, result)
	}
	grant, err := p.Admit(request.Task, result)
	if err != nil {
		return api.Report{}, err
	}
	id, err := i.Identity(grant.Task.Name, grant.Release.Name)
	if err != nil {
		return api.Report{}, err
	}
	report := api.Report{
		Schema: api.ReportSchema, Task: id.Task, Release: id.Release, Identity: id.ID, KeyMode: string(grant.Task.KeyMode),
		IdentityCA: id.Root, Cross: id.Cross, Authority: i.AuthorityRoot(), Env: grant.Release.Env, Head: p.Head(), Rings: testRings(f.clock()),
	}
	return report, f.leaves(i, grant, request, &report)
}

// leaves issues what the key mode asks for.
func (f *fake) leaves(i *identity.Issuer, grant policy.Grant, request api.CertificateRequest, report *api.Report) error {
	signing, err := x509.ParsePKIXPublicKey(request.SigningKey)
	if err != nil {
		return err
	}
	unit, err := i.Unit(grant, signing, f.clock())
	if err != nil {
		return err
	}
	var leaf identity.Leaf
	if report.KeyMode == string(policy.Shared) {
		leaf, err = i.Shared(grant, f.clock())
		if err == nil {
			report.LeafKey, err = x509.MarshalPKCS8PrivateKey(leaf.Key)
		}
	} else {
		key, csrErr := identity.CSRKey(request.CSR)
		if csrErr != nil {
			return csrErr
		}
		leaf, err = i.UnitTLS(grant, key, wire.UnitIDOf(request.SigningKey), f.clock())
	}
	report.Unit, report.Leaf = unit.DER, leaf.DER
	report.RenewAfter, report.RenewBefore, report.NotAfter = leaf.RenewAfter, leaf.RenewBefore, leaf.NotAfter
	return err
}

func (f *fake) sign(request api.CertificateRequest, report api.Report) (api.SignedReport, error) {
	i, _ := f.issuer()
	leaf, err := i.Authority(f.clock())
	if err != nil {
		return api.SignedReport{}, err
	}
	raw, err := json.Marshal(report)
	if err != nil {
		return api.SignedReport{}, err
	}
	digest := sha256.Sum256(api.ReportMessage(raw, request.Digest()))
	signature, err := ecdsa.SignASN1(rand.Reader, leaf.Key, digest[:])
	return api.SignedReport{Report: raw, Signature: signature, Chain: [][]byte{leaf.DER, i.AuthorityRoot()}}, err
}

// ahead is a clock that runs ahead of this machine's.
func ahead(d time.Duration) func() time.Time {
	return func() time.Time { return time.Now().Add(d) }
}

type unavailable struct{}

func (unavailable) ServeHTTP(w http.ResponseWriter, _ *http.Request) {
	api.ProblemOf(wire.Refuse(wire.Unavailable, "authority", "", "")).Write(w)
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// wantReason fails the test unless err is a refusal with this reason.
func wantReason(t *testing.T, err error, want wire.Reason) {
	t.Helper()
	if err == nil {
		t.Fatalf("got no error, want reason %q", want)
	}
	if got := wire.ReasonOf(err); got != want {
		t.Fatalf("got reason %q, want %q: %v", got, want, err)
	}
}

// eventually polls until a condition holds.
func eventually(t *testing.T, within time.Duration, what string, holds func() bool) {
	t.Helper()
	for end := time.Now().Add(within); !holds(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not within %v: %s", within, what)
		}
	}
}

func soon(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	t.Cleanup(cancel)
	return ctx
}
