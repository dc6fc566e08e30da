package client_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/client"
	"github.com/cohort-tee/cohort/identity"
	"github.com/cohort-tee/cohort/internal/api"
	"github.com/cohort-tee/cohort/internal/testworld"
	"github.com/cohort-tee/cohort/internal/trustresponse"
	"github.com/cohort-tee/cohort/internal/wire"
)

// relay is a gateway that passes trust and history on to an authority, and changes nothing.
type relay struct {
	*httptest.Server
	roots *x509.CertPool // of its own certificate
}

// newRelay starts a relay, with wrap around its handler.
func newRelay(t *testing.T, authority string, wrap func(http.Handler) http.Handler) relay {
	t.Helper()
	to := testworld.Must(url.Parse(authority))
	pass := &httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) {
			r.SetURL(to)
			r.Out.URL.Path = map[string]string{wire.PathHistory: api.PathHistory, wire.PathTrust: api.PathTrust}[r.In.URL.Path]
		},
		Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, DisableKeepAlives: true},
		ErrorLog:  quiet,
	}
	var h http.Handler = pass
	if wrap != nil {
		h = wrap(h)
	}
	r := relay{Server: httptest.NewUnstartedServer(h), roots: x509.NewCertPool()}
	r.Config.ErrorLog = quiet
	r.StartTLS()
	r.roots.AddCert(r.Certificate())
	t.Cleanup(r.Close)
	return r
}

// get returns the body of one response of the relay.
func (r relay) get(path string) []byte {
	response := testworld.Must(r.Client().Get(r.URL + path))
	defer response.Body.Close()
	return testworld.Must(io.ReadAll(response.Body))
}

// trust requests trust in task scoring.
func (r relay) trust(query string) (response api.TrustResponse) {
	testworld.Must(0, json.Unmarshal(r.get(wire.PathTrust+"?task=scoring"+query), &response))
	return response
}

// newTrustStatementVector records what a gateway passes on of an authority with three policies.
func newTrustStatementVector(t *testing.T) trustVector {
	t.Helper()
	w := newWorld(t, "1")
	w.endorsed = attest.Endorsements{attest.RoleChecked: attest.FrameFetched([]attest.Fetched{{
		Role: "crl", Digest: wire.Sum([]byte("list")), At: time.Now().Add(-time.Hour), Until: time.Now().Add(time.Hour),
	}})}
	w.adopt("1", "2")
	gateway := newRelay(t, w.url, nil)
	older := gateway.trust("")
	w.adopt("2", "3")
	nonce := wire.Sum([]byte("nonce"))
	shared, fresh := gateway.trust(""), gateway.trust("&nonce="+hex.EncodeToString(nonce[:]))
	var whole api.History
	testworld.Must(0, json.Unmarshal(gateway.get(wire.PathHistory+"?from=0"), &whole))
	in := trustInput{
		At: timeOf(shared.Statement), Genesis: w.Genesis(), Task: "scoring", Trust: shared,
		Pages: []api.History{{From: 0, Entries: whole.Entries[:2], Head: whole.Head}, {From: 2, Entries: whole.Entries[2:], Head: whole.Head, ProvedHead: whole.ProvedHead}},
	}
	v := trustVector{
		Description: "what a client of task scoring fetches through a gateway: the policy history, and a trust response without a nonce (docs/spec/trust.md, section 7). also_accepted and refused change the input",
	}
	testworld.Must(0, json.Unmarshal(testworld.Must(json.Marshal(in)), &v.Input))
	v.Accepted = conclusions(testworld.Must(judgeTrust(t, v.Input)))
	s := &statementChanges{t: t, w: w, in: in, older: older, fresh: fresh, nonce: nonce[:]}
	v.AlsoAccepted, v.Refused = s.accepted(), s.refused()
	return v
}

