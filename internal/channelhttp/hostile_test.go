package channelhttp

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cohort-tee/cohort/internal/channel"
	"github.com/cohort-tee/cohort/internal/envelope"
	"github.com/cohort-tee/cohort/internal/testworld"
	"github.com/cohort-tee/cohort/internal/testworld/bubble"
	"github.com/cohort-tee/cohort/internal/wire"
)

// counted counts executions by request body.
type counted struct {
	mu   sync.Mutex
	runs map[string]int
}

func (c *counted) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	b, err := io.ReadAll(r.Body)
	if err != nil {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.runs == nil {
		c.runs = map[string]int{}
	}
	c.runs[string(b)]++
	fmt.Fprintf(w, "ran %s", b)
}

func (c *counted) of(body string) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.runs[body]
}

// twice sends every outer request twice, and returns the response at index choose.
func twice(c *cluster, choose int) func(*http.Request) (*http.Response, error) {
	return func(r *http.Request) (*http.Response, error) {
		if r.URL.Path != wire.PathRequest {
			return nil, nil
		}
		raw := testworld.Must(io.ReadAll(r.Body))
		var answers [2]*http.Response
		for i := range answers {
			again := r.Clone(r.Context())
			again.Body = io.NopCloser(bytes.NewReader(raw))
			answers[i], _ = c.route(again)
			b, _ := io.ReadAll(answers[i].Body)
			answers[i].Body = io.NopCloser(bytes.NewReader(b))
		}
		return answers[choose], nil
	}
}

// TestReplays: every attempt arrives twice at its unit. A bound attempt runs once,
// whichever response comes back.
func TestReplays(t *testing.T) {
	app := &counted{}
	c := newCluster(t, 1, app)
	rt := c.client(c.byTask(), 0)
	c.tampers = twice(c, 0)
	if got, err := say(t, rt, "POST", "/", "first"); err != nil || got != "ran first" {
		t.Errorf("got %q, %v", got, err)
	}
	c.tampers = twice(c, 1)
	if got, err := say(t, rt, "POST", "/", "second"); !errors.Is(err, ErrOutcomeUnknown) {
		t.Errorf("got %q, %v, want %v", got, err, ErrOutcomeUnknown)
	}
	for _, body := range []string{"first", "second"} {
		if n := app.of(body); n != 1 {
			t.Errorf("%s ran %d times, want 1", body, n)
		}
	}
}

// TestBoundToOneUnit: an attempt that is bound to one unit is delivered to all units at
// once, and only its own unit executes it.
func TestBoundToOneUnit(t *testing.T) {
	app := &counted{}
	c := newCluster(t, 3, app)
	rt := c.client(c.byTask(), 0)
	c.tampers = func(r *http.Request) (*http.Response, error) {
		if r.URL.Path != wire.PathRequest {
			return nil, nil
		}
		raw := testworld.Must(io.ReadAll(r.Body))
		var last *http.Response
		for _, u := range c.units {
			again := r.Clone(r.Context())
			again.Body = io.NopCloser(bytes.NewReader(raw))
			response := serve(u.server, again)
			if response.StatusCode != http.StatusOK {
				io.Copy(io.Discard, response.Body)
				continue
			}
			last = response
		}
		return last, nil
	}
	for i := range 10 {
		body := fmt.Sprint(i)
		if got, err := say(t, rt, "POST", "/", body); err != nil || got != "ran "+body {
			t.Errorf("got %q, %v", got, err)
		}
		if n := app.of(body); n != 1 {
			t.Errorf("%s ran %d times, want 1", body, n)
		}
	}
}

