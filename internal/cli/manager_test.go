package cli

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"math/big"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cohort-tee/cohort/internal/authorityclient"
	"github.com/cohort-tee/cohort/internal/cli/clitest"
	"github.com/cohort-tee/cohort/internal/cli/frame"
	"github.com/cohort-tee/cohort/internal/dev"
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
	return clitest.Write(t, "cert.pem", string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))),
		clitest.Write(t, "key.pem", string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8})))
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
		{"behind an ingress", "http", []string{"--plain", "--trusted-proxies", "127.0.0.1,10.0.0.0/8", "--metrics", "127.0.0.1:0"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			list, err := dev.Addresses(0, 2)
			if err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithCancel(t.Context())
			var out bytes.Buffer
			a := clitest.App(&out)
			a.Args = append([]string{"manager", "--listen", list[0], "--bus", list[1], "--authority-root", cert, "--data", t.TempDir()}, tt.args...)
			done := make(chan int)
			go func() { done <- execute(ctx, a) }()
			g := authorityclient.Gateway{URL: tt.scheme + "://" + list[0], CA: cert}
			for range 200 {
				if _, err = g.Ready(ctx); err == nil {
					break
				}
				time.Sleep(20 * time.Millisecond)
			}
			if err != nil {
				t.Errorf("not ready: %v", err)
			}
			cancel()
			if exit := <-done; exit != frame.ExitDone {
				t.Errorf("got exit %d, want %d", exit, frame.ExitDone)
			}
			if !strings.Contains(out.String(), "gateway "+g.URL+"\n") || !strings.Contains(out.String(), "bus     tls://"+list[1]) {
				t.Errorf("got %q, want where it is", out.String())
			}
			if wants := slices.Contains(tt.args, "--metrics"); strings.Contains(out.String(), "metrics http://127.0.0.1:") != wants {
				t.Errorf("got %q, want the address of the metrics: %v", out.String(), wants)
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
		{"no root", nil, frame.ExitUsage, "authority-root"},
		{"root is a key", []string{"--authority-root", key}, frame.ExitUsage, "PRIVATE KEY"},
		{"root is nothing", []string{"--authority-root", clitest.Write(t, "empty.pem", "")}, frame.ExitUsage, "no certificate"},
		{"certificate without key", []string{"--authority-root", cert, "--tls-cert", cert}, frame.ExitUsage, "--tls-key"},
		{"key of nobody", []string{"--authority-root", cert, "--tls-cert", cert, "--tls-key", cert}, frame.ExitUsage, "[file]"},
		{"plain with a certificate", []string{"--authority-root", cert, "--plain", "--tls-cert", cert, "--tls-key", key}, frame.ExitUsage, "--plain"},
		{"proxies everywhere", []string{"--authority-root", cert, "--trusted-proxies", "0.0.0.0/0"}, frame.ExitUsage, "--trusted-proxies"},
		{"another field", []string{"--authority-root", cert, "--forwarded-field", "x-real-ip"}, frame.ExitUsage, "--forwarded-field"},
		{"open to strangers in plain text", []string{"--authority-root", cert, "--listen", "0.0.0.0:0", "--bus", "127.0.0.1:0"}, frame.ExitRefused, "[not-allowed]"},
	}
	for _, tt := range tests {
		got := run(t, map[string]string{"XDG_STATE_HOME": t.TempDir()}, append([]string{"manager"}, tt.args...)...)
		if got.exit != tt.exit || !strings.Contains(got.talk, tt.want) {
			t.Errorf("%s: got %+v, want exit %d and %q", tt.name, got, tt.exit, tt.want)
		}
	}
}