// timeOf returns the time in a trust statement.
func timeOf(statement []byte) time.Time {
	fields := testworld.Must(wire.Unframe(wire.LabelTrustStatement, statement, 10))
	return time.Unix(int64(binary.BigEndian.Uint64(fields[4])), 0).UTC()
}

// statementChanges makes changes of a recorded input.
type statementChanges struct {
	t            *testing.T
	w            *world
	in           trustInput
	older, fresh api.TrustResponse // under the policy before, and for nonce
	nonce        []byte
}

// signed returns a statement that the authority would never sign, by the key of a leaf.
func (s *statementChanges) signed(leaf identity.Leaf, change func(*trustresponse.Claim)) []byte {
	c := trustresponse.Claim{
		Genesis: s.in.Genesis, Root: s.w.keys.RootDigest(), Head: s.in.Trust.History.Head, Steps: 3, At: s.in.At, Evidence: wire.Sum(s.in.Trust.Evidence),
	}
	change(&c)
	return testworld.Must(trustresponse.SignStatement(c, leaf))
}

func (s *statementChanges) leaf() identity.Leaf {
	return testworld.Must(s.w.issuer.AuthorityLeaf(s.in.At))
}

// evidence returns evidence of the authority for fields under a label.
func (s *statementChanges) evidence(label wire.Label, fields ...[]byte) json.RawMessage {
	e := testworld.Must(s.w.device.Attest(s.t.Context(), attest.BindReportData(label, fields...)))
	return testworld.Must(json.Marshal(e.WithEndorsements(s.w.endorsed)))
}

func (s *statementChanges) accepted() (list []trustRefused) {
	add := func(name string, pairs ...any) { addChange(&list, name, "", pairs...) }
	add("with a nonce", "/nonce", hex.EncodeToString(s.nonce), "/trust", s.fresh, "/at", timeOf(s.fresh.Statement))
	add("10 minutes later", "/at", s.in.At.Add(wire.TrustLifetime))
	add("5 minutes earlier", "/at", s.in.At.Add(-wire.MaxClockSkew))
	add("a log checkpoint of 512 bytes", "/trust/statement", s.signed(s.leaf(), func(c *trustresponse.Claim) { c.Checkpoint = make([]byte, 512) }))
	return list
}

