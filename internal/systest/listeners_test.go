package systest

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/cohort-tee/cohort/internal/bus"
	"github.com/cohort-tee/cohort/internal/testworld"
)

// listener is one of a cluster's TLS servers, as openssl connects to it.
type listener struct {
	address string
	say     string   // input after which the server responds and closes
	with    []string // more arguments of openssl
}

const request = "GET / HTTP/1.1\r\nHost: any\r\nConnection: close\r\n\r\n"

// TestListeners: openssl and nmap find TLS 1.3 and nothing older on every listener of a
// cluster, and get no session ticket, so no client resumes a session or sends early data.
// The defaults of crypto/tls would allow all of these.
func TestListeners(t *testing.T) {
	if testing.Short() {
		t.Skip("SKIPPED: openssl and nmap look at nothing that races; run without -short")
	}
	c := New(t, scoring(time.Hour))
	c.StartManager()
	plain := httptest.NewUnstartedServer(http.NotFoundHandler())
	plain.TLS = &tls.Config{MinVersion: tls.VersionTLS12}
	plain.StartTLS()
	t.Cleanup(plain.Close)
	for name, l := range map[string]listener{
		"authority": {c.addr, request, nil},
		"gateway":   {c.manager.listen, request, nil},
		"bus":       c.busListener(t),
		"unit":      {c.Start("scoring", "scoring 1", hello("ok")).Address, request, nil},
		"control":   {plain.Listener.Addr().String(), request, nil},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			ticket, old := l.ticket(t), l.speaks12()
			if want := name == "control"; ticket != want || old != want {
				t.Errorf("openssl: got a ticket %v, TLS 1.2 %v, want both %v", ticket, old, want)
			}
			if name != "control" {
				scan(t, l.address)
			}
		})
	}
}

// openssl connects to the listener with openssl, and returns its output.
func (l listener) openssl(args ...string) (string, error) {
	cmd := exec.Command("openssl", append(append([]string{"s_client", "-connect", l.address, "-ign_eof"}, l.with...), args...)...)
	cmd.Stdin = strings.NewReader(l.say)
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// ticket reports whether openssl, after a complete handshake and response, has a session
// that it could resume or send early data in.
func (l listener) ticket(t *testing.T) bool {
	t.Helper()
	session := filepath.Join(t.TempDir(), "session")
	out, err := l.openssl("-sess_out", session)
	if err != nil || !strings.Contains(out, "New, TLSv1.3") || !strings.Contains(out, "read R BLOCK") && !strings.Contains(out, "closed") {
		t.Errorf("openssl: no connection of TLS 1.3 to its end: %v\n%s", err, out)
	}
	_, err = os.Stat(session)
	return err == nil
}

// speaks12 reports whether the listener accepts TLS 1.2.
func (l listener) speaks12() bool {
	out, err := l.openssl("-tls1_2")
	return err == nil && strings.Contains(out, "New, TLSv1.2")
}

// busListener is the bus, on which TLS comes before the NATS protocol, for a client with a
// unit's certificate.
func (c *Cluster) busListener(t *testing.T) listener {
	t.Helper()
	s := newSpy(t, &apart{place: c.place()})
	report := s.report()
	dir := t.TempDir()
	file := func(name string, blocks ...*pem.Block) string {
		var text []byte
		for _, b := range blocks {
			text = append(text, pem.EncodeToMemory(b)...)
		}
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, text, 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	certificate := func(der []byte) *pem.Block { return &pem.Block{Type: "CERTIFICATE", Bytes: der} }
	return listener{c.manager.bus, "nonsense\r\n", []string{
		"-alpn", bus.Protocol, "-cert", file("unit", certificate(report.Unit)), "-cert_chain", file("cross", certificate(report.Cross)),
		"-key", file("key", &pem.Block{Type: "EC PRIVATE KEY", Bytes: testworld.Must(x509.MarshalECPrivateKey(s.key))}),
	}}
}
