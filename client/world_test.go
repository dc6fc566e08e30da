package client_test

import (
	"context"
	"crypto/ed25519"
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
	"github.com/cohort-tee/cohort/internal/wire"
	"github.com/cohort-tee/cohort/policy"
	"golang.org/x/crypto/ssh"
)

const serverName = "scoring.clinic.example"

// world is an authority of one trust domain, played with the real packages
// below the client. Its faults are for one test each.
type world struct {
	t       testing.TB
	owner   ssh.Signer
	keys    *identity.Keys
	vendor  *attesttest.Vendor
	life    time.Duration
	mode    policy.KeyMode
	genesis attest.Digest
	url     string
	stop    func()

	mu       sync.Mutex // guards all below
	device   *attesttest.Device
	entries  []api.HistoryEntry
	approved policy.Approved
	issuer   *identity.Issuer
	limit    int // steps it still has; a rolled-back database
	tamper   func(*api.TrustAnswer)
	pushed   int
	stubborn bool // takes no history that is pushed
	hollow   bool // gives no history
	asked    int  // trust answers given
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

func newSigner() ssh.Signer {
	_, key, err := ed25519.GenerateKey(nil)
	if err != nil {
		panic(err)
	}
	return must(ssh.NewSignerFromKey(key))
}

// newWorld makes an authority with one policy of the releases given.
func newWorld(t testing.TB, releases ...string) *world {
	t.Helper()
	return newWorldOf(t, time.Hour, releases...)
}

func newWorldOf(t testing.TB, life time.Duration, releases ...string) *world {
	t.Helper()
	w := &world{t: t, owner: newSigner(), keys: must(identity.Derive(identity.NewSecret())),
		vendor: attesttest.NewVendor(), life: life, mode: policy.Shared, limit: 1 << 20}
	w.device = w.vendor.Chip().Attester(attesttest.Measure("authority"))
	w.adopt(releases...)
	l := must(net.Listen("tcp", "127.0.0.1:0"))
	w.url = "https://" + l.Addr().String()
	server := &http.Server{Handler: w.handler(), TLSConfig: identity.ServerTLS(w.certificate), ErrorLog: quiet}
	go server.ServeTLS(l, "", "")
	w.stop = func() { server.Close() }
	t.Cleanup(w.stop)
	return w
}

func (w *world) text(releases []string) string {
	line := strings.TrimSpace(string(ssh.MarshalAuthorizedKey(w.owner.PublicKey())))
	previous := ""
	if w.approved.OK() {
		previous = w.approved.Document().Digest().String()
	}
	var b strings.Builder
	fmt.Fprintf(&b, `schema = "cohort/policy/v1"
trust_domain = "clinic.example"
sequence = %d
previous = %q
created = %s
development = true
[owners]
quorum = 1
approve_within = "24h"
delay = "0s"
keys = [ { name = "ana", ssh = %q } ]
[platform.soft]
roots = [%q]
[authority]
root = %q
reference = [ { platform = "soft", program = %q } ]
[task.other]
key_mode = "shared"
names = ["other.clinic.example"]
[task.other.release."1"]
reference = [ { platform = "soft", program = %q } ]
[task.scoring]
key_mode = %q
names = [%q]
life = %q
`, len(w.entries)+1, previous, time.Now().UTC().Add(-time.Hour).Format(time.RFC3339), line, w.vendor.Root(), w.keys.Root(),
		program("authority"), program("other"), w.mode, serverName, w.life)
	for _, release := range releases {
		fmt.Fprintf(&b, "[task.scoring.release.%q]\nreference = [ { platform = \"soft\", program = %q } ]\n", release, program("scoring "+release))
	}
	return b.String()
}

func program(name string) string { return wire.Sum([]byte(name)).String() }

// adopt makes a policy with these releases the one in force.
func (w *world) adopt(releases ...string) {
	w.t.Helper()
	w.mu.Lock()
	defer w.mu.Unlock()
	raw := []byte(w.text(releases))
	step := policy.Step{Policy: raw, Signatures: []string{must(policy.Sign(w.owner, policy.ForPolicy, raw))}}
	if len(w.entries) == 0 {
		w.genesis = wire.Sum(raw)
		w.approved = must(policy.Genesis(w.genesis, step))
	} else {
		w.approved = must(w.approved.Next(step))
	}
	w.entries = append(w.entries, api.HistoryEntry{Policy: step.Policy, Signatures: step.Signatures})
	w.issuer = must(w.keys.Issuer(w.approved))
}

func (w *world) policy() (policy.Approved, *identity.Issuer) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.approved, w.issuer
}

// certificate is the authority's own.
func (w *world) certificate() (*tls.Certificate, error) {
	_, issuer := w.policy()
	leaf, err := issuer.Authority(time.Now())
	if err != nil {
		return nil, err
	}
	return &tls.Certificate{Certificate: [][]byte{leaf.DER, issuer.AuthorityRoot()}, PrivateKey: leaf.Key}, nil
}

