package localproxy

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/cohort-tee/cohort/client"
	"github.com/cohort-tee/cohort/internal/testworld"
	"github.com/cohort-tee/cohort/internal/wire"
)

// TestRequestArrivesUnchanged: method, path, query, fields, content and trailers of a request arrive as
// the program sent them. What belongs to one connection does not, and the proxy adds nothing.
func TestRequestArrivesUnchanged(t *testing.T) {
	var got *http.Request
	var content string
	s := start(t, Config{Token: token, Through: cluster(func(r *http.Request) (*http.Response, error) {
		b, err := io.ReadAll(r.Body)
		got, content = r, string(b)
		return &http.Response{StatusCode: http.StatusTeapot, Header: http.Header{}, Body: http.NoBody}, err
	})})
	response := s.raw(t, "PATCH //a%2Fb/../c?q=%zz;x&y HTTP/1.1\r\nHost: ADDRESS\r\nConnection: close, X-Of-This-Hop\r\nX-Of-This-Hop: 1\r\nKeep-Alive: 1\r\nTE: trailers\r\n"+
		"Proxy-Authorization: x\r\nProxy-Connection: x\r\nUpgrade: websocket\r\nTrailer: X-Sum\r\nTransfer-Encoding: chunked\r\n"+
		"Authorization: Bearer of the service\r\ncohort-proxy-token: "+token+"\r\nX-Forwarded-For: 192.0.2.1\r\nX-Many: 1\r\nX-Many: 2\r\n\r\n"+
		"5\r\nhello\r\n0\r\nX-Sum: 5\r\n\r\n")
	if response.StatusCode != http.StatusTeapot {
		t.Fatalf("got status %d", response.StatusCode)
	}
	want := http.Header{"Authorization": {"Bearer of the service"}, "X-Forwarded-For": {"192.0.2.1"}, "X-Many": {"1", "2"}, "User-Agent": nil}
	if !maps.EqualFunc(got.Header, want, slices.Equal) {
		t.Errorf("got fields %q, want %q", got.Header, want)
	}
	if got.Method != "PATCH" || got.URL.Scheme != "https" || got.URL.Host != inside || got.Host != inside || got.URL.RequestURI() != "//a%2Fb/../c?q=%zz;x&y" {
		t.Errorf("got %s %s://%s, host %s, %s", got.Method, got.URL.Scheme, got.URL.Host, got.Host, got.URL.RequestURI())
	}
	if content != "hello" || got.Trailer.Get("X-Sum") != "5" {
		t.Errorf("got content %q with trailers %q", content, got.Trailer)
	}
}

// TestTokenStaysHere: the token is never forwarded, wherever it stands.
func TestTokenStaysHere(t *testing.T) {
	for _, field := range []string{FieldToken + ": " + token, "Authorization: Bearer " + token, "X-Api-Key: " + token, FieldToken + ": " + token + "\r\nAuthorization: Basic x\r\nAuthorization: bearer " + token, FieldToken + ": " + token + "\r\nAuthorization: Bearer " + token} {
		var log bytes.Buffer
		s := start(t, Config{Token: token, Log: slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug})),
			Through: cluster(func(r *http.Request) (*http.Response, error) {
				if text := fmt.Sprint(r.Header); strings.Contains(text, token) {
					t.Errorf("%s: forwarded %s", field, text)
				}
				return nil, wire.Refuse(wire.Unavailable, "test", "no unit", "a unit")
			})})
		response := s.raw(t, "GET /?key="+token+" HTTP/1.1\r\nHost: ADDRESS\r\nConnection: close\r\n"+field+"\r\n\r\n")
		if b, err := io.ReadAll(response.Body); err != nil || bytes.Contains(b, []byte(token)) {
			t.Errorf("got %s, %v", b, err)
		}
		without := start(t, Config{Through: cluster(func(r *http.Request) (*http.Response, error) {
			if r.Header[FieldToken] != nil {
				t.Error("a token for no proxy was forwarded")
			}
			return nil, wire.Refuse(wire.Unavailable, "test", "no unit", "a unit")
		})})
		without.raw(t, "GET / HTTP/1.1\r\nHost: ADDRESS\r\n"+field+"\r\n\r\n")
		s.end()
		<-s.ended
		if strings.Contains(log.String(), token) || !strings.Contains(log.String(), "unavailable") {
			t.Errorf("got log %s", &log)
		}
	}
}

