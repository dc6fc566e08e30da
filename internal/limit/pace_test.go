package limit

import (
	"bufio"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"testing"
	"time"
)

// paceOf is short, so that a test need not wait.
var paceOf = Pace{Read: 200 * time.Millisecond, Write: 200 * time.Millisecond, Rest: 100 * time.Millisecond}

// served starts a server at that pace, over HTTP/1.1 or HTTP/2.
func served(t *testing.T, major int, h http.HandlerFunc) *httptest.Server {
	t.Helper()
	s := httptest.NewUnstartedServer(paceOf.Handler(h))
	s.EnableHTTP2 = major == 2
	s.Config.HTTP2 = paceOf.HTTP2()
	s.StartTLS()
	t.Cleanup(s.Close)
	return s
}

// soon waits for a value for longer than any limit of the tests.
func soon[T any](t *testing.T, what string, from <-chan T) (v T) {
	t.Helper()
	select {
	case v = <-from:
	case <-time.After(10 * time.Second):
		t.Fatalf("not within 10 s: %s", what)
	}
	return v
}

// TestStalledBody: what a client begins to send and does not go on with ends, at
// every point of it; what comes slowly does not.
func TestStalledBody(t *testing.T) {
	for _, major := range []int{1, 2} {
		for name, sent := range map[string]string{"before the first byte": "", "in the middle": "middle"} {
			t.Run(fmt.Sprintf("HTTP/%d, %s", major, name), func(t *testing.T) {
				ended := make(chan error, 1)
				s := served(t, major, func(_ http.ResponseWriter, r *http.Request) {
					_, err := io.Copy(io.Discard, r.Body)
					ended <- err
				})
				out, in := io.Pipe()
				defer in.Close()
				go func() {
					if r, err := s.Client().Post(s.URL, "text/plain", out); err == nil {
						r.Body.Close()
					}
				}()
				for _, b := range []byte(sent) { // longer in all than one read may take
					fmt.Fprintf(in, "%c", b)
					time.Sleep(paceOf.Read / 4)
				}
				if err := soon(t, "the handler ends", ended); !errors.Is(err, os.ErrDeadlineExceeded) {
					t.Errorf("got %v, want %v", err, os.ErrDeadlineExceeded)
				}
			})
		}
	}
}

// TestUnreadResponse: a client that takes nothing of a response ends it.
func TestUnreadResponse(t *testing.T) {
	for _, major := range []int{1, 2} {
		t.Run(fmt.Sprint("HTTP/", major), func(t *testing.T) {
			ended := make(chan error, 1)
			s := served(t, major, func(w http.ResponseWriter, _ *http.Request) {
				for piece := make([]byte, 64<<10); ; {
					if _, err := w.Write(piece); err != nil {
						ended <- err
						return
					}
				}
			})
			answer, err := s.Client().Get(s.URL)
			if err != nil {
				t.Fatal(err)
			}
			defer answer.Body.Close()
			if err := soon(t, "the handler ends", ended); err == nil {
				t.Error("got no error")
			}
		})
	}
}

// TestSlowHandler: a handler may take longer than any read or write, before it
// writes and between two writes, and the connection goes on.
func TestSlowHandler(t *testing.T) {
	for _, major := range []int{1, 2} {
		t.Run(fmt.Sprint("HTTP/", major), func(t *testing.T) {
			var ports []string
			s := served(t, major, func(w http.ResponseWriter, r *http.Request) {
				ports = append(ports, r.RemoteAddr)
				body, err := io.ReadAll(r.Body)
				for range 2 {
					time.Sleep(2 * paceOf.Write)
					if err == nil {
						err = r.Context().Err()
					}
					fmt.Fprint(w, string(body), err)
					w.(http.Flusher).Flush()
				}
			})
			for range 2 {
				answer, err := s.Client().Post(s.URL, "text/plain", strings.NewReader("x"))
				if err != nil {
					t.Fatal(err)
				}
				got, err := io.ReadAll(answer.Body)
				answer.Body.Close()
				if string(got) != "x<nil>x<nil>" || err != nil {
					t.Errorf("got %q, %v", got, err)
				}
			}
			if ports[0] != ports[1] {
				t.Error("the second request needed another connection")
			}
		})
	}
}

