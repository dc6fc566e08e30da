package devcmd

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"math/big"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cohort-tee/cohort/internal/cli/clitest"
	"github.com/cohort-tee/cohort/internal/cli/frame"
	"github.com/cohort-tee/cohort/internal/dev"
	"github.com/cohort-tee/cohort/internal/dev/check"
	"github.com/cohort-tee/cohort/internal/unitauth"
	"github.com/cohort-tee/cohort/policy/policyfile"
)

// TestCheckFindsBrokenClusters checks three clusters that are broken on purpose.
// Each of them must fail in just the check that is about it; that a good one
// fails in none is seen by the command itself, in ./cmd/cohort.
func TestCheckFindsBrokenClusters(t *testing.T) {
	if testing.Short() {
		t.Skip("judges three clusters for half a minute")
	}
	d := startDev(t)
	t.Run("keys for plain OHTTP clients", d.writesOneOffKeys)
	tests := []struct {
		name    string
		cluster func(*testing.T, dev.Description) dev.Description
		want    string
		cause   string
	}{
		{"units with other leaves", otherLeaves, "identity/one-certificate", "got 3 leaves"},
		{"TLS 1.2 enabled", d.withTLS12, "identity/tls13-only", "got TLS 1.2"},
		{"no restart of killed units", d.withoutRestart, "identity/kill-and-restart", "not back within"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var out bytes.Buffer
			judge := check.Checker{App: clitest.App(&out), Cluster: tt.cluster(t, d.Describe()), Live: d.Describe}
			err := judge.Run(t.Context(), checks)
			var failed []string
			for line := range strings.Lines(out.String()) {
				if name, ok := strings.CutPrefix(line, "FAIL "); ok {
					failed = append(failed, name)
				}
			}
			if len(failed) != 1 || !strings.HasPrefix(failed[0], tt.want+" ") || !strings.Contains(failed[0], tt.cause) {
				t.Fatalf("got %q, %v, want one FAIL %s … %s", failed, err, tt.want, tt.cause)
			}
			if exit := judge.App.ReportError("cohort dev", err); exit != frame.ExitRefused {
				t.Errorf("got exit %d (%v), want 1", exit, err)
			}
		})
	}
}

// runningDev is a real cluster in key mode unit.
type runningDev struct{ *dev.Cluster }

func startDev(t *testing.T) runningDev {
	t.Helper()
	bin := t.TempDir()
	for _, pkg := range []string{"cmd/cohort", "examples/scoring"} {
		if _, err := dev.GoBuild(t.Context(), "./"+pkg, filepath.Join(bin, filepath.Base(pkg))); err != nil {
			t.Fatal(err)
		}
	}
	a := clitest.App(io.Discard)
	d, err := dev.New(a, dev.Flags{Task: "scoring", KeyMode: string(policyfile.PerUnit)}, t.TempDir(),
		dev.Binaries{Cohort: filepath.Join(bin, "cohort"), Program: []string{filepath.Join(bin, "scoring")}})
	if err != nil {
		t.Fatal(err)
	}
	// Not t.Context(), which ends before the cleanup that stops the cluster.
	if err := d.Start(context.Background()); err != nil {
		t.Fatal(errors.Join(err, d.Stop()))
	}
	t.Cleanup(func() {
		if err := d.Stop(); err != nil {
			t.Errorf("stopping: %v", err)
		}
	})
	return runningDev{d}
}

// writesOneOffKeys: `cohort trust --ohttp` writes what a unit signed, and from a
// gateway with keys of its own nothing.
func (d runningDev) writesOneOffKeys(t *testing.T) {
	c, dir := d.Describe(), t.TempDir()
	type result struct {
		exit      int
		out, talk string
	}
	trust := func(gateway, file string) result {
		var out, talk bytes.Buffer
		cmd := exec.CommandContext(t.Context(), c.Agent, "trust", "--authority", c.Authority, "--genesis", c.Genesis, "--task", c.Task, "--out", filepath.Join(dir, "root"),
			"--state", filepath.Join(dir, "seen"), "--ohttp", filepath.Join(dir, file), "--gateway", gateway)
		cmd.Stdout, cmd.Stderr = &out, &talk
		if err := cmd.Run(); err != nil && cmd.ProcessState == nil {
			t.Fatal(err)
		}
		return result{exit: cmd.ProcessState.ExitCode(), out: out.String(), talk: talk.String()}
	}
	r := trust(c.Gateway, "keys")
	keys, err := os.ReadFile(filepath.Join(dir, "keys"))
	if err != nil || r.exit != 0 || !strings.Contains(r.out, "oneoff?id=") {
		t.Fatalf("got exit %d %s %s, %v", r.exit, r.out, r.talk, err)
	}
	if got, err := unitauth.UnverifiedOHTTPKeys(keys); err != nil || len(got.Plain) != len(keys) {
		t.Errorf("reading the keys: %v", err)
	}
	m, err := check.NewTamperingProxy(c.Gateway)
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	m.Way.Store(&check.Change{Response: check.FlipBit(1, 8)}) // in the public key of the first
	if r := trust(m.URL, "other"); r.exit != frame.ExitRefused || !strings.Contains(r.talk, "[signature]") {
		t.Errorf("changed keys: got exit %d %s", r.exit, r.talk)
	}
	if _, err := os.Stat(filepath.Join(dir, "other")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("changed keys were written: %v", err)
	}
}