// TestResponses: responses reach the program as the service sent them.
func TestResponses(t *testing.T) {
	large := strings.Repeat("0123456789abcdef", 1<<16)
	s := start(t, Config{Through: served(t, func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/none":
			w.WriteHeader(http.StatusNoContent)
		case "/same":
			w.Header().Set("Etag", `"1"`)
			w.WriteHeader(http.StatusNotModified)
		case "/untyped":
			w.Header()["Content-Type"] = nil
			io.WriteString(w, "<html>")
		case "/large":
			io.WriteString(w, large)
		case "/sized":
			w.Header().Set("Content-Length", fmt.Sprint(len(large)))
			io.WriteString(w, large)
		case "/trailers":
			w.Header().Set("Trailer", "X-Sum")
			io.WriteString(w, "x")
			w.Header().Set("X-Sum", "1")
		case "/fields":
			w.Header().Set("Alt-Svc", `h3="evil.example:443"`)
			w.Header().Set("Proxy-Authenticate", "x")
			w.Header().Set("Access-Control-Allow-Origin", "*")
			w.Header().Add("Set-Cookie", "a=1")
			w.Header().Add("Set-Cookie", "b=2")
			w.WriteHeader(http.StatusConflict)
		}
	})})
	c := s.client(t)
	for _, row := range []struct {
		method, path string
		status       int
		content      string
		fields       http.Header // a nil value: absent
	}{
		{"GET", "/none", 204, "", http.Header{"Content-Length": nil}},
		{"GET", "/same", 304, "", http.Header{"Etag": {`"1"`}}},
		{"GET", "/untyped", 200, "<html>", http.Header{"Content-Type": nil, "Content-Length": {"6"}}},
		{"GET", "/large", 200, large, http.Header{"Content-Length": nil}},
		{"GET", "/sized", 200, large, http.Header{"Content-Length": {fmt.Sprint(len(large))}}},
		{"HEAD", "/sized", 200, "", http.Header{"Content-Length": {fmt.Sprint(len(large))}}},
		{"POST", "/fields", 409, "", http.Header{"Alt-Svc": nil, "Proxy-Authenticate": nil, "Set-Cookie": {"a=1", "b=2"}, "Via": nil, "Access-Control-Allow-Origin": {"*"}}},
		{"GET", "/trailers", 200, "x", nil},
	} {
		r := testworld.Must(http.NewRequest(row.method, s.url(row.path), nil))
		response, err := c.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(response.Body)
		if response.Body.Close(); err != nil || response.StatusCode != row.status || string(b) != row.content {
			t.Errorf("%s %s: got status %d, %d bytes, %v, want %d, %d bytes", row.method, row.path, response.StatusCode, len(b), err, row.status, len(row.content))
		}
		for name, want := range row.fields {
			if got := response.Header[name]; !slices.Equal(got, want) {
				t.Errorf("%s %s: got %s %q, want %q", row.method, row.path, name, got, want)
			}
		}
		if row.path == "/trailers" && response.Trailer.Get("X-Sum") != "1" {
			t.Errorf("got trailers %q", response.Trailer)
		}
	}
}

// TestTokensComeOneByOne: each piece of a stream is there before the service sends the next, and the
// program's cancellation reaches the service.
func TestTokensComeOneByOne(t *testing.T) {
	next, canceled := make(chan string), make(chan bool)
	s := start(t, Config{Through: served(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/event-stream")
		for token := range next {
			io.WriteString(w, token)
			http.NewResponseController(w).Flush()
		}
		<-r.Context().Done()
		close(canceled)
	})})
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	go func() { next <- "data: 0\n\n" }()
	response, err := s.client(t).Do(testworld.Must(http.NewRequestWithContext(ctx, "GET", s.url("/"), nil)))
	testworld.NoError(t, err)
	lines := bufio.NewReader(response.Body)
	for i := range 20 {
		if line, err := lines.ReadString('\n'); err != nil || line != fmt.Sprintf("data: %d\n", i) {
			t.Fatalf("got %q, %v", line, err)
		}
		lines.ReadString('\n')
		next <- fmt.Sprintf("data: %d\n\n", i+1)
	}
	close(next)
	cancel()
	<-canceled
}

