// Package unittest provides a trust domain with a fake authority that can misbehave, for tests
// of package unit and of packages that use units. Only tests import it.
package unittest

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
	"github.com/cohort-tee/cohort/policy/policyfile"
)

// World is a trust domain with the keys of its authority.
type World struct {
	*testworld.World
	AuthorityKeys *identity.Keys
}

// New makes a World whose genesis policy sets this lifetime of certificates.
func New(t testing.TB, life string) *World {
	t.Helper()
	w := &World{World: testworld.New(t), AuthorityKeys: newKeys()}
	w.FoundAs(w.AuthorityKeys.RootDigest(), life)
	return w
}

// FoundAs starts the history with a policy that names root as the authority root.
func (w *World) FoundAs(root wire.Digest, life string) {
	w.SignFirst(root, strings.ReplaceAll(tasks, "LIFE", life))
}

// Edited returns a World with the history of w and one more policy, in which new replaces old.
// It does not change w.
func (w *World) Edited(old, new string) *World {
	w.T.Helper()
	return &World{World: w.NextPolicy(old, new), AuthorityKeys: w.AuthorityKeys}
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

// AuthorityRoot returns the certificate of the authority root.
func (w *World) AuthorityRoot() *x509.Certificate {
	i := testworld.Must(w.AuthorityKeys.Issuer(w.Policy(), groupsOf(OwnSecret, w.Policy())...))
	return testworld.Must(x509.ParseCertificate(i.AuthorityRoot()))
}

// Authority is a fake authority that can misbehave. Without Faults it makes all checks that
// units rely on. It has no store.
type Authority struct {
	*httptest.Server
	world *World
	keys  *identity.Keys

	Mu       sync.Mutex
	Steps    []api.HistoryEntry
	Requests []api.CertificateRequest
	Left     []api.LeaveRequest
	Clock    func() time.Time
	Secret   string // secret from which group roots are derived
	Faults   Faults
	Spread   time.Duration // spread in proved heads
	moved    chan struct{} // closed by Set, to end waiting polls
}

// Faults change the responses of a fake authority, in the order in which it makes them.
type Faults struct {
	History func(*api.History)
	Party   []attest.Digest               // party keys used for a unit in a group, in place of those in its request
	Deaf    bool                          // ignores pushed histories
	Request func(*api.CertificateRequest) // changes the request before the fake handles it
	Report  func(*api.Report)
	Signed  func(*api.SignedReport)
	Sealed  func(*api.SealedReport)
	// For reports about a group: the group root in the sealed report, the secret of the signer,
	// and whether the authority's own leaf signs them.
	GroupRoot   func(*wire.Digest)
	GroupSecret string
	DomainSigns bool
	Refusal     error        // returned in place of a report
	Serve       http.Handler // handles all requests in place of the fake
}

// Authority starts a fake authority with these keys for the history of w.
func (w *World) Authority(keys *identity.Keys) *Authority {
	f := &Authority{world: w, keys: keys, Secret: OwnSecret, Steps: w.Entries(), Clock: time.Now, Spread: time.Second, moved: make(chan struct{})}
	f.Server = httptest.NewUnstartedServer(f)
	f.Listener = tls.NewListener(f.Listener, identity.ServerTLS(f.certificate))
	f.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, 0)
	f.Start()
	f.URL = "https://" + f.Listener.Addr().String()
	w.T.Cleanup(f.Close)
	return f
}

// Set changes the fake while it serves, and ends waiting polls.
func (f *Authority) Set(change func(*Authority)) {
	f.Mu.Lock()
	defer f.Mu.Unlock()
	change(f)
	close(f.moved)
	f.moved = make(chan struct{})
}

// Issuer returns an issuer with the fake's keys under its newest policy, even if the policy
// names a different root.
func (f *Authority) Issuer() (*identity.Issuer, policy.Approved) {
	h, err := history.History{}.Extend(f.world.Genesis(), f.Steps)
	if err != nil {
		panic(err)
	}
	i, err := f.keys.Issuer(h.Policy(), groupsOf(f.Secret, h.Policy())...)
	if err != nil {
		panic(err)
	}
	return i, h.Policy()
}

func (f *Authority) certificate() (*tls.Certificate, error) {
	f.Mu.Lock()
	defer f.Mu.Unlock()
	i, _ := f.Issuer()
	leaf, err := i.AuthorityLeaf(f.Clock())
	return &tls.Certificate{Certificate: [][]byte{leaf.DER, i.AuthorityRoot()}, PrivateKey: leaf.Key}, err
}