// otherLeaves describes units in key mode shared of which two serve other leaves
// under the same root.
func otherLeaves(_ *testing.T, c dev.Description) dev.Description {
	c.KeyMode = string(policyfile.Shared)
	c.Units = append([]dev.Unit{c.Units[0]}, c.Units...)
	return c
}

// withoutRestart puts an unsupervised unit last.
func (d runningDev) withoutRestart(t *testing.T, c dev.Description) dev.Description {
	t.Helper()
	u, err := check.Checker{App: d.App, Cluster: c}.NewUnit(t.TempDir(), c.Authority, c.Program[:1:1])
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { u.Log.Close() })
	p, err := u.Launch.Start(t.Context(), c.TEE)
	if err != nil {
		t.Fatal(err)
	}
	extra := dev.Unit{Address: u.Listen, PID: p.PID}
	config, err := check.Checker{App: d.App, Cluster: c}.Plain()
	if err != nil {
		t.Fatal(err)
	}
	for range 200 {
		if _, err = dev.Handshake(t.Context(), extra.Address, config); err == nil {
			break
		}
		time.Sleep(50 * time.Millisecond)
	}
	if err != nil {
		t.Fatalf("extra unit: %v", err)
	}
	c.Units = append(slices.Clone(c.Units), extra)
	return c
}

// withTLS12 puts a relay before the last unit. It serves clients that speak
// TLS 1.2 at most itself, and passes all others on.
func (d runningDev) withTLS12(t *testing.T, c dev.Description) dev.Description {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	config := oldTLS(t)
	behind := c.Units[2].Address
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go relay(conn, behind, config)
		}
	}()
	c.Units = slices.Clone(c.Units)
	c.Units[2].Address = l.Addr().String()
	return c
}

var errModern = errors.New("the client speaks TLS 1.3")

// oldTLS serves TLS 1.2 with a certificate of its own, and gives up on clients
// that speak TLS 1.3.
func oldTLS(t *testing.T) *tls.Config {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return &tls.Config{
		Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}},
		MinVersion:   tls.VersionTLS12, MaxVersion: tls.VersionTLS12,
		GetConfigForClient: func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
			if slices.Contains(hello.SupportedVersions, tls.VersionTLS13) {
				return nil, errModern
			}
			return nil, nil
		},
	}
}

// recorder keeps what was read, and lets nothing be written while mute.
type recorder struct {
	net.Conn
	read bytes.Buffer
	mute bool
}

func (r *recorder) Read(b []byte) (int, error) {
	n, err := r.Conn.Read(b)
	r.read.Write(b[:n])
	return n, err
}

func (r *recorder) Write(b []byte) (int, error) {
	if r.mute {
		return len(b), nil
	}
	return r.Conn.Write(b)
}

// relay ends a TLS 1.2 handshake itself, and replays any other to the unit.
func relay(conn net.Conn, behind string, config *tls.Config) {
	defer conn.Close()
	r := &recorder{Conn: conn, mute: true}
	config = config.Clone()
	decide := config.GetConfigForClient
	config.GetConfigForClient = func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
		c, err := decide(hello)
		r.mute = err != nil
		return c, err
	}
	server := tls.Server(r, config)
	if err := server.Handshake(); !errors.Is(err, errModern) {
		_, _ = io.Copy(io.Discard, server)
		return
	}
	unit, err := net.Dial("tcp", behind)
	if err != nil {
		return
	}
	defer unit.Close()
	go func() {
		_, _ = io.Copy(unit, io.MultiReader(bytes.NewReader(r.read.Bytes()), conn))
		unit.Close()
	}()
	_, _ = io.Copy(conn, unit)
}
