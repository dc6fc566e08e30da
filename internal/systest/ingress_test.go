package systest

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/cohort-tee/cohort/client"
	proxied "github.com/cohort-tee/cohort/internal/forwarded"
	"github.com/cohort-tee/cohort/internal/loopback"
	"github.com/cohort-tee/cohort/internal/manager"
	"github.com/cohort-tee/cohort/internal/testworld"
	"github.com/cohort-tee/cohort/internal/wire"
)

// ingress is a server that ends TLS in front of a gateway, configured as in
// docs/how-to/manager.md.
type ingress struct {
	binary, install string
	// config has, in this order, a directory, the address to listen on, a file with the
	// certificate and its key, and the address of the gateway.
	config string
	args   []string // before the file of the configuration
}

var ingresses = map[string]ingress{
	"nginx": {"nginx", "nginx", `daemon off;
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
  upstream gateway { server %[4]s; keepalive 16; }
  server {
    listen %[2]s ssl http2;
    ssl_protocols TLSv1.3;
    ssl_certificate %[3]s;
    ssl_certificate_key %[3]s;
    client_max_body_size 0;
    location / {
      proxy_pass http://gateway;
      proxy_http_version 1.1;
      proxy_set_header Host $host;
      proxy_set_header Connection "";
      proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;
      proxy_request_buffering off;
    }
  }
}
`, []string{"-e", "stderr", "-c"}},
	"HAProxy": {"haproxy", "haproxy", `global
  # %[1]s
defaults
  mode http
  timeout connect 5s
  timeout client 2m
  timeout server 2m
frontend users
  bind %[2]s ssl crt %[3]s alpn h2,http/1.1
  option forwardfor
  default_backend gateway
backend gateway
  server manager %[4]s proto h2
`, []string{"-f"}},
}

// start runs the ingress until the test ends, and returns its URL.
func (i ingress) start(t *testing.T, certificate tls.Certificate, gateway string, ca *x509.CertPool) string {
	t.Helper()
	if _, err := exec.LookPath(i.binary); err != nil {
		t.Skipf("SKIPPED: no %s; install %s", i.binary, i.install)
	}
	dir, address := t.TempDir(), loopback.FreeAddress(t)
	key := testworld.Must(x509.MarshalPKCS8PrivateKey(certificate.PrivateKey))
	both := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: certificate.Certificate[0]})
	both = append(both, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: key})...)
	files := map[string]string{"both.pem": string(both), "config": fmt.Sprintf(i.config, dir, address, filepath.Join(dir, "both.pem"), gateway)}
	for name, content := range files {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	command := exec.Command(i.binary, append(i.args, filepath.Join(dir, "config"))...)
	command.Dir, command.Stderr = dir, os.Stderr
	if err := command.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = command.Process.Signal(os.Interrupt); _ = command.Wait() })
	hc := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: ca}, DisableKeepAlives: true}}
	testworld.Within(t, 10*time.Second, "the ingress serves", func() bool {
		response, err := hc.Get("https://" + address + "/livez")
		if err == nil {
			response.Body.Close()
		}
		return err == nil && response.StatusCode == http.StatusOK
	})
	return "https://" + address
}

