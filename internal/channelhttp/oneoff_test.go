package channelhttp

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cohort-tee/cohort/identity"
	"github.com/cohort-tee/cohort/internal/api"
	"github.com/cohort-tee/cohort/internal/channel"
	"github.com/cohort-tee/cohort/internal/ohttp"
	"github.com/cohort-tee/cohort/internal/testworld"
	"github.com/cohort-tee/cohort/internal/unitauth"
	"github.com/cohort-tee/cohort/internal/wire"
)

// oneOffURL is the resource at the cluster's gateway.
var oneOffURL = noGateway.JoinPath("/").JoinPath(wire.PathOneOff)

// keysOf returns the verified key configuration of a unit.
func (c *cluster) keysOf(u *unit, pin unitauth.Pin) unitauth.OHTTPKeys {
	c.T.Helper()
	signed, _, err := u.OHTTPKeys(pin, c.clock.Now())
	if err != nil {
		c.T.Fatal(err)
	}
	return testworld.Must(unitauth.VerifyOHTTPKeys(signed, pin, c.trust(), c.clock.Now()))
}

func (c *cluster) oneOffs(keys unitauth.OHTTPKeys, whole bool) *OHTTPTransport {
	return testworld.Must(NewOHTTPTransport(OHTTPConfig{URL: oneOffURL, Inner: c, Keys: keys, Whole: whole}))
}

// repeat responds with the request's method, path and content.
var repeat = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
	if _, ok := CallerOf(r.Context()); ok {
		http.Error(w, "a caller", http.StatusTeapot)
		return
	}
	b, err := io.ReadAll(r.Body)
	if err != nil {
		http.Error(w, err.Error(), http.StatusTeapot)
		return
	}
	w.Header().Set("Trailer", "Last")
	w.Header().Set("Told", r.Header.Get("Told"))
	fmt.Fprintf(w, "%s %s %s ", r.Method, r.Host, r.URL.Path)
	w.Write(b)
	w.Header().Set("Last", "word")
})

// TestOneOffs: requests of every size succeed in both forms, under both KEMs and both pins.
func TestOneOffs(t *testing.T) {
	c := newCluster(t, 2, repeat)
	for _, pin := range []unitauth.Pin{c.byTask(), c.byID()} {
		keys := c.keysOf(c.units[0], pin)
		for _, keys := range []unitauth.OHTTPKeys{keys, x25519(keys)} {
			for _, whole := range []bool{true, false} {
				rt := c.oneOffs(keys, whole)
				for _, size := range []int{0, 1, channel.MaxSmall, channel.MaxSmall + 1, 200_000} {
					body := bytes.Repeat([]byte{'x'}, size)
					r := testworld.Must(http.NewRequest(http.MethodGet, base+"/p", io.MultiReader(bytes.NewReader(body)))) // of unknown length
					r.Header.Set("Told", "so")
					response, err := rt.RoundTrip(r)
					if err != nil {
						t.Fatalf("%v, %x, whole %v, %d bytes: %v", pin, keys.Plain, whole, size, err)
					}
					got, err := io.ReadAll(response.Body)
					if want := "GET scoring.clinic.example /p " + string(body); err != nil || string(got) != want || response.StatusCode != http.StatusOK {
						t.Errorf("whole %v, %d bytes: got %d %.80q, %v", whole, size, response.StatusCode, got, err)
					}
					if response.Header.Get("Told") != "so" || response.Trailer.Get("Last") != "word" {
						t.Errorf("got header %v and trailer %v", response.Header, response.Trailer)
					}
				}
			}
		}
	}
}

