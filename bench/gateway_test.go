package bench

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/client"
	"github.com/cohort-tee/cohort/internal/manager"
	"github.com/cohort-tee/cohort/internal/manager/selfsigned"
	"github.com/cohort-tee/cohort/internal/testworld"
	"github.com/cohort-tee/cohort/unit"
)

// gatewayInfo is the report of a serving process with a manager.
type gatewayInfo struct {
	info
	Gateway, GatewayTLS string // of a manager with one unit
	Proxy               string // a bare reverse proxy in front of the handler, over TLS
	Nginx               string // in front of the gateway
}

// TestGatewayServer is the entry point of the serving process with a manager. In an
// ordinary test run it tests nothing.
func TestGatewayServer(t *testing.T) {
	if os.Getenv(serverEnv) == "" {
		t.Skip("the benchmarks start it")
	}
	s := &server{t: t, vendors: newVendors(time.Now())}
	var i gatewayInfo
	var stop func()
	s.estate, stop = found(t, s.vendors).start(t)
	t.Cleanup(stop)
	i.Authority, i.Genesis, i.Root = s.estate.url, s.estate.genesis, s.estate.root
	i.Control = s.listen(listener(), http.HandlerFunc(s.control), nil)
	chain := s.selfSigned(nil)
	i.CA = chain.Certificate[0]
	withTLS := &tls.Config{MinVersion: tls.VersionTLS13, SessionTicketsDisabled: true, Certificates: []tls.Certificate{chain}}
	i.Plain = s.listen(listener(), app(), nil)
	i.Proxy = s.listen(listener(), s.proxy(s.listen(listener(), app(), withTLS), i.CA), nil)
	i.RATLS, i.Evidence = s.raTLS()
	h := s.manager()
	i.Gateway, i.GatewayTLS = s.listen(listener(), h, nil), s.listen(listener(), h, withTLS)
	i.Nginx = s.nginx(i.Gateway)
	if err := json.NewEncoder(os.Stdout).Encode(i); err != nil {
		t.Fatal(err)
	}
	io.Copy(io.Discard, os.Stdin) // ends with the parent
}

// app responds with the request's content, or streams tokens.
func app() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("/echo", echo)
	mux.HandleFunc("/tokens", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/event-stream")
		for range 4 {
			io.WriteString(w, "data: token\n\n")
			_ = http.NewResponseController(w).Flush()
			time.Sleep(time.Millisecond)
		}
	})
	return mux
}

// proxy returns net/http's reverse proxy to a server with TLS.
func (s *server) proxy(to string, ca []byte) http.Handler {
	pool := x509.NewCertPool()
	pool.AddCert(testworld.Must(x509.ParseCertificate(ca)))
	p := httputil.NewSingleHostReverseProxy(testworld.Must(url.Parse(to)))
	p.Transport = &http.Transport{MaxIdleConnsPerHost: inFlight, DisableCompression: true, TLSClientConfig: &tls.Config{RootCAs: pool}}
	return p
}

// manager runs a manager with one unit, and returns its gateway.
func (s *server) manager() http.Handler {
	trust := testworld.Must(client.FetchTrust(s.t.Context(), client.TrustConfig{
		Authorities: []string{s.estate.url}, Genesis: s.estate.genesis, Task: "scoring", Verifier: verifier(),
	}))
	l := listener()
	bus := l.Addr().String()
	l.Close()
	dir := s.t.TempDir()
	m := testworld.Must(manager.New(manager.Config{
		DataDir: dir, Roots: []*x509.Certificate{trust.AuthorityRoot()}, BusAddress: bus, Log: slog.New(slog.DiscardHandler),
	}))
	s.run(func(ctx context.Context) error { return m.Serve(ctx, listener()) })
	pool := x509.NewCertPool()
	until(func() bool {
		b, err := os.ReadFile(selfsigned.CAFile(dir))
		return err == nil && pool.AppendCertsFromPEM(b)
	})
	u := testworld.Must(unit.Start(s.t.Context(), unit.Config{
		Authorities: []string{s.estate.url}, Genesis: s.estate.genesis, Task: "scoring",
		Attester: s.vendors.device(attest.SNP, "scoring"), Manager: unit.Manager{URL: "tls://" + bus, CA: pool},
	}))
	s.t.Cleanup(u.Close)
	s.run(func(ctx context.Context) error { return u.Serve(ctx, listener(), app()) })
	until(func() bool { return u.Stats().Manager })
	return m.Handler()
}

// run runs f until the test ends, and then waits for it.
func (s *server) run(f func(context.Context) error) {
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- f(ctx) }()
	s.t.Cleanup(func() { stop(); <-done })
}

// until polls until holds returns true, and panics after 30 s.
func until(holds func() bool) {
	for end := time.Now().Add(30 * time.Second); !holds(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			panic("not within 30 s")
		}
	}
}