// TestUnitsComeAndGo: the unit that opened the session is killed and new units start. The
// session survives.
func TestUnitsComeAndGo(t *testing.T) {
	c := newCluster(t, 2, echo)
	rt := c.client(c.byTask(), 0)
	testworld.Must(say(t, rt, "GET", "/", ""))
	opener := testworld.Must(rt.Session(t.Context())).OpenedBy().UnitID()
	for _, u := range c.units {
		u.dead = u.ID() == opener
	}
	if _, err := say(t, rt, "GET", "/", ""); err != nil {
		t.Errorf("safe: %v", err)
	}
	marked := testworld.Must(http.NewRequest("POST", base+"/", strings.NewReader("x")))
	marked.Header.Set("Idempotency-Key", "1")
	c.start() // has no session: it fetches the stored copy
	for range 10 {
		response, err := rt.RoundTrip(marked.Clone(t.Context()))
		if err != nil {
			t.Fatalf("marked: %v", err)
		}
		response.Body.Close()
		marked.Body = io.NopCloser(strings.NewReader("x"))
	}
	c.stored = map[wire.SessionID][]byte{}
	c.start() // no copy is stored: it opens the ticket
	for range 10 {
		if _, err := say(t, rt, "POST", "/", "x"); err != nil {
			t.Errorf("with a ticket: %v", err)
		}
		if _, err := say(t, rt, "POST", "/", strings.Repeat("x", channel.MaxSmall+1)); err != nil {
			t.Errorf("a stream with a ticket: %v", err)
		}
	}
	if got := rt.Opens(); got != 1 {
		t.Errorf("got %d sessions, want 1", got)
	}
}

// TestLateCopy: the session's ticket no longer opens, and the manager does not respond, so
// it is unknown whether it has a copy. The client keeps the session.
func TestLateCopy(t *testing.T) {
	c := newCluster(t, 2, &counted{})
	rt := c.client(c.byTask(), 0)
	testworld.Must(say(t, rt, "GET", "/", ""))
	for range 3 { // until the ring key that sealed the ticket is gone
		c.ring.Strict, c.ring.Follow = c.ring.Strict.Rotate(noon, time.Hour), c.ring.Follow.Rotate(noon, time.Hour)
		for _, u := range c.units {
			testworld.Must(0, u.Update(c.standing(c.keyOf(u.Host), "1")))
			sealed, _, err := u.Reseal(1, noon)
			testworld.Must(sealed, err)
			for _, s := range sealed {
				(&relay{c, u}).Push(envelope.Session, s)
			}
		}
	}
	for _, u := range c.units {
		u.dead = true
	}
	c.start()
	c.late = 4 // twice without the ticket, twice with it
	if _, err := say(t, rt, "GET", "/", ""); err != nil {
		t.Error(err)
	}
	if got := rt.Opens(); got != 1 || c.late != 0 {
		t.Errorf("got %d sessions, and %d pulls that were not made, want 1 and 0", got, c.late)
	}
}

// TestMisdirected: a call's unit is gone. An unmarked call ends with an unknown outcome,
// and the next call uses the unit that the hint names.
func TestMisdirected(t *testing.T) {
	app := &counted{}
	c := newCluster(t, 2, app)
	c.mute = true
	rt := c.client(c.byTask(), 0)
	testworld.Must(say(t, rt, "GET", "/", ""))
	for _, u := range c.units {
		u.dead = true
	}
	c.start()
	rt.noteUnits(hint{Units: []wire.UnitID{c.units[0].ID()}})
	if _, err := say(t, rt, "POST", "/", "unmarked"); !errors.Is(err, ErrOutcomeUnknown) {
		t.Errorf("got %v, want %v", err, ErrOutcomeUnknown)
	}
	if _, err := say(t, rt, "POST", "/", "the next"); err != nil {
		t.Errorf("the next knows the unit: %v", err)
	}
	if app.of("unmarked") != 0 || app.of("the next") != 1 {
		t.Errorf("got %v", app.runs)
	}
}