// TestFullDuplex: a response begins and goes on while its request is sent.
func TestFullDuplex(t *testing.T) {
	s := start(t, Config{Through: served(t, func(w http.ResponseWriter, r *http.Request) {
		http.NewResponseController(w).EnableFullDuplex()
		w.WriteHeader(http.StatusOK)
		http.NewResponseController(w).Flush()
		for lines := bufio.NewScanner(r.Body); lines.Scan(); http.NewResponseController(w).Flush() {
			fmt.Fprintln(w, "got", lines.Text())
		}
	})})
	read, write := io.Pipe()
	response, err := s.client(t).Post(s.url("/"), "text/plain", read)
	testworld.NoError(t, err)
	lines := bufio.NewReader(response.Body)
	for i := range 10 {
		fmt.Fprintln(write, i)
		if line, err := lines.ReadString('\n'); err != nil || line != fmt.Sprintf("got %d\n", i) {
			t.Fatalf("got %q, %v", line, err)
		}
	}
	write.Close()
	if rest, err := io.ReadAll(lines); err != nil || len(rest) > 0 {
		t.Errorf("got %q, %v", rest, err)
	}
}

// TestContinue: a program that waits for 100 Continue gets it once the cluster reads its content, and not for
// a request that the proxy refuses.
func TestContinue(t *testing.T) {
	s := start(t, Config{Through: served(t, func(w http.ResponseWriter, r *http.Request) {
		if r.Header["Expect"] != nil {
			t.Error("Expect was forwarded")
		}
		io.Copy(w, r.Body)
	})})
	for host, want := range map[string]int{s.address: 100, "evil.example": 403} {
		c := testworld.Must(net.Dial("tcp", s.address))
		defer c.Close()
		fmt.Fprintf(c, "POST / HTTP/1.1\r\nHost: %s\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n", host)
		in := bufio.NewReader(c)
		line, err := in.ReadString('\n')
		if err != nil || !strings.HasPrefix(line, fmt.Sprintf("HTTP/1.1 %d ", want)) {
			t.Fatalf("%s: got %q, %v, want status %d", host, line, err, want)
		}
		if want != 100 {
			continue
		}
		in.ReadString('\n')
		io.WriteString(c, "hi")
		response := testworld.Must(http.ReadResponse(in, nil))
		if b, err := io.ReadAll(response.Body); err != nil || string(b) != "hi" {
			t.Errorf("got %q, %v", b, err)
		}
	}
}

// TestConnectionsAreKept: a connection serves many requests, also with content.
func TestConnectionsAreKept(t *testing.T) {
	s := start(t, Config{Through: served(t, func(w http.ResponseWriter, r *http.Request) { w.Write(testworld.Must(io.ReadAll(r.Body))) })})
	var dials int
	through := &http.Transport{DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
		dials++
		return new(net.Dialer).DialContext(ctx, network, address)
	}}
	defer through.CloseIdleConnections()
	for i := range 50 {
		body := strings.Repeat("x", i*1000)
		response, err := (&http.Client{Transport: through}).Post(s.url("/"), "text/plain", strings.NewReader(body))
		testworld.NoError(t, err)
		if b, err := io.ReadAll(response.Body); err != nil || string(b) != body {
			t.Fatalf("got %d bytes, %v, want %d", len(b), err, len(body))
		}
		response.Body.Close()
	}
	if dials != 1 {
		t.Errorf("got %d connections, want 1", dials)
	}
}

