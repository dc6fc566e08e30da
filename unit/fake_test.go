package unit

import (
	"crypto/ecdsa"
	"crypto/hpke"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
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
	"github.com/cohort-tee/cohort/internal/testworld"
	"github.com/cohort-tee/cohort/internal/wire"
	"github.com/cohort-tee/cohort/policy"
)

// world is a trust domain, and the keys of its authority.
type world struct {
	*testworld.World
	keys *identity.Keys
}

// newWorld makes a world whose genesis policy gives certificates of this life.
func newWorld(t testing.TB, life string) *world {
	t.Helper()
	w := &world{World: testworld.New(t), keys: newKeys()}
	w.found(w.keys.RootDigest(), life)
	return w
}

func (w *world) found(root wire.Digest, life string) {
	w.SignFirst(root, strings.ReplaceAll(tasks, "LIFE", life))
}

// edited is a world that goes on from w with one more policy, a copy of the
// newest with one change; w itself stays where it is.
func (w *world) edited(old, new string) *world {
	w.T.Helper()
	return &world{World: w.NextPolicy(old, new), keys: w.keys}
}

func newKeys() *identity.Keys { return testworld.Must(identity.Derive(identity.NewSecret())) }

const tasks = `
[task.scoring]
key_mode = "shared"
names = ["scoring.clinic.example"]
lifetime  = "LIFE"
calls = ["keys"]
[task.scoring.release."1"]
reference = [ { platform = "soft", program = "scoring" } ]
env = { LANG = "C" }

[task.keys]
key_mode = "unit"
names = ["keys.clinic.example"]
lifetime  = "LIFE"
[task.keys.release."1"]
reference = [ { platform = "soft", program = "keys" } ]

[task.other]
key_mode = "shared"
lifetime  = "LIFE"
[task.other.release."1"]
reference = [ { platform = "soft", program = "other" } ]
`

// authorityRoot is the certificate of the authority's root.
func (w *world) authorityRoot() *x509.Certificate {
	i := testworld.Must(w.keys.Issuer(w.Policy(), groupsOf(ownSecret, w.Policy())...))
	return testworld.Must(x509.ParseCertificate(i.AuthorityRoot()))
}

// config is that of a unit that runs the program of a task.
func (w *world) config(task string, authorities ...*fake) Config {
	c := Config{
		Genesis:  w.Genesis(),
		Task:     task,
		Attester: w.Vendor.Chip().Attester(attesttest.Measure(task)),
		Log:      slog.New(slog.NewTextHandler(w.T.Output(), nil)),
	}
	for _, a := range authorities {
		c.Authorities = append(c.Authorities, a.URL)
	}
	return c
}

// start starts a unit that the test closes.
func (w *world) start(task string, authorities ...*fake) *Unit {
	w.T.Helper()
	u, err := Start(w.T.Context(), w.config(task, authorities...))
	testworld.NoError(w.T, err)
	w.T.Cleanup(u.Close)
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
	left     []api.LeaveRequest
	clock    func() time.Time
	secret   string // that its group roots come from
	faults   faults
	spread   time.Duration // in proved heads
	moved    chan struct{} // closed by set, which polls wait for
}

// faults change what a fake answers, from inside to outside.
type faults struct {
	history func(*api.History)
	party   []attest.Digest               // whose program a unit in a group is, whatever it asks for
	deaf    bool                          // adopts nothing that is pushed
	request func(*api.CertificateRequest) // the request as the fake understands it
	report  func(*api.Report)
	signed  func(*api.SignedReport)
	sealed  func(*api.SealedReport)
	// Of reports for a group: the root that they are sealed under, the secret that their
	// signer has, and whether the domain's authority signs them.
	groupRoot   func(*wire.Digest)
	groupSecret string
	domainSigns bool
	refusal     error        // instead of a report
	serve       http.Handler // instead of the fake
}

// authority starts an authority of the world with a root secret.
func (w *world) authority(keys *identity.Keys) *fake {
	f := &fake{world: w, keys: keys, secret: ownSecret, steps: w.Entries(), clock: time.Now, spread: time.Second, moved: make(chan struct{})}
	f.Server = httptest.NewUnstartedServer(f)
	f.Listener = tls.NewListener(f.Listener, identity.ServerTLS(f.certificate))
	f.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, 0)
	f.Start()
	f.URL = "https://" + f.Listener.Addr().String()
	w.T.Cleanup(f.Close)
	return f
}

// set changes the fake while it serves.
func (f *fake) set(change func(*fake)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	change(f)
	close(f.moved)
	f.moved = make(chan struct{})
}

// issuer issues under the newest policy, whatever root that names.
func (f *fake) issuer() (*identity.Issuer, policy.Approved) {
	h, err := history.History{}.Extend(f.world.Genesis(), f.steps)
	if err != nil {
		panic(err)
	}
	i, err := f.keys.Issuer(h.Policy(), groupsOf(f.secret, h.Policy())...)
	if err != nil {
		panic(err)
	}
	return i, h.Policy()
}

func (f *fake) certificate() (*tls.Certificate, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	i, _ := f.issuer()
	leaf, err := i.AuthorityLeaf(f.clock())
	return &tls.Certificate{Certificate: [][]byte{leaf.DER, i.AuthorityRoot()}, PrivateKey: leaf.Key}, err
}

// prove signs the head of p.
func (f *fake) prove(p policy.Approved) []byte {
	i, _ := f.issuer()
	leaf, err := i.AuthorityLeaf(f.clock())
	if err != nil {
		panic(err)
	}
	head, err := identity.ProveHead(identity.HeadClaim{Head: p.Head(), Steps: uint64(len(p.Heads())), At: f.clock(), Spread: f.spread}, leaf)
	if err != nil {
		panic(err)
	}
	return head
}