func (s *statementChanges) refused() (list []trustRefused) {
	add := func(name string, reason wire.Reason, pairs ...any) { addChange(&list, name, reason, pairs...) }
	statement := func(name string, reason wire.Reason, change func(*trustresponse.Claim)) {
		add(name, reason, "/trust/statement", s.signed(s.leaf(), change))
	}
	good, other := s.in.Trust.Statement, newWorld(s.t, "2", "3")
	fields := testworld.Must(wire.Unframe(wire.LabelTrustStatement, good, 10))
	field := func(name string, reason wire.Reason, i int, content []byte) {
		changed := append([][]byte(nil), fields...)
		changed[i] = content
		add(name, reason, "/trust/statement", wire.Frame(wire.LabelTrustStatement, changed...))
	}
	root, head, at := s.w.keys.RootDigest(), s.in.Trust.History.Head, wire.Uint64(uint64(s.in.At.Unix()))

	add("no statement", wire.Malformed, "/trust/statement", nil)
	add("an empty statement", wire.Malformed, "/trust/statement", "")
	add("the proved head in place of the statement", wire.Malformed, "/trust/statement", s.in.Pages[1].ProvedHead)
	add("a byte after the statement", wire.Malformed, "/trust/statement", append(append([]byte(nil), good...), 0))
	add("a field more", wire.Malformed, "/trust/statement", wire.AppendField(good, nil))
	add("a statement cut short", wire.Malformed, "/trust/statement", good[:len(good)-1])
	field("a nonce of 16 bytes", wire.Malformed, 5, make([]byte, 16))
	field("a short digest", wire.Malformed, 6, fields[6][1:])
	field("no steps", wire.Malformed, 3, wire.Uint64(0))
	field("more steps than a history has", wire.Malformed, 3, wire.Uint64(wire.MaxHistory+1))
	field("a time beyond all", wire.Malformed, 4, wire.Uint64(1<<63))
	field("a time that overflows", wire.Malformed, 4, wire.Uint64(1<<64-1))
	field("a log checkpoint of 513 bytes", wire.Malformed, 7, make([]byte, 513))
	field("no certificate", wire.Malformed, 8, []byte("leaf"))
	field("too many bytes", wire.TooLarge, 9, make([]byte, wire.MaxTrustStatement))
	field("another genesis in the signed bytes", wire.BadSignature, 0, append([]byte{1}, fields[0][1:]...))
	field("another time in the signed bytes", wire.BadSignature, 4, wire.Uint64(uint64(s.in.At.Unix()-1)))
	field("another evidence in the signed bytes", wire.BadSignature, 6, append([]byte{1}, fields[6][1:]...))
	field("no signature", wire.BadSignature, 9, nil)
	field("a signature that was changed", wire.BadSignature, 9, append(append([]byte(nil), fields[9][:len(fields[9])-1]...), fields[9][len(fields[9])-1]^1))

	stranger := testworld.Must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
	impostor := s.leaf()
	impostor.Key = stranger
	same := func(*trustresponse.Claim) {}
	add("the signature of another key", wire.BadSignature, "/trust/statement", s.signed(impostor, same))
	add("signed by a unit", wire.WrongKind, "/trust/statement", s.signed(s.unit(), same))
	add("signed by another authority", wire.BadChain, "/trust/statement", s.signed(testworld.Must(other.issuer.AuthorityLeaf(s.in.At)), same))
	add("another authority root", wire.WrongRoot, "/trust/authority", other.issuer.AuthorityRoot())
	add("10 minutes and a second later", wire.Expired, "/at", s.in.At.Add(wire.TrustLifetime+time.Second))
	add("5 minutes and a second earlier", wire.ClockSkew, "/at", s.in.At.Add(-wire.MaxClockSkew-time.Second))
	statement("signed for 5 minutes and a second later", wire.ClockSkew, func(c *trustresponse.Claim) { c.At = c.At.Add(wire.MaxClockSkew + time.Second) })
	statement("signed after its leaf", wire.ClockSkew, func(c *trustresponse.Claim) { c.At = c.At.Add(2 * time.Hour) })
	add("two hours later", wire.ClockSkew, "/at", s.in.At.Add(2*time.Hour))
	statement("of another genesis", wire.WrongGenesis, func(c *trustresponse.Claim) { c.Genesis = attest.Digest{1} })
	statement("of another authority root", wire.WrongRoot, func(c *trustresponse.Claim) { c.Root = attest.Digest{1} })
	statement("of another head", wire.Behind, func(c *trustresponse.Claim) { c.Head = attest.Digest{1} })
	statement("of another number of steps", wire.Behind, func(c *trustresponse.Claim) { c.Steps = 4 })
	add("a response under the policy before", wire.Behind, "/trust", s.older)
	add("the head before beside the statement", wire.Behind, "/trust/history/head", s.older.History.Head)
	add("a step in the trust response", wire.Malformed, "/trust/history/entries", s.in.Pages[0].Entries[:1])
	add("a response for the nonce of another client", wire.BadNonce, "/trust", s.fresh, "/at", timeOf(s.fresh.Statement))
	add("a response without a nonce for a client that sent one", wire.BadNonce, "/nonce", hex.EncodeToString(s.nonce))
	add("a response for another nonce", wire.BadNonce, "/nonce", hex.EncodeToString(make([]byte, 32)), "/trust", s.fresh, "/at", timeOf(s.fresh.Statement))

	add("evidence for a nonce beside a statement without one", wire.BadDigest, "/trust/evidence", s.fresh.Evidence)
	add("evidence without a nonce beside a statement with one", wire.BadDigest, "/nonce", hex.EncodeToString(s.nonce), "/trust", s.fresh, "/trust/evidence", s.in.Trust.Evidence, "/at", timeOf(s.fresh.Statement))
	add("evidence under the policy before", wire.BadDigest, "/trust/evidence", s.older.Evidence)
	add("another checked", wire.BadDigest, "/trust/evidence", s.checkedAt(s.in.At))
	add("no checked", wire.BadDigest, "/trust/evidence", s.checkedAt(time.Time{}))
	sealed := func(name string, reason wire.Reason, evidence json.RawMessage, change func(*trustresponse.Claim), more ...any) {
		pairs := append([]any{"/trust/evidence", evidence, "/trust/statement", s.signed(s.leaf(), func(c *trustresponse.Claim) {
			c.Evidence = wire.Sum(evidence)
			change(c)
		})}, more...)
		add(name, reason, pairs...)
	}
	sealed("evidence that is no JSON of this form", wire.Malformed, json.RawMessage(`["application/vnd.cohort.soft-evidence"]`), same)
	sealed("evidence for a nonce, signed without one", wire.BadNonce, s.fresh.Evidence, same)
	sealed("evidence for an empty nonce", wire.BadNonce, s.evidence(wire.LabelTrust, nil, root[:], head[:]), same)
	sealed("evidence for the time, signed with a nonce", wire.BadNonce, s.in.Trust.Evidence, func(c *trustresponse.Claim) { c.Nonce = s.nonce }, "/nonce", hex.EncodeToString(s.nonce))
	sealed("evidence for a second earlier", wire.BadNonce, s.evidence(wire.LabelTimedTrust, root[:], head[:], wire.Uint64(uint64(s.in.At.Unix()-1))), same)
	sealed("evidence for another head", wire.BadNonce, s.evidence(wire.LabelTimedTrust, root[:], make([]byte, 32), at), same)
	sealed("evidence for another root", wire.BadNonce, s.evidence(wire.LabelTimedTrust, make([]byte, 32), head[:], at), same)
	stolen := testworld.Must(s.w.Device("scoring 2").Attest(s.t.Context(), attest.BindReportData(wire.LabelTimedTrust, root[:], head[:], at)))
	sealed("evidence of another program", wire.NotMeasured, testworld.Must(json.Marshal(stolen)), same)

	add("another genesis", wire.WrongGenesis, "/genesis", other.Genesis())
	add("a head without its proof", wire.Behind, "/pages/1/proved_head", nil)
	add("an empty page in place of the last", wire.Behind, "/pages/1/entries", []any{})
	add("a policy older than the user accepts", wire.Behind, "/min_sequence", 4)
	add("a task that policy does not have", wire.NotFound, "/task", "nosuch")
	add("no identity", wire.WrongIdentity, "/trust/identities", []any{})
	add("another release's identity root", wire.WrongIdentity, "/trust/identities/0/root", s.in.Trust.Identities[1].Root)
	add("a cross-certificate of another authority", wire.WrongGenesis, "/trust/identities/0/cross", testworld.Must(other.issuer.Identity("scoring", "2")).Cross)
	return list
}