// TestOneOffsStream: in chunks, each piece reaches the other side before the next is
// written.
func TestOneOffsStream(t *testing.T) {
	c := newCluster(t, 1, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b := make([]byte, 1)
		for {
			if _, err := r.Body.Read(b); err != nil {
				return
			}
			w.Write(bytes.ToUpper(b))
			w.(http.Flusher).Flush()
		}
	}))
	reader, writer := io.Pipe()
	answers := make(chan *http.Response, 1)
	go func() {
		answers <- testworld.Must(c.oneOffs(c.keysOf(c.units[0], c.byTask()), false).RoundTrip(testworld.Must(http.NewRequest(http.MethodGet, base, reader))))
	}()
	var response *http.Response
	for _, b := range []byte("abc") {
		if _, err := writer.Write([]byte{b}); err != nil {
			t.Fatal(err)
		}
		if response == nil {
			response = <-answers
		}
		got := make([]byte, 1)
		if _, err := io.ReadFull(response.Body, got); err != nil || got[0] != b-'a'+'A' {
			t.Fatalf("got %q, %v", got, err)
		}
	}
	writer.Close()
	if b, err := io.ReadAll(response.Body); err != nil || len(b) > 0 {
		t.Errorf("got %q, %v", b, err)
	}
}

// TestOneOffsThatWait: a one-off request in chunks occupies no place once its head is read,
// however slow it is; a request in one piece does.
func TestOneOffsThatWait(t *testing.T) {
	c := newCluster(t, 0, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.(http.Flusher).Flush()
		io.Copy(w, r.Body)
	}))
	c.limit.OneOffs = 1
	keys := c.keysOf(c.start(), c.byTask())
	for range 3 {
		reader, writer := io.Pipe()
		defer writer.Close()
		if _, err := c.oneOffs(keys, false).RoundTrip(testworld.Must(http.NewRequest(http.MethodGet, base, reader))); err != nil {
			t.Fatal(err)
		}
	}
	c.units[0].server.intake.oneOffs.Acquire(netip.Addr{}, 1)
	_, err := say(t, c.oneOffs(keys, true), "GET", "/", "")
	testworld.Refused(t, err, wire.Unavailable)
	c.units[0].server.intake.oneOffs.Release(netip.Addr{}, 1)
	if _, err := say(t, c.oneOffs(keys, true), "GET", "/", ""); err != nil {
		t.Error(err)
	}
}

// recorded records the outer requests of a cluster's clients.
func (c *cluster) recorded() func() [][]byte {
	var mu sync.Mutex
	var all [][]byte
	c.tampers = func(r *http.Request) (*http.Response, error) {
		b, err := io.ReadAll(r.Body)
		mu.Lock()
		defer mu.Unlock()
		all = append(all, append([]byte(r.Header.Get("Content-Type")+"\n"), b...))
		r.Body = io.NopCloser(bytes.NewReader(b))
		return nil, err
	}
	return func() [][]byte { mu.Lock(); defer mu.Unlock(); return slices.Clone(all) }
}