// TestForgedHints: the client's calls get unauthenticated responses. Forged hints cause at
// most the number of attempts in each row.
func TestForgedHints(t *testing.T) {
	for _, tt := range []struct {
		name   string
		status int
		method string
		want   error
		sent   int // most requests of one call
		opens  uint64
	}{
		{"misdirected, safe", 421, "GET", errMisdirected, 4, 1},
		{"misdirected", 421, "POST", ErrOutcomeUnknown, 1, 1},
		{"rekey, safe", 410, "GET", errRekey, 2, 2},
		{"rekey", 410, "POST", ErrOutcomeUnknown, 1, 1},
		{"ticket wanted, safe", 428, "GET", errRekey, 3, 2},
		{"ticket wanted", 428, "POST", ErrOutcomeUnknown, 2, 1},
		{"replayed, safe", 409, "GET", ErrUnreachable, 1 + maxOthers, 1},
		{"overload, safe", 503, "GET", ErrUnreachable, 1 + maxOthers, 1},
		{"overload", 503, "POST", ErrOutcomeUnknown, 1, 1},
		{"an answer in the clear", 200, "POST", ErrOutcomeUnknown, 1, 1},
	} {
		t.Run(tt.name, func(t *testing.T) {
			bubble.Test(t, func(t *testing.T) {
				c := newCluster(t, 2, echo)
				rt := c.client(c.byTask(), 0)
				sent := 0
				c.tampers = func(r *http.Request) (*http.Response, error) {
					if r.URL.Path != wire.PathRequest {
						return nil, nil
					}
					io.Copy(io.Discard, r.Body)
					sent++
					response := status(tt.status)
					response.Header.Set(wire.FieldUnits, strings.Repeat("0123456789abcdef0123456789abcdef,", 3)+"nonsense")
					return response, nil
				}
				got, err := say(t, rt, tt.method, "/", "x")
				if !errors.Is(err, tt.want) {
					t.Errorf("got %q, %v, want %v", got, err, tt.want)
				}
				if sent > tt.sent || rt.Opens() > tt.opens {
					t.Errorf("got %d requests and %d sessions, want at most %d and %d", sent, rt.Opens(), tt.sent, tt.opens)
				}
				c.tampers = nil
				if _, err := say(t, rt, "GET", "/", "x"); err != nil {
					t.Errorf("the next request: %v", err)
				}
			})
		})
	}
}

// TestEveryByteOfAnExchange: one byte is altered at every offset of a request and response
// of 1 KiB. The request does not run or the response is not accepted, and the session
// survives.
func TestEveryByteOfAnExchange(t *testing.T) {
	app := &counted{}
	c := newCluster(t, 1, app)
	rt := c.client(c.byTask(), 0)
	testworld.Must(say(t, rt, "POST", "/", ""))
	var offset atomic.Int64
	var writer bool
	c.tampers = func(r *http.Request) (*http.Response, error) {
		raw := testworld.Must(io.ReadAll(r.Body))
		at := int(offset.Load())
		writer = at >= len(raw)
		if !writer {
			raw[at] ^= 0x10
		}
		r.Body = io.NopCloser(bytes.NewReader(raw))
		response, err := c.route(r)
		if err != nil || !writer {
			return response, err
		}
		b, _ := io.ReadAll(response.Body)
		if at -= len(raw); at < len(b) {
			b[at] ^= 0x10
		} else {
			offset.Store(-1)
		}
		response.Body = io.NopCloser(bytes.NewReader(b))
		return response, err
	}
	for i := 0; ; i++ {
		offset.Store(int64(i))
		body := fmt.Sprintf("%01000d", i)
		got, err := say(t, rt, "POST", "/", body)
		if offset.Load() < 0 {
			if err != nil || got != "ran "+body || i < 2*1024 {
				t.Errorf("unchanged, after %d offsets: got %q, %v", i, got, err)
			}
			break
		}
		if err == nil {
			t.Fatalf("offset %d: got %q", i, got)
		}
		if n := app.of(body); !writer && n != 0 || n > 1 {
			t.Fatalf("offset %d: ran %d times", i, n)
		}
	}
	if got := rt.Opens(); got != 1 {
		t.Errorf("got %d sessions, want 1", got)
	}
}