// wait holds a poll until the fake changes.
func (f *fake) wait(r *http.Request) {
	poll, named, err := api.ParsePollQuery(r.URL.Query())
	if r.URL.Path != api.PathHistory || !named || err != nil {
		return
	}
	timer := time.NewTimer(poll.Wait)
	defer timer.Stop()
	f.mu.Lock()
	_, p := f.issuer()
	moved := f.moved
	f.mu.Unlock()
	if p.Head() != poll.Head {
		return
	}
	select {
	case <-moved:
	case <-timer.C:
	case <-r.Context().Done():
	}
}

func (f *fake) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	f.wait(r)
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
		if poll, named, _ := api.ParsePollQuery(r.URL.Query()); named {
			if from, err = slices.Index(p.Heads(), poll.Head)+1, nil; from == 0 {
				return nil, wire.Refuse(wire.Behind, "head", poll.Head, p.Head())
			}
		}
		h := api.History{From: from, Entries: f.steps[min(from, len(f.steps)):], Head: p.Head(), ProvedHead: f.prove(p)}
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
	case "POST " + api.PathLeave:
		var l api.LeaveRequest
		err := json.NewDecoder(r.Body).Decode(&l)
		f.left = append(f.left, l)
		return api.LeaveResponse{Unit: l.Unit}, err
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
	var groupRoot wire.Digest
	if request.Group != "" {
		_, p := f.issuer()
		groupRoot = f.reporterOf(p, request, report).RootDigest()
	}
	apply(f.faults.groupRoot, &groupRoot)
	enc, sender, err := hpke.NewSender(public, hpke.HKDFSHA256(), hpke.AES256GCM(), api.SealInfo(request, groupRoot))
	if err != nil {
		return nil, err
	}
	ciphertext, err := sender.Seal(nil, plain)
	sealed := api.SealedReport{GroupRoot: groupRoot, Encapsulated: enc, Ciphertext: ciphertext}
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
		IdentityCA: id.Root, Cross: id.Cross, Authority: i.AuthorityRoot(), Env: grant.Release.Env, Head: p.Head(), ProvedHead: f.prove(p), Rings: testRings(f.clock()),
	}
	return report, f.leaves(i, grant, request, &report)
}

// leaves issues what the key mode asks for.
func (f *fake) leaves(i *identity.Issuer, grant policy.Grant, request api.CertificateRequest, report *api.Report) error {
	signing, err := x509.ParsePKIXPublicKey(request.SigningKey)
	if err != nil {
		return err
	}
	unit, err := i.UnitLeaf(grant, signing, f.clock())
	if err != nil {
		return err
	}
	var leaf identity.Leaf
	if report.KeyMode == string(policy.Shared) {
		leaf, err = i.SharedLeaf(grant, f.clock())
		if err == nil {
			report.LeafKey, err = x509.MarshalPKCS8PrivateKey(leaf.Key)
		}
	} else {
		key, csrErr := identity.CSRKey(request.CSR)
		if csrErr != nil {
			return csrErr
		}
		leaf, err = i.UnitTLSLeaf(grant, key, wire.UnitIDOf(request.SigningKey), f.clock())
	}
	report.Unit, report.Leaf = unit.DER, leaf.DER
	report.RenewAfter, report.RenewBefore, report.NotAfter = leaf.RenewAfter, leaf.RenewBefore, leaf.NotAfter
	return err
}

func (f *fake) sign(request api.CertificateRequest, report api.Report) (api.SignedReport, error) {
	i, p := f.issuer()
	leaf, err := i.AuthorityLeaf(f.clock())
	chain := [][]byte{leaf.DER, i.AuthorityRoot()}
	if request.Group != "" && !f.faults.domainSigns {
		keys := f.reporterOf(p, request, report)
		if i, err = f.keys.Issuer(p, keys); err != nil {
			return api.SignedReport{}, err
		}
		pact := p.PactOf(keys.Roster())
		id, _ := i.GroupIdentity(pact)
		leaf, err = i.GroupAuthorityLeaf(pact, f.clock())
		chain = [][]byte{leaf.DER, id.Root, i.AuthorityRoot()}
	}
	if err != nil {
		return api.SignedReport{}, err
	}
	raw, err := json.Marshal(report)
	if err != nil {
		return api.SignedReport{}, err
	}
	digest := sha256.Sum256(api.ReportMessage(raw, request.Digest()))
	signature, err := ecdsa.SignASN1(rand.Reader, leaf.Key, digest[:])
	return api.SignedReport{Report: raw, Signature: signature, Chain: chain}, err
}

// reporterOf are the keys under which a report for a group is signed: those of the roster
// that it is for, unless it was spoilt.
func (f *fake) reporterOf(p policy.Approved, request api.CertificateRequest, report api.Report) *identity.GroupKeys {
	id := report.Identity
	if p.PactOf(id) == nil {
		id = p.Pact(request.Group).ID()
	}
	if f.faults.groupSecret != "" {
		return groupKeysOf(f.faults.groupSecret, id)
	}
	return groupKeysOf(f.secret, id)
}

// ahead is a clock that runs ahead of this machine's.
func ahead(d time.Duration) func() time.Time {
	return func() time.Time { return time.Now().Add(d) }
}

type unavailable struct{}

func (unavailable) ServeHTTP(w http.ResponseWriter, _ *http.Request) {
	api.ProblemOf(wire.Refuse(wire.Unavailable, "authority", "", "")).Write(w)
}