// TestProblems: what a program is sent for each kind of error, and whether it may repeat its request.
func TestProblems(t *testing.T) {
	const status = "https://scoring.clinic.example/secret/path?key=secret"
	for _, row := range []struct {
		name          string
		err           error
		status        int
		reason, cause wire.Reason
		retry, again  string
	}{
		{"outcome unknown", fmt.Errorf("calling POST %s: %w: %w", status, client.ErrOutcomeUnknown, wire.Refuse(wire.Malformed, "response", "x", "y")), 502, wire.OutcomeUnknown, wire.Malformed, "unsafe", "false"},
		{"outcome unknown over TLS", fmt.Errorf("%w: %w", client.ErrMaybeExecuted, io.ErrUnexpectedEOF), 502, wire.OutcomeUnknown, "", "unsafe", "false"},
		{"not executed", fmt.Errorf("%w: %w", client.ErrNotExecuted, wire.Refuse(wire.NotExecuted, "response: reason", "overload", "a response")), 502, wire.NotExecuted, "", "safe", "true"},
		{"unreachable", fmt.Errorf("%w: %w", client.ErrUnreachable, wire.Refuse(wire.Overload, "gateway", "x", "y")), 502, wire.Unavailable, wire.Overload, "safe", "true"},
		{"another cluster", fmt.Errorf("opening a session: %w", wire.Refuse(wire.WrongGenesis, "certificate: genesis", "x", "y")), 502, wire.WrongGenesis, "", "safe", "false"},
		{"a unit that is cut off", wire.Refuse(wire.CutOff, "certificate", "x", "y"), 502, wire.CutOff, "", "safe", "false"},
		{"a one-off that is not safe", wire.Refuse(wire.NotAllowed, "one-off: method", "POST", "a safe one"), 403, wire.NotAllowed, "", "safe", "false"},
		{"an error that is no refusal", errors.New("dial tcp " + status), 502, wire.Unavailable, "", "safe", "true"},
		{"the end", fmt.Errorf("%w", client.ErrClosed), 503, wire.Unavailable, "", "safe", "true"},
	} {
		t.Run(row.name, func(t *testing.T) {
			var log bytes.Buffer
			s := start(t, Config{Log: slog.New(slog.NewTextHandler(&log, nil)), Through: cluster(func(*http.Request) (*http.Response, error) { return nil, row.err })})
			response, err := s.client(t).Post(s.url("/"), "text/plain", strings.NewReader("x"))
			testworld.NoError(t, err)
			defer response.Body.Close()
			again := response.Header.Get(fieldRetry)
			p := problemIn(t, response)
			if p.Status != row.status || p.Reason != row.reason || p.Cause != row.cause || p.Retry != row.retry || again != row.again {
				t.Errorf("got %+v and %s %s, want %+v", p, fieldRetry, again, row)
			}
			s.end()
			<-s.ended
			if text := fmt.Sprint(log.String(), p); strings.Contains(text, "secret") || !strings.Contains(text, string(row.reason)) {
				t.Errorf("got %s", text)
			}
		})
	}
}

// breaking is content that ends with an error.
type breaking struct {
	io.Reader
	err error
}

func (b breaking) Read(p []byte) (int, error) {
	n, err := b.Reader.Read(p)
	if err == io.EOF {
		err = b.err
	}
	return n, err
}

func (breaking) Close() error { return nil }