// TestAnswersOfOthers: a client refuses the response to another request, of another
// session, and of another unit.
func TestAnswersOfOthers(t *testing.T) {
	c := newCluster(t, 2, echo)
	one, two := c.client(c.byTask(), 0), c.client(c.byTask(), 0)
	testworld.Must(say(t, one, "GET", "/", ""))
	testworld.Must(say(t, two, "GET", "/", ""))
	var kept [][]byte
	c.tampers = func(r *http.Request) (*http.Response, error) {
		response, err := c.route(r)
		b, _ := io.ReadAll(response.Body)
		kept = append(kept, b)
		response.Body = io.NopCloser(bytes.NewReader(b))
		return response, err
	}
	testworld.Must(say(t, one, "POST", "/", "secret of one"))
	for name, rt := range map[string]*Transport{"the same session": one, "another session": two} {
		c.tampers = func(r *http.Request) (*http.Response, error) {
			io.Copy(io.Discard, r.Body)
			response := status(http.StatusOK)
			response.Header.Set("Content-Type", wire.TypeResponse)
			response.Body = io.NopCloser(bytes.NewReader(kept[0]))
			return response, nil
		}
		if got, err := say(t, rt, "POST", "/", "x"); !errors.Is(err, ErrOutcomeUnknown) {
			t.Errorf("%s: got %q, %v, want %v", name, got, err, ErrOutcomeUnknown)
		}
	}
}

// TestNotAfter: a request arrives after its not-after time, or with a not-after time too
// far ahead. Neither runs, and the unit authenticates no response. A call that may be
// retried is, with the unit's time.
func TestNotAfter(t *testing.T) {
	for _, c := range []struct {
		name   string
		method string
		marked bool
		delay  time.Duration // of the first attempt
		shift  time.Duration // error of the client's estimate of the unit's time
		want   error
		sent   int
	}{
		{"late", "POST", false, 31 * time.Second, 0, ErrOutcomeUnknown, 1},
		{"late and marked", "POST", true, 31 * time.Second, 0, nil, 2},
		{"late and safe", "GET", false, 2 * time.Minute, 0, nil, 2},
		{"too far ahead", "POST", false, 0, 3 * time.Minute, ErrOutcomeUnknown, 1},
		{"too far ahead and marked", "POST", true, 0, 3 * time.Minute, nil, 2},
		{"too far ahead and safe", "GET", false, 0, 3 * time.Minute, nil, 2},
	} {
		t.Run(c.name, func(t *testing.T) {
			app := &counted{}
			cluster := newCluster(t, 1, app)
			rt := cluster.client(cluster.byTask(), 0)
			testworld.Must(say(t, rt, "GET", "/", "opens the session"))
			now := cluster.clock.Now()
			rt.times.opened(cluster.units[0].ID(), now.Add(c.shift), now)
			sent := 0
			cluster.tampers = func(*http.Request) (*http.Response, error) {
				if sent++; sent == 1 {
					cluster.clock.Advance(c.delay)
				}
				return nil, nil
			}
			r := testworld.Must(http.NewRequest(c.method, base+"/", strings.NewReader("x")))
			if c.marked {
				r.Header.Set("Idempotency-Key", "1")
			}
			response, err := rt.RoundTrip(r)
			if err == nil {
				response.Body.Close()
			}
			if !errors.Is(err, c.want) || sent != c.sent {
				t.Errorf("got %v after %d attempts, want %v after %d", err, sent, c.want, c.sent)
			}
			if got := app.of("x"); got > 1 || (err != nil) != (got == 0) {
				t.Errorf("ran %d times, and the error is %v", got, err)
			}
		})
	}
}

