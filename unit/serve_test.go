package unit

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/identity"
	"github.com/cohort-tee/cohort/internal/retry"
	"github.com/cohort-tee/cohort/internal/testworld"
	"github.com/cohort-tee/cohort/internal/wire"
	"github.com/cohort-tee/cohort/unit/unittest"
)

// serve serves h on a loopback port until the test ends, and returns its address.
func serve(t *testing.T, u *Unit, h http.Handler) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	testworld.NoError(t, err)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- u.Serve(ctx, l, h) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("serving: %v", err)
		}
	})
	return l.Addr().String()
}

// user returns an HTTP client that requires the unit's identity.
func user(w *unittest.World, u *Unit, protocol string) *http.Client {
	w.T.Helper()
	root, err := x509.ParseCertificate(u.enrolled.Load().root.Raw)
	testworld.NoError(w.T, err)
	id, p := u.Identity().ID, w.Policy()
	config := identity.ClientTLS("", func() *x509.Certificate { return root }, func() identity.Expect {
		return identity.Expect{
			Policy: p, Kinds: []identity.Kind{identity.KindShared, identity.KindUnit},
			Use: identity.UseTLS, IDs: []attest.Digest{id}, At: u.currentTime(),
		}
	})
	transport := &http.Transport{TLSClientConfig: config, Protocols: new(http.Protocols)}
	transport.Protocols.SetHTTP1(protocol == "HTTP/1.1")
	transport.Protocols.SetHTTP2(protocol == "HTTP/2.0")
	w.T.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport, Timeout: 10 * time.Second}
}

var hello = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
	io.Copy(io.Discard, r.Body)
	io.WriteString(w, "hello")
})

// get makes one request, and returns the response and the server's certificate.
func get(t *testing.T, c *http.Client, address string) (*http.Response, *x509.Certificate) {
	t.Helper()
	answer, err := c.Get("https://" + address + "/")
	testworld.NoError(t, err)
	defer answer.Body.Close()
	if body, err := io.ReadAll(answer.Body); err != nil || string(body) != "hello" {
		t.Fatalf("got %q, %v", body, err)
	}
	return answer, answer.TLS.PeerCertificates[0]
}

// TestServeReconnects: once a unit has a newer certificate, its response on an older
// connection closes that connection. No request is lost.
func TestServeReconnects(t *testing.T) {
	for _, protocol := range []string{"HTTP/1.1", "HTTP/2.0"} {
		t.Run(protocol, func(t *testing.T) {
			var skip atomic.Int64
			w := unittest.New(t, "1h")
			f := w.Authority(w.AuthorityKeys)
			f.Clock = func() time.Time { return time.Now().Add(time.Duration(skip.Load())) }
			c := configOf(w, "scoring", f)
			c.Clock = skipping(&skip)
			u, err := Start(t.Context(), c)
			testworld.NoError(t, err)
			defer u.Close()
			user := user(w, u, protocol)
			address := serve(t, u, hello)

			answer, first := get(t, user, address)
			if answer.Proto != protocol || answer.Close {
				t.Errorf("got %s, close %v, want %s kept alive", answer.Proto, answer.Close, protocol)
			}
			handshakes := u.Stats().Handshakes
			get(t, user, address)
			if got := u.Stats().Handshakes; got != handshakes {
				t.Errorf("got %d handshakes, want %d: the connection is kept", got, handshakes)
			}
			skip.Store(int64(time.Until(u.Stats().NotAfter) - 10*time.Minute)) // into the next window
			testworld.NoError(t, u.Attempt(testworld.ShortContext(t)))
			get(t, user, address) // on the older connection, which this response closes
			testworld.Within(t, 5*time.Second, "an answer under the newer certificate", func() bool {
				_, leaf := get(t, user, address)
				return !leaf.Equal(first)
			})
		})
	}
}

