package channelhttp

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cohort-tee/cohort/internal/channel"
	"github.com/cohort-tee/cohort/internal/chunk"
	"github.com/cohort-tee/cohort/internal/testworld"
	"github.com/cohort-tee/cohort/internal/unitauth"
	"github.com/cohort-tee/cohort/internal/wire"
)

// echo responds with method, path and content.
var echo = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
	b, err := io.ReadAll(r.Body)
	if err != nil {
		panic(http.ErrAbortHandler)
	}
	fmt.Fprintf(w, "%s %s %s %s", r.Method, r.Host, r.URL.RequestURI(), b)
})

func TestRequestsReachEveryUnit(t *testing.T) {
	for _, pin := range []string{"task", "id"} {
		c := newCluster(t, 3, echo)
		p := c.byTask()
		if pin == "id" {
			p = c.byID()
		}
		rt := c.client(p, 0)
		for i := range 12 {
			method := []string{http.MethodGet, http.MethodPost}[i%2]
			got, err := say(t, rt, method, fmt.Sprintf("/%d?a=b", i), "body")
			if want := fmt.Sprintf("%s scoring.clinic.example /%d?a=b body", method, i); err != nil || got != want {
				t.Errorf("got %q, %v, want %q", got, err, want)
			}
		}
		if got := rt.Opens(); got != 1 {
			t.Errorf("got %d sessions, want 1", got)
		}
	}
}

// TestAnswersOfEveryKind: the responses of typical net/http applications reach the client
// unchanged.
func TestAnswersOfEveryKind(t *testing.T) {
	big := strings.Repeat("0123456789abcdef", 20_000)
	for _, tt := range []struct {
		name    string
		method  string
		body    io.Reader
		app     http.HandlerFunc
		status  int
		want    string
		length  int64
		header  string // Content-Type
		trailer http.Header
	}{
		{name: "nothing", app: func(http.ResponseWriter, *http.Request) {}, status: 200},
		{name: "a status", app: func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(404); w.WriteHeader(500) }, status: 404},
		{name: "early hints are left out", app: func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(103); w.WriteHeader(201) }, status: 201},
		{name: "no content", app: func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(204); io.WriteString(w, "x") }, status: 204},
		{name: "HEAD", method: "HEAD", app: func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", "7")
			io.WriteString(w, "seven..")
		}, status: 200, length: 7},
		{name: "a type is found", app: func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "<html>") }, status: 200, want: "<html>", length: 6, header: "text/html; charset=utf-8"},
		{name: "a type is kept", app: func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "a/b")
			io.WriteString(w, "<html>")
		}, status: 200, want: "<html>", length: 6, header: "a/b"},
		{name: "a large one", app: func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, big) }, status: 200, want: big, length: -1},
		{name: "a large one of known length", app: func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", fmt.Sprint(len(big)))
			io.WriteString(w, big)
		}, status: 200, want: big, length: int64(len(big))},
		{name: "flushed", app: func(w http.ResponseWriter, _ *http.Request) {
			io.WriteString(w, "one ")
			w.(http.Flusher).Flush()
			io.WriteString(w, "two")
		}, status: 200, want: "one two", length: -1},
		{name: "trailers", app: func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Trailer", "Sum, Count")
			io.WriteString(w, "one")
			w.(http.Flusher).Flush()
			w.Header().Set("Sum", "1")
			w.Header().Set("Count", "2")
			w.Header().Set(http.TrailerPrefix+"Late", "3")
		}, status: 200, want: "one", length: -1, trailer: http.Header{"Sum": {"1"}, "Count": {"2"}, "Late": {"3"}}},
		{name: "trailers of a small one", app: func(w http.ResponseWriter, _ *http.Request) {
			io.WriteString(w, "one")
			w.Header().Set(http.TrailerPrefix+"Late", "3")
		}, status: 200, want: "one", length: 3, trailer: http.Header{"Late": {"3"}}},
		{name: "trailers behind as much as is kept whole", app: func(w http.ResponseWriter, _ *http.Request) {
			io.WriteString(w, big[:channel.MaxSmall])
			w.Header().Set(http.TrailerPrefix+"Late", "3")
		}, status: 200, want: big[:channel.MaxSmall], length: channel.MaxSmall, trailer: http.Header{"Late": {"3"}}},
		{name: "a large request", method: "POST", body: strings.NewReader(big), app: echo, status: 200, want: "POST scoring.clinic.example / " + big, length: -1},
		{name: "a request of unknown length", method: "POST", body: io.MultiReader(strings.NewReader("one "), strings.NewReader("two")), app: echo, status: 200, want: "POST scoring.clinic.example / one two", length: 37},
		{name: "a request that nobody reads", method: "POST", body: strings.NewReader(big), app: func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "no") }, status: 200, want: "no", length: 2},
	} {
		t.Run(tt.name, func(t *testing.T) {
			for _, receipt := range []string{"", "with a receipt"} {
				c := newCluster(t, 1, tt.app)
				rt := c.client(c.byTask(), channel.WantReceipts)
				if s, ok := tt.body.(io.Seeker); ok {
					s.Seek(0, io.SeekStart)
				}
				r := testworld.Must(http.NewRequest(tt.method, base+"/", tt.body))
				record := &unitauth.Record{}
				if receipt != "" {
					r = r.WithContext(WithRecord(t.Context(), record))
				}
				if _, ok := tt.body.(io.Seeker); !ok && tt.body != nil {
					r.Body = io.NopCloser(io.MultiReader(strings.NewReader("one "), strings.NewReader("two")))
				}
				response, err := rt.RoundTrip(r)
				if err != nil {
					t.Fatal(err)
				}
				b, err := io.ReadAll(response.Body)
				response.Body.Close()
				if err != nil || string(b) != tt.want || response.StatusCode != tt.status || response.ContentLength != tt.length {
					t.Errorf("%s got %d, %d bytes, length %d, %v, want %d, %d bytes, length %d", receipt, response.StatusCode, len(b), response.ContentLength, err, tt.status, len(tt.want), tt.length)
				}
				if got := response.Header.Get("Content-Type"); tt.header != "" && got != tt.header {
					t.Errorf("got type %q, want %q", got, tt.header)
				}
				if !maps.EqualFunc(response.Trailer, tt.trailer, slices.Equal) {
					t.Errorf("got trailer %v, want %v", response.Trailer, tt.trailer)
				}
				if receipt != "" && len(record.Receipt) == 0 {
					t.Error("no receipt")
				}
			}
		})
	}
}

