package cli

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/cohort-tee/cohort/internal/wire"
)

// writePair makes files of a self-signed certificate for 127.0.0.1 and its key.
func writePair(t *testing.T) (cert, key string) {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, private.Public(), private)
	if err != nil {
		t.Fatal(err)
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	return write(t, "cert.pem", string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))),
		write(t, "key.pem", string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8})))
}

// TestManagerRuns starts managers without and with a certificate, asks them
// whether they are ready, and ends them.
func TestManagerRuns(t *testing.T) {
	cert, key := writePair(t)
	for _, tt := range []struct {
		name, scheme string
		args         []string
	}{
		{"self-made", "http", nil},
		{"operator's", "https", []string{"--tls-cert", cert, "--tls-key", key}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			list, err := addresses(0, 2)
			if err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithCancel(t.Context())
			var out bytes.Buffer
			a := judgingApp(&out)
			a.args = append([]string{"manager", "--listen", list[0], "--bus", list[1], "--authority-root", cert, "--data", t.TempDir()}, tt.args...)
			done := make(chan int)
			go func() { done <- a.execute(ctx) }()
			g := gatewayFlags{url: tt.scheme + "://" + list[0], ca: cert}
			for range 200 {
				if _, err = g.ready(ctx); err == nil {
					break
				}
				time.Sleep(20 * time.Millisecond)
			}
			if err != nil {
				t.Errorf("not ready: %v", err)
			}
			cancel()
			if exit := <-done; exit != exitDone {
				t.Errorf("got exit %d, want %d", exit, exitDone)
			}
			if !strings.Contains(out.String(), "gateway "+g.url+"\n") || !strings.Contains(out.String(), "bus     tls://"+list[1]) {
				t.Errorf("got %q, want where it is", out.String())
			}
		})
	}
}

func TestManagerRefuses(t *testing.T) {
	cert, key := writePair(t)
	tests := []struct {
		name string
		args []string
		exit int
		want string
	}{
		{"no root", nil, exitUsage, "authority-root"},
		{"root is a key", []string{"--authority-root", key}, exitUsage, "PRIVATE KEY"},
		{"root is nothing", []string{"--authority-root", write(t, "empty.pem", "")}, exitUsage, "no certificate"},
		{"certificate without key", []string{"--authority-root", cert, "--tls-cert", cert}, exitUsage, "--tls-key"},
		{"key of nobody", []string{"--authority-root", cert, "--tls-cert", cert, "--tls-key", cert}, exitUsage, "[file]"},
		{"open to strangers in plain text", []string{"--authority-root", cert, "--listen", "0.0.0.0:0", "--bus", "127.0.0.1:0"}, exitRefused, "[not-allowed]"},
	}
	for _, tt := range tests {
		got := run(t, map[string]string{"XDG_STATE_HOME": t.TempDir()}, append([]string{"manager"}, tt.args...)...)
		if got.exit != tt.exit || !strings.Contains(got.talk, tt.want) {
			t.Errorf("%s: got %+v, want exit %d and %q", tt.name, got, tt.exit, tt.want)
		}
	}
}

func FuzzReadCertificates(f *testing.F) {
	f.Add([]byte("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"))
	f.Add([]byte(""))
	f.Fuzz(func(t *testing.T, content []byte) {
		path := filepath.Join(t.TempDir(), "c.pem")
		if err := os.WriteFile(path, content, 0o600); err != nil {
			t.Skip(err)
		}
		if list, err := readCertificates(path); err == nil && len(list) == 0 {
			t.Error("a file without a certificate was accepted")
		}
	})
}

func FuzzReadReceipt(f *testing.F) {
	f.Add([]byte(`{"schema":"cohort/receipt/v1","at":"2026-11-22T09:00:00Z","request":"","answer":"","receipt":"","authority_root":"","policy_history":{}}`))
	f.Add([]byte(`{}`))
	f.Fuzz(func(t *testing.T, content []byte) {
		_, trust, err := readReceipt(content)
		if err == nil && (!trust.Policy.OK() || trust.Root == nil) {
			t.Error("a receipt without history and root was accepted")
		}
	})
}

// TestMiddlemanChanges holds that what the stories call changed or cut is so on
// the wire: a story with a middleman that does nothing would prove nothing.
func TestMiddlemanChanges(t *testing.T) {
	gateway := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { _, _ = io.Copy(w, r.Body) }))
	defer gateway.Close()
	m, err := newMiddleman(gateway.URL)
	if err != nil {
		t.Fatal(err)
	}
	defer m.close()
	header := wire.Header{Number: 1, Target: wire.UnitID{1, 2}, NotAfter: time.Unix(1, 0)}.Encode()
	sent := append(header[:], "four more bytes"...)
	last := bytes.Clone(sent)
	last[len(last)*11/12] ^= 1
	for _, tt := range []struct {
		name, path string
		way        change
		want       []byte
	}{
		{"nothing", wire.PathRequest, change{}, sent},
		{"a request's bit", wire.PathRequest, change{request: flip(11, 12)}, last},
		{"an answer's bit", wire.PathRequest, change{answer: flip(11, 12)}, last},
		{"half an answer", wire.PathRequest, change{answer: half}, sent[:len(sent)/2]},
		{"another path", wire.PathSession, change{request: half, answer: half}, sent},
	} {
		m.way.Store(&tt.way)
		answer, err := http.Post(m.url+tt.path, "", bytes.NewReader(sent))
		if err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(answer.Body)
		answer.Body.Close()
		if err != nil || !bytes.Equal(got, tt.want) {
			t.Errorf("%s: got %x, %v, want %x", tt.name, got, err, tt.want)
		}
	}
	if got := m.target.Load(); got == nil || *got != (wire.UnitID{1, 2}) {
		t.Errorf("got target %v, want the header's", got)
	}
}