// TestNothingServedAfterTheEnd: requests on a connection with an expired certificate are
// not served, and new handshakes fail.
func TestNothingServedAfterTheEnd(t *testing.T) {
	var skip atomic.Int64
	w := unittest.New(t, "1h")
	c := configOf(w, "scoring", w.Authority(w.AuthorityKeys))
	c.Clock = skipping(&skip)
	u, err := Start(t.Context(), c)
	testworld.NoError(t, err)
	defer u.Close()
	user := user(w, u, "HTTP/1.1")
	address := serve(t, u, hello)
	get(t, user, address)
	skip.Store(int64(time.Until(u.Stats().NotAfter)))
	if answer, err := user.Get("https://" + address + "/"); err == nil {
		t.Errorf("got status %d, want no answer", answer.StatusCode)
	}
	_, err = u.ServerTLS().GetCertificate(&tls.ClientHelloInfo{})
	testworld.Refused(t, err, wire.CertExpired)
}

// TestConnectionCutAtTheEnd: an idle connection ends when its certificate expires.
func TestConnectionCutAtTheEnd(t *testing.T) {
	t.Parallel()
	w := unittest.New(t, "3s")
	u := started(w, "scoring", w.Authority(w.AuthorityKeys))
	address := serve(t, u, hello)
	c, err := tls.Dial("tcp", address, &tls.Config{InsecureSkipVerify: true})
	testworld.NoError(t, err)
	defer c.Close()
	end := c.ConnectionState().PeerCertificates[0].NotAfter
	c.SetDeadline(end.Add(2 * time.Second))
	_, err = c.Read(make([]byte, 1))
	if late := time.Since(end); errors.Is(err, context.DeadlineExceeded) || late < -50*time.Millisecond || late > time.Second {
		t.Errorf("got %v at %v after the certificate's end, want the connection cut at it", err, late)
	}
}

// TestLoadOverRenewals: under load, with certificates of 3 s, no request fails and none is
// served under an expired certificate.
func TestLoadOverRenewals(t *testing.T) {
	t.Parallel()
	w := unittest.New(t, "5s")
	u := started(w, "scoring", w.Authority(w.AuthorityKeys))
	var late, served atomic.Int64
	address := serve(t, u, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !time.Now().Before(r.Context().Value(connKey{}).(*conn).enrolment().notAfter) {
			late.Add(1)
		}
		served.Add(1)
		hello(w, r)
	}))
	ctx, cancel := context.WithTimeout(t.Context(), 11*time.Second)
	defer cancel()
	var users sync.WaitGroup
	leaves := sync.Map{}
	for i := range 8 {
		user := user(w, u, []string{"HTTP/1.1", "HTTP/2.0"}[i%2])
		users.Go(func() {
			for ctx.Err() == nil {
				answer, err := user.Post("https://"+address+"/", "text/plain", strings.NewReader("a body"))
				if err != nil {
					t.Errorf("request failed: %v", err)
					return
				}
				io.Copy(io.Discard, answer.Body)
				answer.Body.Close()
				leaves.Store(answer.TLS.PeerCertificates[0].SerialNumber.String(), true)
				_ = retry.Sleep(ctx, 10*time.Millisecond)
			}
		})
	}
	users.Wait()
	seen := 0
	leaves.Range(func(any, any) bool { seen++; return true })
	if late.Load() != 0 || seen < 3 || served.Load() < 1000 {
		t.Errorf("got %d requests, %d served late, %d certificates; want over 1000, 0, at least 3", served.Load(), late.Load(), seen)
	}
}

// TestServeFinishesRequests: a request in progress at shutdown still gets its response.
func TestServeFinishesRequests(t *testing.T) {
	w := unittest.New(t, "1h")
	u := started(w, "scoring", w.Authority(w.AuthorityKeys))
	l, err := net.Listen("tcp", "127.0.0.1:0")
	testworld.NoError(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		done <- u.Serve(ctx, l, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			cancel()
			time.Sleep(50 * time.Millisecond) // longer than Serve takes to notice the shutdown
			hello(w, r)
		}))
	}()
	get(t, user(w, u, "HTTP/1.1"), l.Addr().String())
	testworld.NoError(t, <-done)
}

// TestServeTellsBrokenListener: Serve returns an error when its listener ends.
func TestServeTellsBrokenListener(t *testing.T) {
	w := unittest.New(t, "1h")
	u := started(w, "scoring", w.Authority(w.AuthorityKeys))
	l, err := net.Listen("tcp", "127.0.0.1:0")
	testworld.NoError(t, err)
	l.Close()
	if err := u.Serve(t.Context(), l, hello); !errors.Is(err, net.ErrClosed) {
		t.Errorf("got %v, want %v", err, net.ErrClosed)
	}
}