// TestTruncatedResponse: a response that ends early, or that has no receipt, never looks complete.
func TestTruncatedResponse(t *testing.T) {
	for _, row := range []struct {
		name   string
		length int64
		end    error // of the content
		keep   error
		wants  bool // a receipt
	}{
		{"of unknown length", -1, client.ErrTruncated, nil, false},
		{"of known length", 10, client.ErrTruncated, nil, false},
		{"without a receipt", -1, wire.Refuse(wire.EvidenceMissing, "response: receipt", "no receipt", "that of the unit"), nil, true},
		{"whose receipt is not kept", -1, io.EOF, errors.New("disk full"), true},
		{"of known length, whose receipt is not kept", 64 << 10, io.EOF, errors.New("disk full"), true},
		{"of length zero, whose receipt is not kept", 0, io.EOF, errors.New("disk full"), true},
	} {
		t.Run(row.name, func(t *testing.T) {
			content := strings.Repeat("x", int(max(row.length, 4)))
			if row.end != io.EOF {
				content = "four"
			} else if row.length == 0 {
				content = ""
			}
			c := Config{Through: cluster(func(*http.Request) (*http.Response, error) {
				return &http.Response{StatusCode: 200, Header: http.Header{}, ContentLength: row.length, Body: breaking{strings.NewReader(content), row.end}}, nil
			})}
			if row.wants {
				c.Keep = func(client.Record) error { return row.keep }
			}
			s := start(t, c)
			response, err := s.client(t).Post(s.url("/"), "", nil)
			if err == nil {
				var b []byte
				b, err = io.ReadAll(response.Body)
				response.Body.Close()
				if err == nil {
					t.Errorf("got status %d and %q without an error", response.StatusCode, b)
				}
			}
		})
	}
}

// TestReceipts: a response ends after its receipt was kept, and requests and responses with a
// receipt are bounded.
func TestReceipts(t *testing.T) {
	kept := 0
	s := start(t, Config{
		Keep: func(client.Record) error { kept++; return nil },
		Through: served(t, func(w http.ResponseWriter, r *http.Request) {
			if _, err := io.Copy(io.Discard, r.Body); err != nil {
				return
			}
			if r.Method == http.MethodPut {
				io.CopyN(w, zeros{}, maxRecorded+1)
			}
			io.WriteString(w, "whole")
		}),
	})
	c := s.client(t)
	for _, method := range []string{"GET", "HEAD", "POST"} {
		response, err := c.Do(testworld.Must(http.NewRequest(method, s.url("/"), strings.NewReader("x"))))
		testworld.NoError(t, err)
		if _, err := io.ReadAll(response.Body); err != nil {
			t.Errorf("%s: %v", method, err)
		}
		response.Body.Close()
	}
	if kept != 3 {
		t.Errorf("%d receipts were kept, want 3", kept)
	}
	sized := testworld.Must(http.NewRequest("POST", s.url("/"), io.LimitReader(zeros{}, maxRecorded+1)))
	sized.ContentLength = maxRecorded + 1
	streamed := testworld.Must(http.NewRequest("POST", s.url("/"), io.LimitReader(zeros{}, maxRecorded+1)))
	for r, retry := range map[*http.Request]string{sized: retrySafe, streamed: retryUnsafe} {
		if response, err := c.Do(r); err == nil {
			if p := problemIn(t, response); p.Reason != wire.TooLarge || p.Status != 413 || p.Retry != retry {
				t.Errorf("got %+v, want 413 and retry %s", p, retry)
			}
			response.Body.Close()
		} // else the proxy closed the connection while the request was sent
	}
	response, err := c.Do(testworld.Must(http.NewRequest("PUT", s.url("/"), nil)))
	testworld.NoError(t, err)
	if n, err := io.Copy(io.Discard, response.Body); err == nil {
		t.Errorf("got %d bytes without an error", n)
	}
	response.Body.Close()
	if kept != 3 {
		t.Errorf("%d receipts were kept, want 3", kept)
	}
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

// TestStatuses: a response that is not final, or whose status HTTP does not have, is a problem.
func TestStatuses(t *testing.T) {
	for _, status := range []int{0, 99, 100, 101, 199, 200, 599, 999, 1000} {
		s := start(t, Config{Through: cluster(func(*http.Request) (*http.Response, error) {
			return &http.Response{StatusCode: status, Header: http.Header{}, ContentLength: 0, Body: http.NoBody}, nil
		})})
		response, err := s.client(t).Get(s.url("/"))
		testworld.NoError(t, err)
		want := status
		if status < 200 || status > 999 {
			want = http.StatusBadGateway
		}
		if response.StatusCode != want {
			t.Errorf("%d: got status %d, want %d", status, response.StatusCode, want)
		}
		response.Body.Close()
	}
}
