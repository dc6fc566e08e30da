package localproxy

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cohort-tee/cohort/internal/testworld"
	"github.com/cohort-tee/cohort/internal/testworld/bubble"
	"github.com/cohort-tee/cohort/internal/wire"
)

// TestMostRequests: a request above the limit is refused at once, and a place is free again when its
// request ends, however it ends.
func TestMostRequests(t *testing.T) {
	arrived, release := make(chan bool), make(chan error)
	var inside atomic.Int32
	s := start(t, Config{Requests: 2, Through: cluster(func(*http.Request) (*http.Response, error) {
		defer inside.Add(-1)
		if n := inside.Add(1); n > 2 {
			return nil, wire.Refuse(wire.Internal, "test: requests at once", n, 2)
		}
		arrived <- true
		if err := <-release; err != nil {
			return nil, err
		}
		return &http.Response{StatusCode: 200, Header: http.Header{}, Body: http.NoBody}, nil
	})})
	c := s.client(t)
	for _, end := range []error{nil, wire.Refuse(wire.Unavailable, "test", "no unit", "a unit")} {
		var running sync.WaitGroup
		for range 2 {
			running.Go(func() {
				response, err := c.Get(s.url("/"))
				testworld.NoError(t, err)
				response.Body.Close()
			})
			<-arrived
		}
		response, err := c.Get(s.url("/"))
		testworld.NoError(t, err)
		if p := problemIn(t, response); p.Status != 503 || p.Reason != wire.Overload || p.Retry != retrySafe || response.Header.Get("Retry-After") != "1" {
			t.Errorf("got %+v with %q, want 503, %q and Retry-After", p, response.Header, wire.Overload)
		}
		response.Body.Close()
		release <- end
		release <- end
		running.Wait()
	}
}

// TestMostConnections: above the limit of connections, the one that waits the longest is closed.
func TestMostConnections(t *testing.T) {
	s := start(t, Config{Requests: 1, Through: served(t, func(http.ResponseWriter, *http.Request) {})})
	var open []net.Conn
	for range connsPerSlot + 1 {
		c := testworld.Must(net.Dial("tcp", s.address))
		defer c.Close()
		fmt.Fprintf(c, "GET / HTTP/1.1\r\nHost: %s\r\n\r\n", s.address)
		in := bufio.NewReader(c)
		response := testworld.Must(http.ReadResponse(in, nil))
		if _, err := io.Copy(io.Discard, response.Body); err != nil || response.StatusCode != http.StatusOK {
			t.Fatalf("got status %d, %v", response.StatusCode, err)
		}
		open = append(open, c)
	}
	open[0].SetReadDeadline(time.Now().Add(10 * time.Second))
	if _, err := open[0].Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("the connection that waits the longest: got %v, want it closed", err)
	}
}

// pipes is a listener on a made-up network.
type pipes struct {
	dialed chan net.Conn
	once   sync.Once
	closed chan struct{}
}

func newPipes() *pipes { return &pipes{dialed: make(chan net.Conn), closed: make(chan struct{})} }

func (p *pipes) Accept() (net.Conn, error) {
	select {
	case c := <-p.dialed:
		return c, nil
	case <-p.closed:
		return nil, net.ErrClosed
	}
}

func (p *pipes) Close() error   { p.once.Do(func() { close(p.closed) }); return nil }
func (p *pipes) Addr() net.Addr { return &net.UnixAddr{Name: "made up", Net: "unix"} }

func (p *pipes) dial() net.Conn {
	near, far := net.Pipe()
	p.dialed <- far
	return near
}

