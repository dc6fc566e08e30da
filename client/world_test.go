package client_test

import (
	"context"
	"crypto/tls"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/attest/attesttest"
	"github.com/cohort-tee/cohort/client"
	"github.com/cohort-tee/cohort/identity"
	"github.com/cohort-tee/cohort/internal/api"
	"github.com/cohort-tee/cohort/internal/testworld"
	"github.com/cohort-tee/cohort/internal/trustresponse"
	"github.com/cohort-tee/cohort/internal/wire"
	"github.com/cohort-tee/cohort/policy"
)

const serverName = "scoring.clinic.example"

// world is an authority of one trust domain, built from the real packages below the client.
// Each of its faults serves one test.
type world struct {
	*testworld.World // guarded by mu once it serves
	keys             *identity.Keys
	life             time.Duration
	url              string
	stop             func()

	mu       sync.Mutex // guards the fields below
	device   *attesttest.Device
	tasks    string // of the newest policy
	approved policy.Approved
	issuer   *identity.Issuer
	limit    int // steps that it still has, as with a rolled-back database
	tamper   func(*api.TrustResponse)
	pushed   int
	stubborn bool                // ignores pushed histories
	hollow   bool                // returns an empty history
	endorsed attest.Endorsements // beside the authority's evidence
	asked    int                 // trust responses sent
	polls    int                 // polls received
	moved    chan struct{}       // closed by the next step
}

// newWorld starts an authority with one policy of the given releases.
func newWorld(t testing.TB, releases ...string) *world {
	t.Helper()
	return newWorldOf(t, time.Hour, releases...)
}

func newWorldOf(t testing.TB, life time.Duration, releases ...string) *world {
	t.Helper()
	w := &world{World: testworld.New(t), keys: testworld.Must(identity.Derive(identity.NewSecret())), life: life, limit: 1 << 20}
	w.device = w.Device("authority")
	w.adopt(releases...)
	l := testworld.Must(net.Listen("tcp", "127.0.0.1:0"))
	w.url = "https://" + l.Addr().String()
	server := &http.Server{Handler: w.handler(), TLSConfig: identity.ServerTLS(w.certificate), ErrorLog: quiet}
	go server.ServeTLS(l, "", "")
	w.stop = func() { server.Close() }
	t.Cleanup(w.stop)
	return w
}

// tasksOf returns the policy's table of a task with these releases, and of another task.
func (w *world) tasksOf(releases []string) string {
	var b strings.Builder
	fmt.Fprintf(&b, `
[task.other]
key_mode = "shared"
names = ["other.clinic.example"]
[task.other.release."1"]
reference = [ { platform = "soft", program = "other" } ]

[task.scoring]
key_mode = "shared"
names = [%q]
lifetime = %q
`, serverName, w.life)
	for _, release := range releases {
		fmt.Fprintf(&b, "[task.scoring.release.%q]\nreference = [ { platform = \"soft\", program = \"scoring %s\" } ]\n", release, release)
		if strings.HasSuffix(release, "-dynamic") {
			b.WriteString("dynamic = true\n")
		}
	}
	return testworld.EditPolicy(w.T, b.String())
}

// adopt puts a policy with these releases in force.
func (w *world) adopt(releases ...string) {
	w.T.Helper()
	w.mu.Lock()
	defer w.mu.Unlock()
	tasks := w.tasksOf(releases)
	if len(w.Steps) == 0 {
		w.SignFirst(w.keys.RootDigest(), tasks)
	} else {
		w.World = w.NextPolicy(w.tasks, tasks)
	}
	w.tasks, w.approved = tasks, w.Policy()
	w.issuer = testworld.Must(w.keys.Issuer(w.approved))
	if w.moved != nil {
		close(w.moved)
	}
	w.moved = make(chan struct{})
}

// certificate returns the authority's own certificate.
func (w *world) certificate() (*tls.Certificate, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	leaf, err := w.issuer.AuthorityLeaf(time.Now())
	if err != nil {
		return nil, err
	}
	return &tls.Certificate{Certificate: [][]byte{leaf.DER, w.issuer.AuthorityRoot()}, PrivateKey: leaf.Key}, nil
}

// shared returns the leaf that every unit of a release has at a time.
func (w *world) shared(task, program string, at time.Time) *tls.Certificate {
	w.mu.Lock()
	defer w.mu.Unlock()
	grant := w.Grant(w.approved, task, program, at)
	leaf := testworld.Must(w.issuer.SharedLeaf(grant, at))
	cross := testworld.Must(w.issuer.Identity(task, grant.Release.Name)).Cross
	return &tls.Certificate{Certificate: [][]byte{leaf.DER, cross}, PrivateKey: leaf.Key}
}

func (w *world) handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET "+api.PathHistory, w.history)
	mux.HandleFunc("POST "+api.PathHistory, w.push)
	mux.HandleFunc("GET "+api.PathTrust, w.trust)
	return mux
}

// wait delays a poll until there is a step after its head.
func (w *world) wait(r *http.Request) {
	testworld.Must(0, r.ParseForm())
	poll, named, err := api.ParsePollQuery(r.Form)
	if !named || err != nil {
		return
	}
	timer := time.NewTimer(poll.Wait)
	defer timer.Stop()
	w.mu.Lock()
	moved := w.moved
	w.polls++
	w.mu.Unlock()
	if w.visibleHead() != poll.Head {
		return
	}
	select {
	case <-moved:
	case <-timer.C:
	case <-r.Context().Done():
	}
}