// prove returns the signed policy head of p.
func (f *Authority) prove(p policy.Approved) []byte {
	i, _ := f.Issuer()
	leaf, err := i.AuthorityLeaf(f.Clock())
	if err != nil {
		panic(err)
	}
	head, err := identity.ProveHead(identity.HeadClaim{Head: p.PolicyHead(), Steps: uint64(len(p.Heads())), At: f.Clock(), Spread: f.Spread}, leaf)
	if err != nil {
		panic(err)
	}
	return head
}

// wait blocks a poll of the newest head until the fake changes.
func (f *Authority) wait(r *http.Request) {
	poll, named, err := api.ParsePollQuery(r.URL.Query())
	if r.URL.Path != api.PathHistory || !named || err != nil {
		return
	}
	timer := time.NewTimer(poll.Wait)
	defer timer.Stop()
	f.Mu.Lock()
	_, p := f.Issuer()
	moved := f.moved
	f.Mu.Unlock()
	if p.PolicyHead() != poll.Head {
		return
	}
	select {
	case <-moved:
	case <-timer.C:
	case <-r.Context().Done():
	}
}

func (f *Authority) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	f.wait(r)
	f.Mu.Lock()
	defer f.Mu.Unlock()
	if f.Faults.Serve != nil {
		f.Faults.Serve.ServeHTTP(w, r)
		return
	}
	body, err := f.answer(r)
	if err != nil {
		api.ProblemOf(err).Write(w)
		return
	}
	json.NewEncoder(w).Encode(body)
}

func (f *Authority) answer(r *http.Request) (any, error) {
	_, p := f.Issuer()
	switch r.Method + " " + r.URL.Path {
	case "GET " + api.PathHistory:
		from, err := strconv.Atoi(r.URL.Query().Get("from"))
		if poll, named, _ := api.ParsePollQuery(r.URL.Query()); named {
			if from, err = slices.Index(p.Heads(), poll.Head)+1, nil; from == 0 {
				return nil, wire.Refuse(wire.Behind, "head", poll.Head, p.PolicyHead())
			}
		}
		h := api.History{From: from, Entries: f.Steps[min(from, len(f.Steps)):], Head: p.PolicyHead(), ProvedHead: f.prove(p)}
		apply(f.Faults.History, &h)
		return h, err
	case "POST " + api.PathHistory:
		var pushed api.History
		err := json.NewDecoder(r.Body).Decode(&pushed)
		if all := append(slices.Clone(f.Steps[:pushed.From]), pushed.Entries...); !f.Faults.Deaf && len(all) > len(f.Steps) {
			f.Steps = all
		}
		return api.Policy{}, err
	case "POST " + api.PathChallenge:
		return api.Challenge{Nonce: []byte(rand.Text())}, nil
	case "POST " + api.PathLeave:
		var l api.LeaveRequest
		err := json.NewDecoder(r.Body).Decode(&l)
		f.Left = append(f.Left, l)
		return api.LeaveResponse{Unit: l.Unit}, err
	case "POST " + api.PathCertificates:
		var request api.CertificateRequest
		if err := json.NewDecoder(r.Body).Decode(&request); err != nil {
			return nil, err
		}
		f.Requests = append(f.Requests, request)
		return f.certify(request)
	}
	return nil, wire.Refuse(wire.BadRequest, "path", r.URL.Path, "")
}

func (f *Authority) certify(request api.CertificateRequest) (any, error) {
	if f.Faults.Refusal != nil {
		return nil, f.Faults.Refusal
	}
	apply(f.Faults.Request, &request)
	report, err := f.report(request)
	if err != nil {
		return nil, err
	}
	apply(f.Faults.Report, &report)
	signed, err := f.sign(request, report)
	if err != nil {
		return nil, err
	}
	apply(f.Faults.Signed, &signed)
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
		_, p := f.Issuer()
		groupRoot = f.reporterOf(p, request, report).RootDigest()
	}
	apply(f.Faults.GroupRoot, &groupRoot)
	enc, sender, err := hpke.NewSender(public, hpke.HKDFSHA256(), hpke.AES256GCM(), api.SealInfo(request, groupRoot))
	if err != nil {
		return nil, err
	}
	ciphertext, err := sender.Seal(nil, plain)
	sealed := api.SealedReport{GroupRoot: groupRoot, Encapsulated: enc, Ciphertext: ciphertext}
	apply(f.Faults.Sealed, &sealed)
	return sealed, err
}