// TestBothWaysAtOnce: a client sends each line only after the response to the line before.
func TestBothWaysAtOnce(t *testing.T) {
	c := newCluster(t, 2, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.(http.Flusher).Flush()
		lines := bufio.NewScanner(r.Body)
		for lines.Scan() {
			fmt.Fprintf(w, "heard %s\n", lines.Text())
			w.(http.Flusher).Flush()
		}
	}))
	rt := c.client(c.byTask(), 0)
	body, lines := io.Pipe()
	response, err := rt.RoundTrip(testworld.Must(http.NewRequest("POST", base+"/", body)))
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	heard := bufio.NewScanner(response.Body)
	for i := range 5 {
		fmt.Fprintf(lines, "%d\n", i)
		if !heard.Scan() || heard.Text() != fmt.Sprint("heard ", i) {
			t.Fatalf("got %q, %v", heard.Text(), heard.Err())
		}
	}
	lines.Close()
	if heard.Scan() || heard.Err() != nil {
		t.Errorf("got %q, %v, want the end", heard.Text(), heard.Err())
	}
}

// TestStreamsThatBreak: a stream that ends early always ends with an error.
func TestStreamsThatBreak(t *testing.T) {
	app := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		for i := range 100 {
			fmt.Fprintf(w, "data: %d\n\n", i)
			w.(http.Flusher).Flush()
			if r.URL.Path == "/die" && i == 50 {
				panic(http.ErrAbortHandler)
			}
		}
	})
	for name, cut := range map[string]int64{"by the unit": 0, "by the gateway, in silence": 900, "by the gateway, at once": 40} {
		t.Run(name, func(t *testing.T) {
			c := newCluster(t, 1, app)
			rt := c.client(c.byTask(), 0)
			path := "/die"
			if cut > 0 {
				path = "/"
				c.tampers = func(r *http.Request) (*http.Response, error) {
					if r.URL.Path != wire.PathRequest {
						return nil, nil
					}
					response, err := c.route(r)
					response.Body = io.NopCloser(io.LimitReader(response.Body, cut))
					return response, err
				}
			}
			got, err := say(t, rt, "POST", path, "")
			if cut == 40 {
				if !errors.Is(err, ErrOutcomeUnknown) {
					t.Errorf("got %q, %v, want %v", got, err, ErrOutcomeUnknown)
				}
			} else if !errors.Is(err, chunk.ErrTruncated) {
				t.Errorf("got %d bytes, %v, want %v", len(got), err, chunk.ErrTruncated)
			}
			c.tampers = nil
			if _, err := say(t, rt, "GET", "/", ""); err != nil {
				t.Errorf("the next request: %v", err)
			}
		})
	}
}