// unit returns the leaf of a unit of task scoring, with its key.
func (s *statementChanges) unit() identity.Leaf {
	return testworld.Must(s.w.issuer.SharedLeaf(s.w.Grant(s.w.approved, "scoring", "scoring 2", s.in.At), s.in.At))
}

// checkedAt returns the evidence with another time in role checked, or without that role.
func (s *statementChanges) checkedAt(at time.Time) json.RawMessage {
	var e attest.Evidence
	testworld.Must(0, json.Unmarshal(s.in.Trust.Evidence, &e))
	if e.Endorsed = nil; !at.IsZero() {
		e.Endorsed = attest.Endorsements{attest.RoleChecked: attest.FrameFetched([]attest.Fetched{{Role: "crl", Digest: wire.Sum([]byte("list")), At: at, Until: at}})}
	}
	return testworld.Must(json.Marshal(e))
}

// config returns the pins of a client that knows this relay alone.
func (r relay) config(w *world) client.TrustConfig {
	c := w.config()
	c.Authorities, c.Gateways, c.GatewayCA = nil, []string{r.URL}, r.roots
	return c
}

// queries wraps a relay's handler so that the queries for trust are recorded.
type queries struct {
	mu  sync.Mutex
	all []url.Values
}

func (q *queries) wrap(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == wire.PathTrust {
			q.mu.Lock()
			q.all = append(q.all, r.URL.Query())
			q.mu.Unlock()
		}
		h.ServeHTTP(w, r)
	})
}