func TestServerTLSProfile(t *testing.T) {
	w := unittest.New(t, "1h")
	u := started(w, "scoring", w.Authority(w.AuthorityKeys))
	address := serve(t, u, hello)
	if c, err := tls.Dial("tcp", address, &tls.Config{InsecureSkipVerify: true, MaxVersion: tls.VersionTLS12}); err == nil {
		c.Close()
		t.Error("a TLS 1.2 handshake succeeded")
	}
	u.Close()
	if c, err := tls.Dial("tcp", address, &tls.Config{InsecureSkipVerify: true}); err == nil {
		c.Close()
		t.Error("a handshake succeeded after Close")
	}
}

// TestClientTLS: a unit calls the tasks that the policy allows it to call, and refuses any
// other server.
func TestClientTLS(t *testing.T) {
	w, evil := unittest.New(t, "1h"), unittest.New(t, "1h")
	f := w.Authority(w.AuthorityKeys)
	caller := started(w, "scoring", f)
	config, err := caller.ClientTLS("keys")
	testworld.NoError(t, err)
	call := func(address string) error {
		c, err := tls.Dial("tcp", address, config)
		if err != nil {
			return err
		}
		return c.Close()
	}
	testworld.NoError(t, call(serve(t, started(w, "keys", f), hello)))

	testworld.Refused(t, call(serve(t, started(w, "other", f), hello)), wire.WrongIdentity)
	stranger := started(evil, "keys", evil.Authority(evil.AuthorityKeys))
	testworld.Refused(t, call(serve(t, stranger, hello)), wire.WrongGenesis)
	for _, task := range []string{"other", "scoring", "unheard-of"} {
		_, err := caller.ClientTLS(task)
		testworld.Refused(t, err, wire.NotAllowed)
	}

	callee := serve(t, started(w, "keys", f), hello)
	testworld.NoError(t, call(callee))
	without := w.Edited(`calls = ["keys"]`, ``)
	f.Set(func(f *unittest.Authority) { f.Steps = without.Entries() })
	testworld.Within(t, 5*time.Second, "the step is adopted", func() bool { return caller.newest().PolicyHead() == without.Policy().PolicyHead() })
	testworld.Refused(t, call(callee), wire.BadPolicy)
}

// TestClientTLSWithoutNames: a task without a DNS name in the policy is identified by its
// URI.
func TestClientTLSWithoutNames(t *testing.T) {
	w := unittest.New(t, "1h").Edited(`calls = ["keys"]`, `calls = ["other"]`)
	f := w.Authority(w.AuthorityKeys)
	config, err := started(w, "scoring", f).ClientTLS("other")
	testworld.NoError(t, err)
	c, err := tls.Dial("tcp", serve(t, started(w, "other", f), hello), config)
	testworld.NoError(t, err)
	c.Close()
}

// TestClientCertificate: the caller presents its own leaf.
func TestClientCertificate(t *testing.T) {
	w := unittest.New(t, "1h")
	f := w.Authority(w.AuthorityKeys)
	caller, callee := started(w, "scoring", f), started(w, "keys", f)
	config, err := caller.ClientTLS("keys")
	testworld.NoError(t, err)
	server := callee.ServerTLS()
	server.ClientAuth = tls.RequireAnyClientCert
	l, err := tls.Listen("tcp", "127.0.0.1:0", server)
	testworld.NoError(t, err)
	defer l.Close()
	presented := make(chan string, 1)
	go func() {
		c, err := l.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		err = c.(*tls.Conn).Handshake()
		if err != nil {
			presented <- err.Error()
			return
		}
		presented <- fmt.Sprint(c.(*tls.Conn).ConnectionState().PeerCertificates[0].URIs)
	}()
	c, err := tls.Dial("tcp", l.Addr().String(), config)
	testworld.NoError(t, err)
	defer c.Close()
	if got, want := <-presented, "[spiffe://clinic.example/task/scoring]"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}