// TestOneOffsReplayedToAllUnits: one-off requests are delivered repeatedly to every unit.
// Only safe requests are executed; requests with an Idempotency-Key only where the policy
// permits them.
func TestOneOffsReplayedToAllUnits(t *testing.T) {
	var executed sync.Map // method and mark → *atomic.Int64
	c := newCluster(t, 3, http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		n, _ := executed.LoadOrStore(r.Method+r.Header.Get("Idempotency-Key"), new(atomic.Int64))
		n.(*atomic.Int64).Add(1)
	}))
	requests := c.recorded()
	for _, whole := range []bool{true, false} {
		rt := c.oneOffs(c.keysOf(c.units[0], c.byTask()), whole)
		for _, method := range []string{"GET", "HEAD", "OPTIONS", "TRACE", "POST", "PUT", "PATCH", "DELETE", "BREW"} {
			for _, key := range []string{"", " 1"} {
				r := testworld.Must(http.NewRequest(method, base, nil))
				if key != "" {
					r.Header.Set("Idempotency-Key", key[1:])
				}
				response, err := rt.RoundTrip(r)
				if err != nil {
					t.Fatal(err)
				}
				want := http.StatusForbidden
				if channel.IsSafe(method) {
					want = http.StatusOK
				}
				if response.StatusCode != want {
					t.Errorf("%s %s: got %d, want %d", method, key, response.StatusCode, want)
				}
			}
		}
	}
	replay := func() {
		for _, u := range c.units {
			for _, raw := range requests() {
				kind, body, _ := bytes.Cut(raw, []byte("\n"))
				r := httptest.NewRequest(http.MethodPost, wire.PathOneOff, bytes.NewReader(body))
				r.Header.Set("Content-Type", string(kind))
				w := httptest.NewRecorder()
				u.server.ServeHTTP(w, r)
				if w.Code != http.StatusOK {
					t.Errorf("got %d %s", w.Code, w.Body)
				}
			}
		}
	}
	counts := func() map[string]int64 {
		m := map[string]int64{}
		executed.Range(func(k, v any) bool { m[k.(string)] = v.(*atomic.Int64).Load(); return true })
		return m
	}
	replay()
	safe := map[string]int64{"GET": 8, "HEAD": 8, "OPTIONS": 8, "TRACE": 8, "GET1": 8, "HEAD1": 8, "OPTIONS1": 8, "TRACE1": 8}
	if got := counts(); !maps.Equal(got, safe) {
		t.Errorf("executed %v, want %v", got, safe)
	}
	for _, u := range c.units { // a policy that permits requests with an Idempotency-Key
		st := c.standing(c.keyOf(u.Host), "1")
		st.OneOff = true
		if err := u.Update(st); err != nil {
			t.Fatal(err)
		}
	}
	replay()
	want := map[string]int64{"POST1": 6, "PUT1": 6, "PATCH1": 6, "DELETE1": 6, "BREW1": 6}
	for k := range safe {
		want[k] = 14
	}
	if got := counts(); !maps.Equal(got, want) {
		t.Errorf("executed %v, want %v", got, want)
	}
}

// oneOffBody returns an outer request of a client with these keys.
func oneOffBody(keys unitauth.OHTTPKeys, whole bool, r *http.Request) []byte {
	o := testworld.Must(NewOHTTPTransport(OHTTPConfig{URL: oneOffURL, Inner: http.DefaultTransport, Keys: keys, Whole: whole}))
	return testworld.Must(io.ReadAll(testworld.Must(o.sealRequest(r))))
}

// drawApart generates ring keys until all their key ids differ, from one another and from
// those in avoid. Ids of one byte collide by chance now and then.
func (w *world) drawApart(avoid ...byte) {
	for {
		w.ring = identity.Ring{Strict: identity.NewRingKeys(noon, time.Hour), Follow: identity.NewRingKeys(noon, time.Hour)}
		seen := slices.Clone(avoid)
		for _, k := range append(w.ring.Strict.Keys(), w.ring.Follow.Keys()...) {
			seen = append(seen, k.ID()[0]&^1)
		}
		slices.Sort(seen)
		if len(slices.Compact(slices.Clone(seen))) == len(seen) {
			return
		}
	}
}