func apply[T any](change func(*T), v *T) {
	if change != nil {
		change(v)
	}
}

// report appraises the request and fills a report.
func (f *Authority) report(request api.CertificateRequest) (api.Report, error) {
	i, p := f.Issuer()
	if !p.Knows(request.Head) {
		return api.Report{}, wire.Refuse(wire.Behind, "head", request.Head, p.PolicyHead())
	}
	var evidence attest.Evidence
	if err := json.Unmarshal(request.Evidence, &evidence); err != nil {
		return api.Report{}, err
	}
	result, err := attesttest.Verifier().Appraise(attest.Question{
		Evidence: evidence, ReportData: attest.BindReportData(wire.LabelIssue, request.Bound()...), Rules: p.Rules(), At: f.Clock(),
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
		IdentityCA: id.Root, Cross: id.Cross, Authority: i.AuthorityRoot(), Env: grant.Release.Env, Head: p.PolicyHead(), ProvedHead: f.prove(p), Rings: Rings(f.Clock()),
	}
	return report, f.leaves(i, grant, request, &report)
}

// leaves issues the leaves that the key mode requires.
func (f *Authority) leaves(i *identity.Issuer, grant policy.Grant, request api.CertificateRequest, report *api.Report) error {
	signing, err := x509.ParsePKIXPublicKey(request.SigningKey)
	if err != nil {
		return err
	}
	unit, err := i.UnitLeaf(grant, signing, f.Clock())
	if err != nil {
		return err
	}
	var leaf identity.Leaf
	if report.KeyMode == string(policyfile.Shared) {
		leaf, err = i.SharedLeaf(grant, f.Clock())
		if err == nil {
			report.LeafKey, err = x509.MarshalPKCS8PrivateKey(leaf.Key)
		}
	} else {
		key, csrErr := identity.CSRKey(request.CSR)
		if csrErr != nil {
			return csrErr
		}
		leaf, err = i.UnitTLSLeaf(grant, key, wire.UnitIDOf(request.SigningKey), f.Clock())
	}
	report.Unit, report.Leaf = unit.DER, leaf.DER
	report.RenewAfter, report.RenewBefore, report.NotAfter = leaf.RenewAfter, leaf.RenewBefore, leaf.NotAfter
	return err
}

func (f *Authority) sign(request api.CertificateRequest, report api.Report) (api.SignedReport, error) {
	i, p := f.Issuer()
	leaf, err := i.AuthorityLeaf(f.Clock())
	chain := [][]byte{leaf.DER, i.AuthorityRoot()}
	if request.Group != "" && !f.Faults.DomainSigns {
		keys := f.reporterOf(p, request, report)
		if i, err = f.keys.Issuer(p, keys); err != nil {
			return api.SignedReport{}, err
		}
		pact := p.GroupByID(keys.Roster())
		id, _ := i.GroupIdentity(pact)
		leaf, err = i.GroupAuthorityLeaf(pact, f.Clock())
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

// reporterOf returns the group keys under which a report about a group is signed: those of the
// report's roster, or of the newest roster if a fault changed the report.
func (f *Authority) reporterOf(p policy.Approved, request api.CertificateRequest, report api.Report) *identity.GroupKeys {
	id := report.Identity
	if p.GroupByID(id) == nil {
		id = p.GroupByName(request.Group).ID()
	}
	if f.Faults.GroupSecret != "" {
		return GroupKeysOf(f.Faults.GroupSecret, id)
	}
	return GroupKeysOf(f.Secret, id)
}

// Ahead returns a clock that is d ahead of this machine's clock.
func Ahead(d time.Duration) func() time.Time {
	return func() time.Time { return time.Now().Add(d) }
}

// Unavailable responds like an authority that is shutting down.
type Unavailable struct{}

func (Unavailable) ServeHTTP(w http.ResponseWriter, _ *http.Request) {
	api.ProblemOf(wire.Refuse(wire.Unavailable, "authority", "", "")).Write(w)
}

// Asked returns the number of certificate requests that the fake received.
func (f *Authority) Asked() int {
	f.Mu.Lock()
	defer f.Mu.Unlock()
	return len(f.Requests)
}

// Step makes the fake adopt the history of w.
func (f *Authority) Step(w *World) {
	f.Set(func(f *Authority) { f.Steps = w.Entries() })
}