// TestSlowPrograms: connections on which nothing moves end, and long streams and pauses between the
// pieces of a stream do not end them.
func TestSlowPrograms(t *testing.T) {
	piece := strings.Repeat("x", 8<<10)
	for _, row := range []struct {
		name  string
		begin string // of the program
		more  string // sent every 50 s, 100 times
		read  bool   // whether the program reads its response
		ends  bool   // whether the proxy ends the connection
	}{
		{"a head that stops", "GET / HTTP/1.1\r\nHost:", "", true, true},
		{"a head byte by byte", "GET / HTTP/1.1\r\nHost: localhost\r\nX: ", "x", true, true},
		{"content that stops", "POST /upload HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\n", "", true, true},
		{"content that comes slowly", "POST /upload HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\n", "x", true, false},
		{"an idle connection", "GET /short HTTP/1.1\r\nHost: localhost\r\n\r\n", "", true, true},
		{"a stream that is not read", "GET /stream HTTP/1.1\r\nHost: localhost\r\n\r\n", "", false, true},
		{"a stream", "GET /stream HTTP/1.1\r\nHost: localhost\r\n\r\n", "", true, false},
	} {
		t.Run(row.name, func(t *testing.T) {
			bubble.Test(t, func(t *testing.T) {
				l := newPipes()
				var units sync.WaitGroup
				s := startOn(t, Config{Through: cluster(func(r *http.Request) (*http.Response, error) {
					read, write := io.Pipe()
					context.AfterFunc(r.Context(), func() { write.CloseWithError(r.Context().Err()) })
					units.Go(func() {
						switch r.URL.Path {
						case "/upload":
							_, err := io.Copy(io.Discard, r.Body)
							write.CloseWithError(err)
						case "/short":
							write.Close()
						case "/stream": // a piece each 50 s, for hours
							for range 200 {
								time.Sleep(50 * time.Second)
								if _, err := io.WriteString(write, piece); err != nil {
									return
								}
							}
							write.Close()
						}
					})
					return &http.Response{StatusCode: 200, Header: http.Header{}, ContentLength: -1, Body: read}, nil
				})}, l)
				c := l.dial()
				defer c.Close()
				ended := make(chan struct{})
				if row.read {
					go func() { defer close(ended); io.Copy(io.Discard, c) }()
				}
				io.WriteString(c, row.begin)
				var sendErr error
				for range 100 {
					time.Sleep(50 * time.Second)
					if row.more != "" && sendErr == nil {
						_, sendErr = io.WriteString(c, row.more)
					}
				}
				synctest.Wait()
				isEnded := sendErr != nil
				if row.read {
					select {
					case <-ended:
						isEnded = true
					default:
					}
				} else if _, err := io.Copy(io.Discard, c); err == nil {
					isEnded = true // the proxy closed it
				}
				if isEnded != row.ends {
					t.Errorf("ended: %t, want %t", isEnded, row.ends)
				}
				c.Close()
				s.end()
				for range s.ended {
				}
				units.Wait()
			})
		})
	}
}

// TestEnd: when the proxy is told to end, it listens no more, requests in progress finish, and those that
// take longer are cut off visibly.
func TestEnd(t *testing.T) {
	for _, row := range []struct {
		name  string
		takes time.Duration
		whole bool
	}{{"in time", 5 * time.Second, true}, {"too long", time.Hour, false}} {
		t.Run(row.name, func(t *testing.T) {
			bubble.Test(t, func(t *testing.T) {
				l := newPipes()
				s := startOn(t, Config{Through: cluster(func(r *http.Request) (*http.Response, error) {
					read, write := io.Pipe()
					go func() {
						select {
						case <-time.After(row.takes):
							io.WriteString(write, "whole")
							write.Close()
						case <-r.Context().Done():
							write.CloseWithError(r.Context().Err())
						}
					}()
					return &http.Response{StatusCode: 200, Header: http.Header{}, ContentLength: -1, Body: read}, nil
				})}, l)
				c := l.dial()
				defer c.Close()
				io.WriteString(c, "GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
				response := testworld.Must(http.ReadResponse(bufio.NewReader(c), nil))
				s.end()
				<-l.closed
				b, err := io.ReadAll(response.Body)
				if (err == nil) != row.whole || row.whole && string(b) != "whole" {
					t.Errorf("got %q, %v", b, err)
				}
				for err := range s.ended {
					testworld.NoError(t, err)
				}
			})
		})
	}
}

// TestPages: probes and metrics are on a listener of their own, and no path of the service is taken.
func TestPages(t *testing.T) {
	s := start(t, Config{Through: served(t, func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "service "+r.URL.Path) })})
	var fault error
	pages := httptest.NewServer(s.Pages(func() error { return fault }))
	defer pages.Close()
	for _, row := range []struct {
		url    string
		fault  error
		status int
		text   string
	}{
		{s.url("/readyz"), nil, 200, "service /readyz"},
		{s.url("/metrics"), nil, 200, "service /metrics"},
		{pages.URL + "/livez", fs.ErrClosed, 200, "live"},
		{pages.URL + "/readyz", nil, 200, "ready"},
		{pages.URL + "/readyz", fmt.Errorf("opening a session: %w", wire.Refuse(wire.WrongGenesis, "certificate: genesis", "x", "y")), 503, `"genesis"`},
		{pages.URL + "/metrics", nil, 200, `cohort_proxy_requests_total{outcome="done"} 2`},
		{pages.URL + "/v1/chat", nil, 404, ""},
	} {
		fault = row.fault
		response, err := http.Get(row.url)
		testworld.NoError(t, err)
		b, err := io.ReadAll(response.Body)
		if response.Body.Close(); err != nil || response.StatusCode != row.status || !strings.Contains(string(b), row.text) {
			t.Errorf("%s: got status %d and %s, %v, want %d and %s", row.url, response.StatusCode, b, err, row.status, row.text)
		}
	}
}