// TestOneOffRefusals: refusals of a unit before it opens a request are in the clear, with
// status and reason. The app is never called.
func TestOneOffRefusals(t *testing.T) {
	asked := new(atomic.Int64)
	c := newCluster(t, 0, http.HandlerFunc(func(http.ResponseWriter, *http.Request) { asked.Add(1) }))
	for known := true; known; known = slices.ContainsFunc(append(c.ring.Strict.Keys(), c.ring.Follow.Keys()...), func(k *identity.RingKey) bool {
		return k.ID()[0]&^1 == c.ring.Follow.Current.ID()[0]&^1^0x80
	}) {
		c.drawApart()
	}
	u := c.start()
	keys := x25519(c.keysOf(u, c.byTask()))
	get := testworld.Must(http.NewRequest(http.MethodGet, base, nil))
	whole, chunked := oneOffBody(keys, true, get), oneOffBody(keys, false, get)
	change := func(at int) []byte { b := bytes.Clone(whole); b[at] ^= 0x80; return b }
	post := func(method, kind string, body []byte) (int, api.Problem) {
		r := httptest.NewRequest(method, wire.PathOneOff, bytes.NewReader(body))
		r.Header.Set("Content-Type", kind)
		w := httptest.NewRecorder()
		u.server.ServeHTTP(w, r)
		var p api.Problem
		_ = json.Unmarshal(w.Body.Bytes(), &p)
		return w.Code, p
	}
	for _, row := range []struct {
		name, method, kind string
		body               []byte
		status             int
		want               wire.Reason
	}{
		{"another method", "PUT", wire.TypeOneOff, whole, 400, wire.BadRequest},
		{"another type", "POST", wire.TypeRequest, whole, 400, wire.BadRequest},
		{"the type of the form before", "POST", wire.TypeOneOff, chunked, 400, wire.BadSignature},
		{"nothing", "POST", wire.TypeOneOff, nil, 400, wire.Malformed},
		{"a cut header", "POST", wire.TypeOneOff, whole[:6], 400, wire.Malformed},
		{"a cut secret", "POST", wire.TypeOneOff, whole[:38], 400, wire.Malformed},
		{"no ciphertext", "POST", wire.TypeOneOff, whole[:39], 400, wire.BadSignature},
		{"a cut ciphertext", "POST", wire.TypeOneOff, whole[:len(whole)-1], 400, wire.BadSignature},
		{"more behind it", "POST", wire.TypeOneOff, append(bytes.Clone(whole), 0), 400, wire.BadSignature},
		{"chunks that are cut", "POST", wire.TypeChunkedOneOff, chunked[:39], 400, wire.Truncated},
		{"more than one piece holds", "POST", wire.TypeOneOff, append(bytes.Clone(whole[:39]), make([]byte, ohttp.MaxWhole+16+1)...), 413, wire.TooLarge},
		{"an unknown key id", "POST", wire.TypeOneOff, change(0), 400, wire.OneOffKey},
		{"an unknown KEM", "POST", wire.TypeOneOff, change(1), 400, wire.OneOffKey},
		{"an unknown KDF", "POST", wire.TypeOneOff, change(3), 400, wire.OneOffKey},
		{"an unknown AEAD", "POST", wire.TypeOneOff, change(6), 400, wire.OneOffKey},
		{"another AEAD", "POST", wire.TypeOneOff, func() []byte { b := bytes.Clone(whole); b[6] = 2; return b }(), 400, wire.BadSignature},
		{"another secret", "POST", wire.TypeOneOff, change(7), 400, wire.BadSignature},
		{"another ciphertext", "POST", wire.TypeOneOff, change(39), 400, wire.BadSignature},
	} {
		status, p := post(row.method, row.kind, row.body)
		if status != row.status || p.Reason != row.want {
			t.Errorf("%s: got %d %q, want %d %q", row.name, status, p.Reason, row.status, row.want)
		}
		if known := p.Type == typeOneOffKey; known != (row.want == wire.OneOffKey) || p.Got != "" {
			t.Errorf("%s: got problem %v", row.name, p)
		}
	}
	u.server.intake.oneOffs.Acquire(netip.Addr{}, u.Limits().OneOffs)
	if status, p := post("POST", wire.TypeOneOff, whole); status != 503 || p.Reason != wire.Overload {
		t.Errorf("too many: got %d %q", status, p.Reason)
	}
	u.server.intake.oneOffs.Release(netip.Addr{}, u.Limits().OneOffs)
	if n := asked.Load(); n != 0 {
		t.Errorf("the app was asked %d times", n)
	}
	if status, _ := post("POST", wire.TypeOneOff, whole); status != 200 || asked.Load() != 1 {
		t.Errorf("unchanged: got %d", status)
	}
	c.clock.Advance(time.Hour) // the certificate's end
	if status, p := post("POST", wire.TypeOneOff, whole); status != 503 || p.Reason != wire.CertExpired {
		t.Errorf("after the certificate: got %d %q", status, p.Reason)
	}
}