// TestBehindAnIngress: a gateway with plain HTTP works behind real servers that end TLS, over
// HTTP/1.1 (nginx) and HTTP/2 without TLS (HAProxy): sessions, and a stream event by event.
// Shares are per address of the clients, and no client changes its address by a field.
func TestBehindAnIngress(t *testing.T) {
	for name, i := range ingresses {
		t.Run(name, func(t *testing.T) {
			events, done := make(chan int), make(chan struct{})
			c := New(t, scoring(time.Hour))
			c.manager = c.newGateway()
			t.Cleanup(c.StopManager)
			c.manager.plain = true
			c.manager.limits = manager.Limits{PerAddress: 5}
			c.manager.proxies = testworld.Must(proxied.ParseProxies([]string{"127.0.0.1"}, proxied.FieldX))
			c.StartManager()
			unit := c.Start("scoring", "scoring 1", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if r.URL.Path != "/events" {
					_, _ = io.Copy(w, r.Body)
					return
				}
				defer close(done)
				w.Header().Set("Content-Type", "text/event-stream")
				_ = http.NewResponseController(w).Flush()
				for n := range events { // each event is made once the client has received the one before
					fmt.Fprintf(w, "data: %d\n\n", n)
					_ = http.NewResponseController(w).Flush()
				}
			}))
			attended(t, unit)
			url := i.start(t, c.manager.certificate, c.manager.listen, c.manager.ca)
			trust := testworld.Must(client.FetchTrust(t.Context(), c.TrustConfig("scoring")))
			ch := testworld.Must(client.Open(t.Context(), client.OpenConfig{Trust: trust, Gateway: url, CA: c.manager.ca}))
			defer ch.Close(context.Background())

			large := strings.Repeat("x", 3<<20)
			for _, body := range []string{"small", large} {
				r := testworld.Must(http.NewRequestWithContext(t.Context(), http.MethodPost, scoringURL+"/", strings.NewReader(body)))
				response := testworld.Must(ch.RoundTrip(r))
				if got := testworld.Must(io.ReadAll(response.Body)); string(got) != body {
					t.Errorf("got %d bytes, want the %d that were sent", len(got), len(body))
				}
				response.Body.Close()
			}
			stream := testworld.Must(ch.RoundTrip(testworld.Must(http.NewRequestWithContext(t.Context(), http.MethodGet, scoringURL+"/events", nil))))
			defer stream.Body.Close()
			lines := bufio.NewScanner(stream.Body)
			for n := range 5 {
				events <- n
				if want := fmt.Sprint("data: ", n); !lines.Scan() || lines.Text() != want || !lines.Scan() {
					t.Fatalf("got line %q (%v), want %q", lines.Text(), lines.Err(), want)
				}
			}
			close(events)
			<-done
			wantSharesBehind(t, url, c.manager.ca)
		})
	}
}

// wantSharesBehind sends open requests from several addresses: one that exceeds its share is
// refused, whatever addresses it names, and no other.
func wantSharesBehind(t *testing.T, url string, ca *x509.CertPool) {
	t.Helper()
	refused := func(from string, n int, lie func(int) http.Header) (refused int) {
		dialer := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}}
		transport := &http.Transport{DialContext: dialer.DialContext, TLSClientConfig: &tls.Config{RootCAs: ca}}
		defer transport.CloseIdleConnections()
		for i := range n {
			ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
			r := testworld.Must(http.NewRequestWithContext(ctx, http.MethodPost, url+wire.PathSession, strings.NewReader("no open request")))
			r.Header = lie(i)
			r.Header.Set("Content-Type", wire.TypeSession)
			response, err := transport.RoundTrip(r)
			cancel()
			if err != nil {
				t.Fatalf("request %d from %s: %v", i, from, err)
			}
			_, _ = io.Copy(io.Discard, response.Body)
			response.Body.Close()
			if response.StatusCode == http.StatusTooManyRequests {
				refused++
			}
		}
		return refused
	}
	honest := func(int) http.Header { return http.Header{} }
	lies := func(i int) http.Header {
		invented := fmt.Sprintf("203.0.113.%d", i)
		return http.Header{"X-Forwarded-For": {invented}, "Forwarded": {"for=" + invented}, "X-Real-Ip": {invented}}
	}
	if n := refused("127.0.0.2", 100, honest); n == 0 {
		t.Error("an address that exceeds its share is never refused")
	}
	if n := refused("127.0.0.2", 100, lies); n == 0 {
		t.Error("it is not refused when it invents addresses")
	}
	if n := refused("127.0.0.3", 5, honest); n != 0 {
		t.Errorf("another address is refused %d times", n)
	}
}
