package client_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"log"
	"math/rand/v2"
	"net"
	"net/http"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cohort-tee/cohort/identity"
	"github.com/cohort-tee/cohort/internal/testworld"
)

var quiet = log.New(io.Discard, "", 0)

// replica is a unit with a service and the faults that a test sets.
type replica struct {
	address     string
	certificate func() *tls.Certificate
	handler     atomic.Pointer[http.HandlerFunc]
	gate        gate

	executed atomic.Int64 // requests that reached the service
	accepted atomic.Int64 // connections
	expired  atomic.Int64 // requests on a connection with an expired certificate

	mu       sync.Mutex // guards the fields below
	server   *http.Server
	conns    []net.Conn
	notAfter map[net.Conn]time.Time
	leaf     *tls.Certificate
	made     time.Time
}

// newReplica starts a replica; it responds "ok" until its handler is set.
func newReplica(t testing.TB, certificate func() *tls.Certificate) *replica {
	t.Helper()
	r := &replica{certificate: certificate, notAfter: make(map[net.Conn]time.Time)}
	r.setHandler(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "ok") })
	l := listen(t)
	r.address = l.Addr().String()
	r.serve(l)
	t.Cleanup(func() {
		r.gate.set(false)
		r.kill()
	})
	return r
}

// listen returns a listener on a loopback address that other processes are unlikely to use,
// so that it is still free after the listener closes.
func listen(t testing.TB) net.Listener {
	t.Helper()
	host := fmt.Sprintf("127.%d.%d.%d:0", 1+rand.IntN(254), rand.IntN(256), 1+rand.IntN(254))
	l, err := net.Listen("tcp", host)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// host returns an address of its own that only byHost can reach.
func (r *replica) host() string {
	_, port, _ := net.SplitHostPort(r.address)
	n := testworld.Must(strconv.Atoi(port))
	return fmt.Sprintf("192.0.%d.%d", n/256, n%256)
}

// byHost dials the real address of a host.
type byHost map[string]string

func (b byHost) dial(ctx context.Context, network, address string) (net.Conn, error) {
	host, _, _ := net.SplitHostPort(address)
	return new(net.Dialer).DialContext(ctx, network, b[host])
}

// fixed resolves names from a table.
type fixed map[string][]string

func (f fixed) LookupHost(_ context.Context, host string) ([]string, error) {
	if found := f[host]; found != nil {
		return found, nil
	}
	return nil, &net.DNSError{Err: "no such host", Name: host, IsNotFound: true}
}

func (r *replica) setHandler(h http.HandlerFunc) { r.handler.Store(&h) }

func (r *replica) serve(l net.Listener) {
	config := identity.ServerTLS(nil)
	config.NextProtos = []string{"http/1.1"}
	config.GetCertificate = func(hello *tls.ClientHelloInfo) (*tls.Certificate, error) { return r.current(hello.Conn), nil }
	server := &http.Server{
		Handler:  http.HandlerFunc(r.handle),
		ErrorLog: quiet,
		ConnContext: func(ctx context.Context, c net.Conn) context.Context {
			return context.WithValue(ctx, connKey{}, c.(*tls.Conn).NetConn())
		},
	}
	r.mu.Lock()
	r.server = server
	r.mu.Unlock()
	go server.Serve(tls.NewListener(&gated{Listener: l, replica: r}, config))
}

type connKey struct{}

// current returns the current certificate, renewed at most every 100 ms.
func (r *replica) current(c net.Conn) *tls.Certificate {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.leaf == nil || time.Since(r.made) > 100*time.Millisecond {
		r.leaf, r.made = r.certificate(), time.Now()
	}
	end := testworld.Must(x509.ParseCertificate(r.leaf.Certificate[0])).NotAfter
	r.notAfter[c] = end
	time.AfterFunc(time.Until(end), func() { c.Close() }) // as a unit does
	return r.leaf
}

func (r *replica) handle(w http.ResponseWriter, req *http.Request) {
	r.executed.Add(1)
	r.mu.Lock()
	end := r.notAfter[req.Context().Value(connKey{}).(net.Conn)]
	r.mu.Unlock()
	if time.Now().After(end) {
		r.expired.Add(1)
	}
	(*r.handler.Load())(w, req)
}

// kill ends the replica with all its connections, as SIGKILL does.
func (r *replica) kill() {
	r.mu.Lock()
	for _, c := range r.conns {
		c.Close() // below TLS, so without a TLS close
	}
	r.conns = nil
	server := r.server
	r.mu.Unlock()
	server.Close() // waits for Accept, which waits for mu
}

// restart serves again at the same address.
func (r *replica) restart(t testing.TB) {
	t.Helper()
	l, err := net.Listen("tcp", r.address)
	if err != nil {
		t.Fatal(err)
	}
	r.serve(l)
}

// gate stops all reads and writes of a replica, as SIGSTOP does: the kernel still accepts
// connections.
type gate struct {
	mu     sync.Mutex // guards opened
	opened chan struct{}
}

func (g *gate) set(frozen bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	switch {
	case frozen && g.opened == nil:
		g.opened = make(chan struct{})
	case !frozen && g.opened != nil:
		close(g.opened)
		g.opened = nil
	}
}

func (g *gate) wait() {
	g.mu.Lock()
	opened := g.opened
	g.mu.Unlock()
	if opened != nil {
		<-opened
	}
}

type gated struct {
	net.Listener
	replica *replica
}

func (l *gated) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	l.replica.accepted.Add(1)
	l.replica.mu.Lock()
	l.replica.conns = append(l.replica.conns, c)
	l.replica.mu.Unlock()
	return &gatedConn{Conn: c, gate: &l.replica.gate}, nil
}

type gatedConn struct {
	net.Conn
	gate *gate
}

func (c *gatedConn) Read(b []byte) (int, error) {
	c.gate.wait()
	n, err := c.Conn.Read(b)
	c.gate.wait()
	return n, err
}

func (c *gatedConn) Write(b []byte) (int, error) {
	c.gate.wait()
	return c.Conn.Write(b)
}

// reset ends the connection of a request with a TCP reset.
func reset(w http.ResponseWriter) {
	c, _, err := w.(http.Hijacker).Hijack()
	if err != nil {
		panic(err)
	}
	raw := c.(*tls.Conn).NetConn().(*gatedConn).Conn.(*net.TCPConn)
	raw.SetLinger(0)
	raw.Close()
}

// half writes the first bytes of a response and cuts the connection.
func half(w http.ResponseWriter, length string) {
	if length != "" {
		w.Header().Set("Content-Length", length)
	}
	io.WriteString(w, "the first half")
	w.(http.Flusher).Flush()
	panic(http.ErrAbortHandler)
}

// get makes a GET request and requires want as the response's content.
func get(t testing.TB, c http.RoundTripper, want string) {
	t.Helper()
	body, err := do(c, testworld.Must(http.NewRequest("GET", "https://"+serverName+"/", nil)))
	if err != nil {
		t.Error(err)
	} else if body != want {
		t.Errorf("got %q, want %q", body, want)
	}
}

// do sends a request and reads its response to the end.
func do(c http.RoundTripper, r *http.Request) (string, error) {
	response, err := c.RoundTrip(r)
	if err != nil {
		return "", err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	return string(body), err
}