// TestOneOffRefusalsInside: refusals after a request is opened are encapsulated. The app is
// never called.
func TestOneOffRefusalsInside(t *testing.T) {
	c := newCluster(t, 1, http.HandlerFunc(func(http.ResponseWriter, *http.Request) { t.Error("asked") }))
	for _, whole := range []bool{true, false} {
		rt := c.oneOffs(c.keysOf(c.units[0], c.byTask()), whole)
		for name, row := range map[string]struct {
			edit   func(*http.Request)
			status int
			want   wire.Reason
		}{
			"not safe":    {func(r *http.Request) { r.Method = "POST" }, 403, wire.NotAllowed},
			"expectation": {func(r *http.Request) { r.Header.Set("Expect", "100-continue") }, 400, wire.BadRequest},
			"path":        {func(r *http.Request) { r.URL.Opaque = "x" }, 400, wire.Malformed},
			"host":        {func(r *http.Request) { r.Host = "evil.example" }, 400, wire.WrongName},
			"scheme":      {func(r *http.Request) { r.URL.Scheme = "http" }, 400, wire.Malformed},
		} {
			r := testworld.Must(http.NewRequest(http.MethodGet, base, nil))
			row.edit(r)
			response, err := rt.RoundTrip(r)
			if err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			var p api.Problem
			if err := json.NewDecoder(response.Body).Decode(&p); err != nil || response.StatusCode != row.status || p.Reason != row.want {
				t.Errorf("%s: got %d %q, %v", name, response.StatusCode, p.Reason, err)
			}
		}
	}
}

// TestOneOffKeysOfOneID: a unit distinguishes two ring keys with equal key ids.
func TestOneOffKeysOfOneID(t *testing.T) {
	c := newCluster(t, 1, repeat)
	id := c.ring.Follow.Current.ID()[0] &^ 1
	for {
		var b [32]byte
		rand.Read(b[:])
		k := testworld.Must(identity.OpenRingKey(b[:], noon.Add(3*time.Hour)))
		if k.ID()[0]&^1 == id {
			c.ring.Follow.Next = k
			break
		}
	}
	if err := c.units[0].Update(c.standing(c.keyOf(c.units[0].Host), "1")); err != nil {
		t.Fatal(err)
	}
	for range 20 { // the order of a map varies
		if got, err := say(t, c.oneOffs(c.keysOf(c.units[0], c.byTask()), false), "GET", "/", ""); err != nil || !strings.HasPrefix(got, "GET") {
			t.Fatalf("got %q, %v", got, err)
		}
	}
}