// nonces returns for each query so far whether it had a nonce, and forgets them.
func (q *queries) nonces() (had []bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for _, v := range q.all {
		had = append(had, v.Has("nonce"))
	}
	q.all = nil
	return had
}

// TestGatewaysAlone: a client that knows gateways alone asks for evidence that clients share,
// follows the policy, fetches the root of a new release and refuses a removed one.
func TestGatewaysAlone(t *testing.T) {
	w := newWorld(t, "1")
	var asked queries
	gateway := newRelay(t, w.url, asked.wrap)
	trust, err := client.FetchTrust(t.Context(), gateway.config(w))
	if err != nil {
		t.Fatal(err)
	}
	if got := asked.nonces(); !slices.Equal(got, []bool{false}) {
		t.Errorf("got requests with a nonce: %v, want one without", got)
	}
	one := w.replicas(1, "1")[0]
	leaf := w.shared("scoring", "scoring 1", time.Now())
	one.certificate = func() *tls.Certificate { return leaf }
	c := w.clientOf(client.Config{Trust: trust, Refresh: time.Hour}, one)
	get(t, c, "ok")
	watched(t, w)
	w.adopt("1", "2")
	testworld.Eventually(t, "the root of the new release is fetched", func() bool { return len(c.Trust().Identities()) == 2 })
	watched(t, w)
	w.adopt("2")
	testworld.Eventually(t, "the client follows policy", func() bool { return c.Stats().PolicyHead == w.visibleHead() })
	_, err = do(c, soon(t, testworld.Must(http.NewRequest("GET", "https://"+serverName+"/", nil))))
	testworld.Refused(t, err, wire.CutOff)
}

// TestRelayedAgain: a cache has a response from before the newest step, and one for longer than 10
// minutes. The client fetches trust all the same, with a nonce.
func TestRelayedAgain(t *testing.T) {
	w := newWorld(t, "1")
	var asked queries
	var mu sync.Mutex
	var kept []byte
	gateway := newRelay(t, w.url, func(h http.Handler) http.Handler {
		return asked.wrap(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
			if r.URL.Path != wire.PathTrust || r.URL.Query().Has("nonce") {
				h.ServeHTTP(rw, r)
				return
			}
			mu.Lock()
			defer mu.Unlock()
			if kept == nil {
				response := httptest.NewRecorder()
				h.ServeHTTP(response, r)
				kept = response.Body.Bytes()
			}
			_, _ = rw.Write(kept)
		}))
	})
	config := gateway.config(w)
	fetch := func(want ...bool) {
		t.Helper()
		if _, err := client.FetchTrust(t.Context(), config); err != nil {
			t.Error(err)
		}
		if got := asked.nonces(); !slices.Equal(got, want) {
			t.Errorf("got requests with a nonce: %v, want %v", got, want)
		}
	}
	fetch(false)
	fetch(false)
	w.adopt("1", "2")
	fetch(false, true)
	mu.Lock()
	old := newRelay(t, w.url, nil).trust("")
	fields := testworld.Must(wire.Unframe(wire.LabelTrustStatement, old.Statement, 10))
	claim := trustresponse.Claim{
		Genesis: w.Genesis(), Root: w.keys.RootDigest(), Head: old.History.Head, Steps: 2, At: time.Now().Add(-wire.TrustLifetime - 2*time.Second), Evidence: attest.Digest(fields[6]),
	}
	old.Statement = testworld.Must(trustresponse.SignStatement(claim, testworld.Must(w.issuer.AuthorityLeaf(claim.At))))
	kept = testworld.Must(json.Marshal(old))
	mu.Unlock()
	fetch(false, true)
	config.Fresh = true
	fetch(true)
}