// TestRequestsThatBreak: an app never takes a truncated request for a complete one.
func TestRequestsThatBreak(t *testing.T) {
	heard := make(chan error, 1)
	c := newCluster(t, 1, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, err := io.ReadAll(r.Body)
		heard <- err
	}))
	rt := c.client(c.byTask(), 0)
	c.tampers = func(r *http.Request) (*http.Response, error) {
		if r.URL.Path == wire.PathRequest {
			r.Body = io.NopCloser(io.LimitReader(r.Body, 70_000))
		}
		return nil, nil
	}
	_, _ = say(t, rt, "POST", "/", strings.Repeat("x", 200_000))
	if err := <-heard; !errors.Is(err, chunk.ErrTruncated) {
		t.Errorf("got %v, want %v", err, chunk.ErrTruncated)
	}
}

func TestCallerOf(t *testing.T) {
	c := newCluster(t, 2, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		caller, ok := CallerOf(r.Context())
		fmt.Fprint(w, ok, " ", caller.SessionTag())
	}))
	one, two := c.client(c.byTask(), 0), c.client(c.byTask(), 0)
	a, b := testworld.Must(say(t, one, "GET", "/", "")), testworld.Must(say(t, one, "GET", "/", ""))
	if a != b || !strings.HasPrefix(a, "true ") {
		t.Errorf("one session at two units: got %q and %q", a, b)
	}
	if other := testworld.Must(say(t, two, "GET", "/", "")); other == a {
		t.Errorf("two sessions have one tag: %q", a)
	}
	if _, ok := CallerOf(context.Background()); ok {
		t.Error("a caller without a channel")
	}
}

// TestOtherPaths: the app serves all other paths, and only a POST of the right type enters
// the channel.
func TestOtherPaths(t *testing.T) {
	c := newCluster(t, 1, echo)
	for _, tt := range []struct {
		method, path, kind string
		want               int
	}{
		{"GET", "/", "", 200},
		{"GET", wire.PathRequest, wire.TypeRequest, 400},
		{"POST", wire.PathRequest, "text/plain", 400},
		{"POST", wire.PathSession, wire.TypeSession, 400},
		{"POST", wire.PathRequest, wire.TypeRequest, 400},
	} {
		r := testworld.Must(http.NewRequest(tt.method, base+tt.path, strings.NewReader("")))
		r.Header.Set("Content-Type", tt.kind)
		r.RequestURI = tt.path
		response := serve(c.units[0].server, r)
		io.Copy(io.Discard, response.Body)
		if response.StatusCode != tt.want {
			t.Errorf("%s %s %q: got %d, want %d", tt.method, tt.path, tt.kind, response.StatusCode, tt.want)
		}
	}
}