// shared is the leaf that every unit of a release holds at a time.
func (w *world) shared(task, name string, at time.Time) *tls.Certificate {
	approved, issuer := w.policy()
	device := w.vendor.Chip().Attester(attesttest.Measure(name))
	data := attest.Bind(wire.LabelIssue)
	evidence := must(device.Attest(context.Background(), data))
	result := must(attesttest.Verifier().Appraise(attest.Question{Evidence: evidence, ReportData: data, Rules: approved.Rules(), At: at}))
	grant := must(approved.Admit(task, result))
	leaf := must(issuer.Shared(grant, at))
	cross := must(issuer.Identity(task, grant.Release.Name)).Cross
	return &tls.Certificate{Certificate: [][]byte{leaf.DER, cross}, PrivateKey: leaf.Key}
}

func (w *world) handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET "+api.PathHistory, w.history)
	mux.HandleFunc("POST "+api.PathHistory, w.push)
	mux.HandleFunc("GET "+api.PathTrust, w.trust)
	return mux
}

func (w *world) history(rw http.ResponseWriter, r *http.Request) {
	from := must(strconv.Atoi(r.FormValue("from")))
	w.mu.Lock()
	defer w.mu.Unlock()
	approved, entries := w.visible()
	answer := api.History{From: from, Head: approved.Head()}
	if w.hollow {
		writeJSON(rw, answer)
		return
	}
	if from < len(entries) {
		answer.Entries = entries[from:]
	}
	writeJSON(rw, answer)
}

// visible is the history of the database as it stands.
func (w *world) visible() (policy.Approved, []api.HistoryEntry) {
	entries := w.entries[:min(w.limit, len(w.entries))]
	var steps []policy.Step
	for _, e := range entries {
		steps = append(steps, policy.Step{Policy: e.Policy, Signatures: e.Signatures})
	}
	return must(policy.Replay(w.genesis, steps)), entries
}

func (w *world) visibleHead() attest.Digest {
	w.mu.Lock()
	defer w.mu.Unlock()
	approved, _ := w.visible()
	return approved.Head()
}

func (w *world) push(rw http.ResponseWriter, r *http.Request) {
	var h api.History
	must(0, json.NewDecoder(r.Body).Decode(&h))
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
	nonce := must(hex.DecodeString(r.FormValue("nonce")))
	w.mu.Lock()
	defer w.mu.Unlock()
	w.asked++
	approved, entries := w.visible()
	root, head := w.keys.Root(), approved.Head()
	evidence := must(w.device.Attest(r.Context(), attest.Bind(wire.LabelTrust, nonce, root[:], head[:])))
	answer := api.TrustAnswer{
		Authority: w.issuer.AuthorityRoot(),
		History:   api.History{Entries: entries, Head: head},
		Evidence:  must(json.Marshal(evidence)),
	}
	for _, task := range approved.Document().TaskNames() {
		for _, release := range approved.Document().Tasks[task].ReleaseNames() {
			i := must(w.issuer.Identity(task, release))
			if task == r.FormValue("task") || i.ID.String() == r.FormValue("id") {
				answer.Identities = append(answer.Identities, api.TrustIdentity{Task: task, Release: release, ID: i.ID, Root: i.Root, Cross: i.Cross})
			}
		}
	}
	if w.tamper != nil {
		w.tamper(&answer)
	}
	writeJSON(rw, answer)
}

func writeJSON(rw http.ResponseWriter, v any) {
	rw.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(rw).Encode(v)
}

// config is what a client of the world pins.
func (w *world) config() client.TrustConfig {
	return client.TrustConfig{Authorities: []string{w.url}, Genesis: w.genesis, Task: "scoring", Verifier: attesttest.Verifier()}
}

// fetch is trust that must be had.
func (w *world) fetch(edit func(*client.TrustConfig)) *client.Trust {
	w.t.Helper()
	config := w.config()
	if edit != nil {
		edit(&config)
	}
	trust, err := client.FetchTrust(context.Background(), config)
	if err != nil {
		w.t.Fatal(err)
	}
	return trust
}

// client makes a client of the replicas.
func (w *world) client(replicas ...*replica) *client.Client {
	w.t.Helper()
	return w.clientOf(client.Config{}, replicas...)
}

func (w *world) clientOf(config client.Config, replicas ...*replica) *client.Client {
	w.t.Helper()
	for _, r := range replicas {
		config.Addresses = append(config.Addresses, r.address)
	}
	if config.Trust == nil {
		config.Trust = w.fetch(nil)
	}
	c, err := client.New(config)
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(c.Close)
	return c
}

// replicas are n units of a release.
func (w *world) replicas(n int, release string) []*replica {
	var all []*replica
	for range n {
		all = append(all, newReplica(w.t, func() *tls.Certificate { return w.shared("scoring", "scoring "+release, time.Now()) }))
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