// TestOneOffKeysResource: the resource returns the signed key configuration for the pin in
// the query, and the plain one to clients whose Accept field asks for it.
func TestOneOffKeysResource(t *testing.T) {
	c := newCluster(t, 1, repeat)
	get := func(query, accept string) *httptest.ResponseRecorder {
		r := httptest.NewRequest(http.MethodGet, wire.PathOneOff+query, nil)
		r.Header.Set("Accept", accept)
		w := httptest.NewRecorder()
		c.units[0].server.ServeHTTP(w, r)
		return w
	}
	id := c.byID().ID.Hex()
	for _, row := range []struct {
		query string
		pin   unitauth.Pin
	}{{"", c.byTask()}, {"?task=scoring", c.byTask()}, {"?id=" + id, c.byID()}} {
		w := get(row.query, "*/*")
		keys, err := unitauth.VerifyOHTTPKeys(w.Body.Bytes(), row.pin, c.trust(), noon)
		if err != nil || w.Header().Get("Content-Type") != wire.TypeSignedKeys {
			t.Errorf("%q: got %s, %v", row.query, w.Header().Get("Content-Type"), err)
		}
		if w := get(row.query, wire.TypeKeys); !bytes.Equal(w.Body.Bytes(), keys.Plain) || w.Header().Get("Content-Type") != wire.TypeKeys {
			t.Errorf("%q: got other plain keys, of type %s", row.query, w.Header().Get("Content-Type"))
		}
	}
	for query, want := range map[string]wire.Reason{
		"?task=other": wire.WrongIdentity, "?id=" + strings.Repeat("0", 63) + "1": wire.WrongIdentity, "?task=Scoring": wire.BadRequest, "?id=1": wire.BadRequest,
		"?task=scoring&id=" + id: wire.BadRequest, "?task=scoring&task=scoring": wire.BadRequest, "?colour=green": wire.BadRequest,
	} {
		var p api.Problem
		if w := get(query, ""); json.Unmarshal(w.Body.Bytes(), &p) != nil || w.Code != http.StatusBadRequest || p.Reason != want {
			t.Errorf("%s: got %d %q, want %q", query, w.Code, p.Reason, want)
		}
	}
}

// TestOneOffAnswers: any change to a response is refused, and a truncated response is never
// taken for a short one.
func TestOneOffAnswers(t *testing.T) {
	c := newCluster(t, 1, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.Write(make([]byte, 40_000)) }))
	for _, whole := range []bool{true, false} {
		rt := c.oneOffs(x25519(c.keysOf(c.units[0], c.byTask())), whole)
		for name, change := range map[string]func([]byte) []byte{
			"nothing":         func(b []byte) []byte { return nil },
			"another nonce":   func(b []byte) []byte { b[0] ^= 1; return b },
			"another byte":    func(b []byte) []byte { b[len(b)/2] ^= 1; return b },
			"the end cut off": func(b []byte) []byte { return b[:len(b)-1] },
			"half":            func(b []byte) []byte { return b[:len(b)/2] },
			"more":            func(b []byte) []byte { return append(b, 0) },
		} {
			c.tampers = func(r *http.Request) (*http.Response, error) {
				response := testworld.Must(c.route(r))
				response.Body = io.NopCloser(bytes.NewReader(change(testworld.Must(io.ReadAll(response.Body)))))
				return response, nil
			}
			_, err := say(t, rt, "GET", "/", "")
			if !errors.Is(err, wire.Truncated) && !errors.Is(err, wire.BadSignature) {
				t.Errorf("whole %v, %s: got %v", whole, name, err)
			}
		}
		c.tampers = nil
		if b, err := say(t, rt, "GET", "/", ""); err != nil || len(b) != 40_000 {
			t.Errorf("unchanged: got %d bytes, %v", len(b), err)
		}
	}
}

// TestOneOffAnswersHaveNonces: a request that is delivered again gets a response under a
// new nonce, since the response may differ.
func TestOneOffAnswersHaveNonces(t *testing.T) {
	c := newCluster(t, 1, repeat)
	body := oneOffBody(c.keysOf(c.units[0], c.byTask()), true, testworld.Must(http.NewRequest(http.MethodGet, base, nil)))
	seen := map[string]bool{}
	for range 8 {
		r := httptest.NewRequest(http.MethodPost, wire.PathOneOff, bytes.NewReader(body))
		r.Header.Set("Content-Type", wire.TypeOneOff)
		w := httptest.NewRecorder()
		c.units[0].server.ServeHTTP(w, r)
		seen[string(w.Body.Bytes()[:32])] = true
	}
	if len(seen) != 8 {
		t.Errorf("got %d nonces of 8 answers", len(seen))
	}
}