// TestLeftBody: what a handler leaves of a body is not waited for.
func TestLeftBody(t *testing.T) {
	s := served(t, 1, func(http.ResponseWriter, *http.Request) {})
	c, err := tls.Dial("tcp", s.Listener.Addr().String(), &tls.Config{InsecureSkipVerify: true})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	io.WriteString(c, "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\nx")
	ended := make(chan error, 1)
	go func() { _, err := io.Copy(io.Discard, c); ended <- err }()
	soon(t, "the connection is closed", ended)
}

// TestOwnDeadline: a handler that sets a deadline of its own decides about reads.
func TestOwnDeadline(t *testing.T) {
	ended := make(chan error, 1)
	s := served(t, 1, func(w http.ResponseWriter, r *http.Request) {
		control := http.NewResponseController(w)
		control.SetReadDeadline(time.Now().Add(time.Hour))
		if _, err := io.ReadFull(r.Body, make([]byte, 2)); err != nil {
			t.Error("while it decides:", err)
		}
		control.SetReadDeadline(time.Time{})
		_, err := r.Body.Read(make([]byte, 1))
		ended <- err
	})
	out, in := io.Pipe()
	defer in.Close()
	go func() {
		if r, err := s.Client().Post(s.URL, "text/plain", out); err == nil {
			r.Body.Close()
		}
	}()
	in.Write([]byte("x"))
	time.Sleep(2 * paceOf.Read)
	in.Write([]byte("y"))
	if err := soon(t, "the handler ends", ended); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("got %v, want %v", err, os.ErrDeadlineExceeded)
	}
}

// TestHijacked: a connection that a handler takes has no limit.
func TestHijacked(t *testing.T) {
	s := served(t, 1, func(w http.ResponseWriter, _ *http.Request) {
		conn, buffered, err := w.(http.Hijacker).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		go func() {
			defer conn.Close()
			line, _ := buffered.ReadString('\n')
			io.WriteString(conn, line)
		}()
	})
	c, err := tls.Dial("tcp", s.Listener.Addr().String(), &tls.Config{InsecureSkipVerify: true})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	io.WriteString(c, "GET / HTTP/1.1\r\nHost: x\r\n\r\n")
	time.Sleep(3 * paceOf.Write)
	io.WriteString(c, "later\n")
	if got, err := bufio.NewReader(c).ReadString('\n'); got != "later\n" {
		t.Errorf("got %q, %v", got, err)
	}
}

// TestUnreadStream: over HTTP/2 a client may hold back one stream alone, and by
// its settings the response of each, however small.
func TestUnreadStream(t *testing.T) {
	s := served(t, 2, func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "short") })
	c, err := tls.Dial("tcp", s.Listener.Addr().String(), &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"h2"}})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	io.WriteString(c, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
	io.WriteString(c, "\x00\x00\x06\x04\x00\x00\x00\x00\x00"+"\x00\x04\x00\x00\x00\x00") // SETTINGS: windows of 0 bytes
	io.WriteString(c, "\x00\x00\x05\x01\x05\x00\x00\x00\x01"+"\x82\x84\x87"+"\x41\x00")  // HEADERS: GET / of https and no authority
	c.SetReadDeadline(time.Now().Add(20 * time.Second))
	frames := bufio.NewReader(c)
	for {
		var head [9]byte
		if _, err := io.ReadFull(frames, head[:]); err != nil {
			t.Fatalf("the stream is not reset: %v", err)
		}
		frames.Discard(int(head[0])<<16 | int(head[1])<<8 | int(head[2]))
		if head[3] == 3 { // RST_STREAM
			return
		}
	}
}