// TestRelaysInOrder: relays that are away, that change what they pass on, that are of an older
// version and that redirect are refused with their reasons, and the next one serves. A redirection
// is not followed.
func TestRelaysInOrder(t *testing.T) {
	w := newWorld(t, "1")
	good := newRelay(t, w.url, nil)
	change := func(edit func(*api.TrustResponse)) func(http.Handler) http.Handler {
		return func(h http.Handler) http.Handler {
			return http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
				if r.URL.Path != wire.PathTrust {
					h.ServeHTTP(rw, r)
					return
				}
				response := good.trust("")
				edit(&response)
				writeJSON(rw, response)
			})
		}
	}
	var followed atomic.Int64
	elsewhere := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { followed.Add(1) }))
	defer elsewhere.Close()
	for _, row := range []struct {
		name string
		wrap func(http.Handler) http.Handler
		want wire.Reason
	}{
		{"an older authority", change(func(r *api.TrustResponse) { r.Statement = nil }), wire.Malformed},
		{"another statement", change(func(r *api.TrustResponse) { r.Statement[len(r.Statement)-1] ^= 1 }), wire.BadSignature},
		{"no identities", change(func(r *api.TrustResponse) { r.Identities = nil }), wire.WrongIdentity},
		{"a redirection", func(http.Handler) http.Handler { return http.RedirectHandler(elsewhere.URL, http.StatusFound) }, wire.Unavailable},
		{"away", func(http.Handler) http.Handler {
			return http.HandlerFunc(func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) })
		}, wire.Internal},
	} {
		bad := newRelay(t, w.url, row.wrap)
		bad.roots.AddCert(good.Certificate())
		config := bad.config(w)
		if _, err := client.FetchTrust(t.Context(), config); err == nil || wire.ReasonOf(err) != row.want {
			t.Errorf("%s: got %v, want %q", row.name, err, row.want)
		}
		config.Gateways = append(config.Gateways, good.URL)
		if _, err := client.FetchTrust(t.Context(), config); err != nil {
			t.Errorf("%s, then a good one: %v", row.name, err)
		}
	}
	if n := followed.Load(); n != 0 {
		t.Errorf("%d requests followed a redirection", n)
	}
	config := good.config(w)
	config.GatewayCA = x509.NewCertPool()
	if _, err := client.FetchTrust(t.Context(), config); err == nil {
		t.Error("a gateway with a certificate of no accepted root was used")
	}
	for _, address := range []string{"ftp://gateway", "https://", "https://a,https://b", "https://user@gateway"} {
		config.Gateways = []string{address}
		_, err := client.FetchTrust(t.Context(), config)
		testworld.Refused(t, err, wire.BadRequest)
	}
}

// TestRelayBehind: a client that has seen a newer policy refuses a gateway of an authority that is
// behind, with evidence that clients share and with its own, and pushes nothing through it.
func TestRelayBehind(t *testing.T) {
	w := newWorld(t, "1")
	w.adopt("1", "2")
	gateway := newRelay(t, w.url, nil)
	config := gateway.config(w)
	trust, err := client.FetchTrust(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	config.State = trust.State()
	w.mu.Lock()
	w.limit = 1
	w.mu.Unlock()
	for _, config.Fresh = range []bool{false, true} {
		_, err = client.FetchTrust(t.Context(), config)
		testworld.Refused(t, err, wire.Behind)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.pushed != 0 {
		t.Errorf("pushed a history %d times", w.pushed)
	}
}