// TestOneOffAnswersBreakOff: the client refuses a response that the app aborts, and gets an
// error for a response that is too large for one piece.
func TestOneOffAnswersBreakOff(t *testing.T) {
	c := newCluster(t, 1, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/large" {
			for range 10 {
				w.Write(make([]byte, 30_000))
				w.(http.Flusher).Flush()
			}
			return
		}
		w.Write(make([]byte, 40_000))
		panic(http.ErrAbortHandler)
	}))
	keys := c.keysOf(c.units[0], c.byTask())
	for _, whole := range []bool{true, false} {
		if _, err := say(t, c.oneOffs(keys, whole), "GET", "/", ""); err == nil {
			t.Errorf("whole %v: a cut answer is accepted", whole)
		}
	}
	if b, err := say(t, c.oneOffs(keys, false), "GET", "/large", ""); err != nil || len(b) != 300_000 {
		t.Errorf("in chunks: got %d bytes, %v", len(b), err)
	}
	response, err := c.oneOffs(keys, true).RoundTrip(testworld.Must(http.NewRequestWithContext(context.Background(), "GET", base+"/large", nil)))
	if err != nil || response.StatusCode != http.StatusInternalServerError {
		t.Fatalf("in one piece: got %v, %v", response, err)
	}
	var p api.Problem
	if err := json.NewDecoder(response.Body).Decode(&p); err != nil || p.Reason != wire.TooLarge {
		t.Errorf("got %v, %v", p, err)
	}
}

// TestGatewaysWord: a gateway's own response is an error, with a reason of its own where no
// unit knows the key.
func TestGatewaysWord(t *testing.T) {
	c := newCluster(t, 1, repeat)
	rt := c.oneOffs(c.keysOf(c.units[0], c.byTask()), false)
	c.units[0].dead = true
	c.start()
	_, err := say(t, rt, "GET", "/", "")
	if err != nil {
		t.Errorf("another unit of the ring: %v", err)
	}
	c.drawApart(c.ring.Follow.Current.ID()[0] &^ 1)
	c.units[1].dead = true
	c.start()
	_, err = say(t, rt, "GET", "/", "")
	testworld.Refused(t, err, wire.OneOffKey)
	c.units[2].dead = true
	_, err = say(t, rt, "GET", "/", "")
	testworld.Refused(t, err, wire.Unavailable)
	c.tampers = func(*http.Request) (*http.Response, error) { return status(http.StatusTooManyRequests), nil }
	_, err = say(t, rt, "GET", "/", "")
	testworld.Refused(t, err, wire.TooMany)
}

// FuzzOneOff: a unit responds to any input with a response or a refusal.
func FuzzOneOff(f *testing.F) {
	c := newCluster(f, 1, repeat)
	keys := x25519(c.keysOf(c.units[0], c.byTask()))
	for _, whole := range []bool{true, false} {
		f.Add(whole, oneOffBody(keys, whole, testworld.Must(http.NewRequest(http.MethodGet, base, strings.NewReader("x"))))[7:])
	}
	header := oneOffBody(keys, true, testworld.Must(http.NewRequest(http.MethodGet, base, nil)))[:ohttp.HeaderSize]
	f.Fuzz(func(t *testing.T, whole bool, b []byte) {
		kind, want := wire.TypeChunkedOneOff, wire.TypeChunkedOneOffResponse
		if whole {
			kind, want = wire.TypeOneOff, wire.TypeOneOffResponse
		}
		r := httptest.NewRequest(http.MethodPost, wire.PathOneOff, bytes.NewReader(append(bytes.Clone(header), b...)))
		r.Header.Set("Content-Type", kind)
		w := httptest.NewRecorder()
		c.units[0].server.ServeHTTP(w, r)
		if w.Code != http.StatusOK && w.Code != http.StatusBadRequest && w.Code != http.StatusRequestEntityTooLarge {
			t.Errorf("got %d", w.Code)
		}
		if w.Code == http.StatusOK && w.Header().Get("Content-Type") != want {
			t.Errorf("got type %s", w.Header().Get("Content-Type"))
		}
	})
}