// TestAnsweredByAnother: a response under another unit's id leaves the outcome unknown.
func TestAnsweredByAnother(t *testing.T) {
	c := newCluster(t, 2, echo)
	rt := c.client(c.byTask(), 0)
	testworld.Must(say(t, rt, "GET", "/", ""))
	c.tampers = func(r *http.Request) (*http.Response, error) {
		response, err := c.route(r)
		if err != nil {
			return nil, err
		}
		b := testworld.Must(io.ReadAll(response.Body))
		for _, u := range c.units {
			if id := u.ID(); !bytes.HasPrefix(b, id[:]) {
				copy(b, id[:])
				break
			}
		}
		response.Body = io.NopCloser(bytes.NewReader(b))
		return response, nil
	}
	if got, err := say(t, rt, "POST", "/", "x"); !errors.Is(err, ErrOutcomeUnknown) {
		t.Errorf("got %q, %v, want %v", got, err, ErrOutcomeUnknown)
	}
}

// TestOpenerGone: after "rekey" the client opens a new session, and its opener is gone by
// the next attempt. The call continues at another unit, which has the session too.
func TestOpenerGone(t *testing.T) {
	for _, method := range []string{"GET", "PUT"} {
		t.Run(method, func(t *testing.T) {
			c := newCluster(t, 2, echo)
			rt := c.client(c.byTask(), 0)
			testworld.Must(say(t, rt, "GET", "/", "x"))
			var gone wire.UnitID
			c.tampers = func(r *http.Request) (*http.Response, error) {
				if r.URL.Path != wire.PathRequest {
					return nil, nil
				}
				raw := testworld.Must(io.ReadAll(r.Body))
				r.Body = io.NopCloser(bytes.NewReader(raw))
				target := testworld.Must(wire.ParseHeader(raw[:wire.HeaderSize])).Target
				switch {
				case rt.Opens() == 1:
					return status(http.StatusGone), nil
				case gone == (wire.UnitID{}):
					gone = target
				}
				if target == gone {
					return status(http.StatusMisdirectedRequest), nil
				}
				return nil, nil
			}
			r := testworld.Must(http.NewRequest(method, "https://scoring.clinic.example/", strings.NewReader("x")))
			r.Header.Set("Idempotency-Key", "1")
			response, err := rt.RoundTrip(r)
			if err != nil {
				t.Fatal(err)
			}
			response.Body.Close()
			if gone == (wire.UnitID{}) {
				t.Error("the attempt after rekey was not bound to the opener")
			}
		})
	}
}

// TestTargets: a unit responds to requests for its own hosts only, and refuses others,
// authenticated, before the app receives them.
func TestTargets(t *testing.T) {
	c := newCluster(t, 1, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, r.Host) }))
	rt := c.client(c.byTask(), 0)
	for _, row := range []struct {
		url, host string
		want      wire.Reason // empty: a response
	}{
		{"https://scoring.clinic.example/", "", ""},
		{"https://SCORING.clinic.example:8443/", "", ""},
		{"https://scoring/", "", ""},
		{"https://scoring.clinic.example/", "evil.example", wire.WrongName},
		{"https://evil.example/", "", wire.WrongName},
		{"https://scoring.clinic.example.evil.example/", "", wire.WrongName},
		{"https://localhost:1/", "", wire.WrongName},
		{"https://127.0.0.1/", "", wire.WrongName},
		{"https://[::1]:443/", "", wire.WrongName},
		{"https:///", "", wire.WrongName},
		{"http://scoring.clinic.example/", "", wire.Malformed},
		{"ftp://scoring.clinic.example/", "", wire.Malformed},
	} {
		r := testworld.Must(http.NewRequest(http.MethodGet, row.url, nil))
		r.Host = cmp.Or(row.host, r.Host)
		response, err := rt.RoundTrip(r)
		switch {
		case row.want == "" && err != nil:
			t.Errorf("%s for %q: %v", row.url, r.Host, err)
		case row.want != "" && (!errors.Is(err, ErrNotExecuted) || !strings.Contains(err.Error(), string(row.want))):
			t.Errorf("%s for %q: got %v, want reason %q of a unit that has not executed it", row.url, r.Host, err, row.want)
		}
		if err == nil {
			response.Body.Close()
		}
	}
}