func TestEvidenceOnRequest(t *testing.T) {
	c := newCluster(t, 3, echo)
	rt := c.client(c.byTask(), channel.WantEvidence)
	s, err := rt.Session(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if !s.Evidence().Appraised() {
		t.Error("no evidence")
	}
}

// TestRefresh: a client opens the next session ahead of the expiry, once for all callers,
// and never uses an expired session.
func TestRefresh(t *testing.T) {
	c := newCluster(t, 2, echo)
	rt := c.client(c.byTask(), 0)
	var all sync.WaitGroup
	for range 20 {
		all.Go(func() {
			if _, err := say(t, rt, "GET", "/", ""); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	if got := rt.Opens(); got != 1 {
		t.Errorf("20 callers at once: got %d sessions, want 1", got)
	}
	first := testworld.Must(rt.Session(t.Context()))
	c.clock.Advance(50 * time.Minute)
	for range 100 {
		if _, err := say(t, rt, "GET", "/", ""); err != nil {
			t.Fatal(err)
		}
		if rt.Opens() == 2 {
			break
		}
		time.Sleep(time.Millisecond)
	}
	if got := rt.Opens(); got != 2 {
		t.Errorf("ahead of the expiry: got %d sessions, want 2", got)
	}
	if _, err := first.NewRequest(channel.RequestConfig{NotAfter: noon}); !errors.Is(err, channel.ErrClosed) {
		t.Errorf("the session before: got %v, want %v", err, channel.ErrClosed)
	}
}

// TestNothingIsKept: a closed session cannot be used again.
func TestNothingIsKept(t *testing.T) {
	c := newCluster(t, 1, echo)
	rt := c.client(c.byTask(), 0)
	testworld.Must(say(t, rt, "GET", "/", ""))
	s := testworld.Must(rt.Session(t.Context()))
	rt.Close(t.Context())
	if _, err := s.NewRequest(channel.RequestConfig{NotAfter: noon}); !errors.Is(err, channel.ErrClosed) {
		t.Errorf("got %v, want %v", err, channel.ErrClosed)
	}
}

// TestParallelCallers: each of many parallel calls gets its own response.
func TestParallelCallers(t *testing.T) {
	c := newCluster(t, 3, echo)
	rt := c.client(c.byTask(), 0)
	var all sync.WaitGroup
	var wrong atomic.Int64
	for i := range 8 {
		all.Go(func() {
			for j := range 50 {
				body := fmt.Sprintf("%d-%d", i, j)
				got, err := say(t, rt, "POST", "/", body)
				if err != nil || got != "POST scoring.clinic.example / "+body {
					wrong.Add(1)
				}
			}
		})
	}
	all.Wait()
	if n := wrong.Load(); n > 0 {
		t.Errorf("%d wrong answers", n)
	}
}

// TestAnswerBeforeTheBody: over HTTP/1.1, an app begins its response before it reads the
// request's content. It still gets the whole content, of small requests and of streamed
// ones.
func TestAnswerBeforeTheBody(t *testing.T) {
	echo := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_ = http.NewResponseController(w).Flush()
		if _, err := io.Copy(w, r.Body); err != nil {
			t.Errorf("reading the content: %v", err)
		}
	})
	c := newCluster(t, 1, echo)
	unit := httptest.NewServer(c.units[0].server)
	defer unit.Close()
	inner := &http.Transport{}
	defer inner.CloseIdleConnections()
	rt := testworld.Must(NewTransport(TransportConfig{Gateway: testworld.Must(url.Parse(unit.URL)), Inner: inner, Pin: c.byTask(), Trust: c.world, Clock: c.clock.Now}))
	small := "content"
	for _, body := range []io.Reader{strings.NewReader(small), io.MultiReader(strings.NewReader(small))} { // of known and of unknown length
		response, err := rt.RoundTrip(testworld.Must(http.NewRequest(http.MethodPost, "https://scoring.clinic.example/", body)))
		if err != nil {
			t.Fatal(err)
		}
		if got, err := io.ReadAll(response.Body); err != nil || string(got) != small {
			t.Errorf("got %q, %v, want %q", got, err, small)
		}
		response.Body.Close()
	}
}

// TestContentLeftUnread: over HTTP/1.1, an app responds at once or in pieces without
// reading the request's content. The response is complete, and the connection serves the
// next request or is closed properly.
func TestContentLeftUnread(t *testing.T) {
	c := newCluster(t, 1, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/pieces" {
			_ = http.NewResponseController(w).Flush()
		}
		io.WriteString(w, "enough")
	}))
	var said bytes.Buffer
	unit := httptest.NewUnstartedServer(c.units[0].server)
	unit.Config.ErrorLog = log.New(&said, "", 0)
	unit.Start()
	inner := &http.Transport{}
	defer inner.CloseIdleConnections()
	rt := testworld.Must(NewTransport(TransportConfig{Gateway: testworld.Must(url.Parse(unit.URL)), Inner: inner, Pin: c.byTask(), Trust: c.world, Clock: c.clock.Now}))
	for _, row := range []struct {
		path string
		size int
	}{{"/", 1}, {"/", channel.MaxSmall + 1}, {"/", 3 * chunk.MaxPlaintext}, {"/", 8 * chunk.MaxPlaintext}, {"/pieces", 1}, {"/pieces", 3 * chunk.MaxPlaintext}} {
		for range 10 {
			body := io.MultiReader(strings.NewReader(strings.Repeat("x", row.size)))
			response, err := rt.RoundTrip(testworld.Must(http.NewRequest(http.MethodPost, "https://scoring.clinic.example"+row.path, body)))
			if err != nil {
				t.Fatalf("%+v: %v", row, err)
			}
			if got, err := io.ReadAll(response.Body); err != nil || string(got) != "enough" {
				t.Errorf("%+v: got %q, %v, want the answer", row, got, err)
			}
			response.Body.Close()
		}
	}
	unit.Close()
	if said.Len() > 0 {
		t.Errorf("the server says %.300s", &said)
	}
}