func (w *world) history(rw http.ResponseWriter, r *http.Request) {
	w.wait(r)
	w.mu.Lock()
	defer w.mu.Unlock()
	approved, entries := w.visible()
	from, _ := strconv.Atoi(r.FormValue("from"))
	if poll, named, _ := api.ParsePollQuery(r.Form); named {
		if from = slices.Index(approved.Heads(), poll.Head) + 1; from == 0 {
			api.ProblemOf(wire.Refuse(wire.Behind, "head", poll.Head, approved.PolicyHead())).Write(rw)
			return
		}
	}
	leaf := testworld.Must(w.issuer.AuthorityLeaf(time.Now()))
	response := api.History{From: from, Head: approved.PolicyHead(), ProvedHead: testworld.Must(identity.ProveHead(identity.HeadClaim{
		Head: approved.PolicyHead(), Steps: uint64(len(approved.Heads())), At: time.Now(), Spread: time.Second,
	}, leaf))}
	if w.hollow {
		writeJSON(rw, response)
		return
	}
	if from < len(entries) {
		response.Entries = entries[from:]
	}
	writeJSON(rw, response)
}

// visible returns the history that the database contains.
func (w *world) visible() (policy.Approved, []api.HistoryEntry) {
	steps := w.Steps[:min(w.limit, len(w.Steps))]
	return testworld.Must(policy.Replay(w.Genesis(), steps)), testworld.Entries(steps)
}

func (w *world) visibleHead() attest.Digest {
	w.mu.Lock()
	defer w.mu.Unlock()
	approved, _ := w.visible()
	return approved.PolicyHead()
}

func (w *world) push(rw http.ResponseWriter, r *http.Request) {
	var h api.History
	testworld.Must(0, json.NewDecoder(r.Body).Decode(&h))
	w.mu.Lock()
	defer w.mu.Unlock()
	w.pushed++
	if w.stubborn {
		writeJSON(rw, api.Policy{})
		return
	}
	w.limit = max(w.limit, len(h.Entries))
	writeJSON(rw, api.Policy{})
}

func (w *world) trust(rw http.ResponseWriter, r *http.Request) {
	nonce := testworld.Must(hex.DecodeString(r.FormValue("nonce")))
	w.mu.Lock()
	defer w.mu.Unlock()
	w.asked++
	approved, entries := w.visible()
	root, head := w.keys.RootDigest(), approved.PolicyHead()
	claim := trustresponse.Claim{Genesis: w.Genesis(), Root: root, Head: head, Steps: uint64(len(entries)), At: time.Now(), Nonce: nonce}
	evidence := testworld.Must(json.Marshal(testworld.Must(w.device.Attest(r.Context(), claim.ReportData())).WithEndorsements(w.endorsed)))
	claim.Evidence = wire.Sum(evidence)
	response := api.TrustResponse{
		Authority: w.issuer.AuthorityRoot(),
		History:   api.History{From: len(entries), Entries: []api.HistoryEntry{}, Head: head},
		Evidence:  evidence,
		Statement: testworld.Must(trustresponse.SignStatement(claim, testworld.Must(w.issuer.AuthorityLeaf(claim.At)))),
	}
	for _, task := range approved.Document().TaskNames() {
		for _, release := range approved.Document().Tasks[task].ReleaseNames() {
			i := testworld.Must(w.issuer.Identity(task, release))
			if task == r.FormValue("task") || i.ID.String() == r.FormValue("id") {
				response.Identities = append(response.Identities, api.TrustIdentity{Task: task, Release: release, ID: i.ID, Root: i.Root, Cross: i.Cross})
			}
		}
	}
	if w.tamper != nil {
		w.tamper(&response)
	}
	writeJSON(rw, response)
}

func writeJSON(rw http.ResponseWriter, v any) {
	rw.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(rw).Encode(v)
}

// config returns the pins of the world's clients.
func (w *world) config() client.TrustConfig {
	return client.TrustConfig{Authorities: []string{w.url}, Genesis: w.Genesis(), Task: "scoring", Verifier: attesttest.Verifier()}
}

// fetch fetches trust, and fails the test on an error.
func (w *world) fetch(edit func(*client.TrustConfig)) *client.Trust {
	w.T.Helper()
	config := w.config()
	if edit != nil {
		edit(&config)
	}
	trust, err := client.FetchTrust(context.Background(), config)
	if err != nil {
		w.T.Fatal(err)
	}
	return trust
}

// client returns a client of the replicas.
func (w *world) client(replicas ...*replica) *client.Client {
	w.T.Helper()
	return w.clientOf(client.Config{}, replicas...)
}

func (w *world) clientOf(config client.Config, replicas ...*replica) *client.Client {
	w.T.Helper()
	for _, r := range replicas {
		config.Addresses = append(config.Addresses, r.address)
	}
	if config.Trust == nil {
		config.Trust = w.fetch(nil)
	}
	c, err := client.New(config)
	if err != nil {
		w.T.Fatal(err)
	}
	w.T.Cleanup(c.Close)
	return c
}

// replicas returns n units of a release.
func (w *world) replicas(n int, release string) []*replica {
	var all []*replica
	for range n {
		all = append(all, newReplica(w.T, func() *tls.Certificate { return w.shared("scoring", "scoring "+release, time.Now()) }))
	}
	return all
}

func ids(trust *client.Trust) []string {
	var all []string
	for _, i := range trust.Identities() {
		all = append(all, i.Task+"/"+i.Release)
	}
	slices.Sort(all)
	return all
}