// TestAddresses: which addresses there are, and which of them other machines reach.
func TestAddresses(t *testing.T) {
	for _, row := range []struct {
		text, name    string
		isLocal, isOK bool
	}{
		{"127.0.0.1:8080", "", true, true},
		{"127.9.9.9:0", "", true, true},
		{"[::1]:8080", "", true, true},
		{"[::ffff:127.0.0.1]:8080", "", true, true},
		{"localhost:8080", "localhost", true, true},
		{"unix:/run/cohort.sock", "", true, true},
		{":8080", "", false, true},
		{"0.0.0.0:8080", "", false, true},
		{"[::]:8080", "", false, true},
		{"192.0.2.1:8080", "", false, true},
		{"[fe80::1]:8080", "", false, true},
		{"8080", "", false, false},
		{"unix:", "", false, false},
		{"", "", false, false},
		{"http://127.0.0.1:8080", "", false, false},
	} {
		a, err := ParseAddress(row.text)
		if (err == nil) != row.isOK {
			t.Errorf("%q: got %v", row.text, err)
		}
		if err != nil {
			testworld.Refused(t, err, wire.BadRequest)
			continue
		}
		isLocal, err := a.IsLocal(t.Context())
		if isLocal != row.isLocal || a.HostName() != row.name {
			t.Errorf("%q: got local %t, %v, and name %q, want %t and %q", row.text, isLocal, err, a.HostName(), row.isLocal, row.name)
		}
	}
}

// TestUnixSocket: a socket is for its user alone. One at which no program listens is replaced; one in
// use stays, and so does any other file.
func TestUnixSocket(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	a := testworld.Must(ParseAddress("unix:" + path))
	defer syscall.Umask(syscall.Umask(0))
	first := testworld.Must(a.Listen(t.Context()))
	if info := testworld.Must(os.Stat(path)); info.Mode().Perm() != 0o600 {
		t.Errorf("got mode %v, want 0600", info.Mode())
	}
	if _, err := a.Listen(t.Context()); !errors.Is(err, syscall.EADDRINUSE) {
		t.Errorf("in use: got %v, want %v", err, syscall.EADDRINUSE)
	}
	first.(*net.UnixListener).SetUnlinkOnClose(false) // as a killed process leaves it
	first.Close()
	second, err := a.Listen(t.Context())
	testworld.NoError(t, err)
	second.Close()
	testworld.NoError(t, os.WriteFile(path, []byte("a file"), 0o600))
	_, err = a.Listen(t.Context())
	testworld.Refused(t, err, wire.BadRequest)
	if b, err := os.ReadFile(path); err != nil || string(b) != "a file" {
		t.Errorf("got %q, %v", b, err)
	}
}

// TestListenerInUse: an address in use is an error, before any program is served.
func TestListenerInUse(t *testing.T) {
	s := start(t, Config{Through: http.DefaultTransport, Log: slog.New(slog.DiscardHandler)})
	if _, err := testworld.Must(ParseAddress(s.address)).Listen(context.Background()); !errors.Is(err, syscall.EADDRINUSE) {
		t.Errorf("got %v, want %v", err, syscall.EADDRINUSE)
	}
}