// nginx runs nginx in front of a gateway, configured as in docs/how-to/manager.md.
func (s *server) nginx(to string) string {
	l := listener()
	address := l.Addr().String()
	l.Close()
	dir := s.t.TempDir()
	config := filepath.Join(dir, "nginx.conf")
	testworld.Must(0, os.WriteFile(config, fmt.Appendf(nil, `daemon off;
worker_processes 1;
pid %[1]s/pid;
error_log stderr;
events {}
http {
  access_log off;
  client_body_temp_path %[1]s/body;
  proxy_temp_path %[1]s/proxy;
  fastcgi_temp_path %[1]s/fastcgi;
  uwsgi_temp_path %[1]s/uwsgi;
  scgi_temp_path %[1]s/scgi;
  upstream gateway { server %[3]s; keepalive 16; }
  server {
    listen %[2]s;
    client_max_body_size 0;
    location / {
      proxy_pass http://gateway;
      proxy_http_version 1.1;
      proxy_set_header Connection "";
      proxy_request_buffering off;
    }
  }
}
`, dir, address, testworld.Must(url.Parse(to)).Host), 0o600))
	command := exec.Command("nginx", "-p", dir, "-c", config, "-e", "stderr")
	command.Stderr = os.Stderr
	if err := command.Start(); err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { command.Process.Signal(os.Interrupt); command.Wait() })
	until(func() bool {
		answer, err := http.Get("http://" + address + "/livez")
		if err == nil {
			answer.Body.Close()
		}
		return err == nil
	})
	return "http://" + address
}

// through has several paths to the same handler.
type through struct {
	*peer
	gatewayInfo
	plain *http.Transport
}

func newThrough(b *testing.B) *through {
	t := &through{peer: &peer{ca: x509.NewCertPool()}, plain: &http.Transport{MaxIdleConnsPerHost: inFlight, DisableCompression: true}}
	serving(b, "TestGatewayServer", &t.gatewayInfo)
	t.peer.info = t.gatewayInfo.info
	t.found(b)
	b.Cleanup(t.plain.CloseIdleConnections)
	return t
}

func (t *through) open(b *testing.B, gateway string) http.RoundTripper {
	c := testworld.Must(client.Open(b.Context(), client.OpenConfig{Trust: t.trust(b), Gateway: gateway, CA: t.ca}))
	b.Cleanup(func() { c.Close(context.Background()) })
	return c
}

const named = "https://scoring.clinic.example"

// BenchmarkGateway measures the hops that G7 leaves out: a request of 1 KiB through the
// manager's gateway and TLS to a real unit, against the same hops with net/http. It
// measures the CPU time of everything but nginx.
func BenchmarkGateway(b *testing.B) {
	t := newThrough(b)
	body := make([]byte, 1<<10)
	const n = 800
	cost := func(rt http.RoundTripper, url string) func() time.Duration {
		return func() time.Duration { return t.pair(func() { all(n, func() { post(rt, url, body) }) }) / n }
	}
	Compare(b, Contender{"plain", cost(t.plain, t.peer.Plain)}, Contender{"proxy", cost(t.plain, t.Proxy)},
		Contender{"gateway", cost(t.open(b, t.Gateway), named)}, Contender{"gateway-tls", cost(t.open(b, t.GatewayTLS), named)},
		Contender{"gateway-nginx", cost(t.open(b, t.Nginx), named)})
}

// BenchmarkFirstToken measures the wall time from a request to the first token of a
// streamed response.
func BenchmarkFirstToken(b *testing.B) {
	t := newThrough(b)
	const n = 100
	cost := func(rt http.RoundTripper, url string) func() time.Duration {
		return func() (sum time.Duration) {
			for range n {
				sum += firstToken(rt, url)
			}
			return sum / n
		}
	}
	Compare(b, Contender{"plain", cost(t.plain, t.peer.Plain)}, Contender{"proxy", cost(t.plain, t.Proxy)},
		Contender{"gateway", cost(t.open(b, t.Gateway), named)}, Contender{"gateway-tls", cost(t.open(b, t.GatewayTLS), named)},
		Contender{"gateway-nginx", cost(t.open(b, t.Nginx), named)})
}

// firstToken returns the time until the first token; it reads the other tokens as well.
func firstToken(rt http.RoundTripper, url string) time.Duration {
	begin := time.Now()
	answer := testworld.Must(rt.RoundTrip(testworld.Must(http.NewRequest(http.MethodGet, url+"/tokens", nil))))
	defer answer.Body.Close()
	testworld.Must(io.ReadFull(answer.Body, make([]byte, 1)))
	took := time.Since(begin)
	testworld.Must(io.Copy(io.Discard, answer.Body))
	return took
}
