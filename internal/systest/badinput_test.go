package systest

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/attest/attesttest"
	"github.com/cohort-tee/cohort/client"
	"github.com/cohort-tee/cohort/internal/api"
	"github.com/cohort-tee/cohort/internal/testworld"
	"github.com/cohort-tee/cohort/internal/wire"
	"github.com/cohort-tee/cohort/policy/policyfile"
	"github.com/cohort-tee/cohort/unit"
)

// Bad input to a running cluster: each input gets a typed error, and the cluster keeps
// serving. Malformed requests to single handlers are tested in internal/authority.

// lying is a TEE that puts a false platform name into its evidence.
type lying struct {
	attest.Attester
	platform attest.Platform
}

func (l lying) Attest(ctx context.Context, data attest.ReportData) (attest.Evidence, error) {
	e, err := l.Attester.Attest(ctx, data)
	e.Platform = l.platform
	return e, err
}

// TestBadUnits: a unit with one fault enrols at a real authority, which refuses it with
// that fault's reason. An honest unit enrols afterwards.
func TestBadUnits(t *testing.T) {
	c := New(t, scoring(time.Hour))
	faulty := func(f attesttest.Faults) func(*unit.Config) {
		return func(u *unit.Config) {
			device := scorer(c)
			device.Faults = f
			u.Attester = device
		}
	}
	off := func(d time.Duration) func(*unit.Config) {
		return func(u *unit.Config) {
			begin := time.Now()
			u.Clock = func() (time.Time, time.Duration) { return time.Now().Add(d), time.Since(begin) }
		}
	}
	for _, tt := range []struct {
		name   string
		change func(*unit.Config)
		want   wire.Reason
	}{
		{"unknown platform", func(u *unit.Config) { u.Attester = lying{u.Attester, "abacus"} }, wire.NoPlatform},
		{"platform without rules", func(u *unit.Config) { u.Attester = lying{u.Attester, attest.SNP} }, wire.NoPlatform},
		{"truncated evidence", faulty(attesttest.Faults{Truncated: true}), wire.Malformed},
		{"one bit of evidence", faulty(attesttest.Faults{BadSignature: true}), wire.BadSignature},
		{"evidence of another request", faulty(attesttest.Faults{OtherReportData: true}), wire.BadNonce},
		{"unmeasured libraries", faulty(attesttest.Faults{Dynamic: true}), wire.NotMeasured},
		{"clock a day ahead", off(24 * time.Hour), wire.ClockSkew},
		{"clock a day behind", off(-24 * time.Hour), wire.ClockSkew},
		{"unknown task", func(u *unit.Config) { u.Task = "nothing" }, wire.NotFound},
		{"another history", func(u *unit.Config) { u.Genesis[0] ^= 1 }, wire.WrongGenesis},
	} {
		t.Run(tt.name, func(t *testing.T) {
			config := c.UnitConfig("scoring", "scoring 1")
			tt.change(&config)
			ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
			defer cancel()
			_, err := unit.Start(ctx, config)
			testworld.Refused(t, err, tt.want)
		})
	}
	c.Start("scoring", "scoring 1", hello("ok"))
}

// TestClientClock: a client whose clock is a day off gets no trust: FetchTrust fails with
// clock-skew.
func TestClientClock(t *testing.T) {
	c := New(t, scoring(time.Hour))
	for _, off := range []time.Duration{-24 * time.Hour, 24 * time.Hour} {
		pins := c.TrustConfig("scoring")
		pins.Clock = func() time.Time { return time.Now().Add(off) }
		_, err := client.FetchTrust(t.Context(), pins)
		testworld.Refused(t, err, wire.ClockSkew)
	}
	trust(t, c)
}

// TestCSRWithNames: a CSR that contains more than a key is refused; the authority does not
// strip the extra fields.
func TestCSRWithNames(t *testing.T) {
	c := New(t, Task{Name: "scoring", KeyMode: policyfile.PerUnit, Life: time.Hour, Programs: []string{"scoring 1"}})
	a := authorityOf(t, c)
	authority := pkix.Extension{Id: []int{2, 5, 29, 19}, Critical: true, Value: []byte{0x30, 3, 1, 1, 0xff}}
	for name, template := range map[string]*x509.CertificateRequest{
		"name":     {Subject: pkix.Name{CommonName: "scoring"}},
		"DNS name": {DNSNames: []string{ServerName("scoring")}},
		"address":  {IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}},
		"CA":       {ExtraExtensions: []pkix.Extension{authority}},
	} {
		t.Run(name, func(t *testing.T) {
			r, _ := draft(t, c, a)
			r.CSR = testworld.Must(x509.CreateCertificateRequest(rand.Reader, template, newKey(t)))
			_, err := a.Certify(t.Context(), attested(t, r, scorer(c)))
			testworld.Refused(t, err, wire.BadCSR)
		})
	}
	if n := logged(t, a, "issued"); n != 0 {
		t.Errorf("got %d issued in the log, want none", n)
	}
	c.Start("scoring", "scoring 1", hello("ok"))
}

// TestBadConnections: malformed HTTP and TLS at the authority's port. The authority
// responds with an error or closes the connection, and keeps serving other clients.
func TestBadConnections(t *testing.T) {
	c := New(t, scoring(time.Hour))
	secured := func() net.Conn {
		conn, err := tls.Dial("tcp", c.addr, insecure())
		if err != nil {
			t.Fatal(err)
		}
		return conn
	}
	plain := func() net.Conn { return testworld.Must(net.Dial("tcp", c.addr)) }
	post := "POST " + api.PathCertificates + " HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
	for _, tt := range []struct {
		name string
		dial func() net.Conn
		send string
		want string // in the response; "" means that the connection ends
	}{
		{"plain HTTP", plain, post + "\r\n", "400 Bad Request"},
		{"garbage", plain, strings.Repeat("\x00garbage", 100), ""},
		{"garbage inside TLS", secured, strings.Repeat("\x00garbage\r\n\r\n", 100), "400 Bad Request"},
		{"a header over 16 KiB", secured, post + "X: " + strings.Repeat("x", 64<<10) + "\r\n\r\n", "431 "},
		{"a body that ends early", secured, post + "Content-Length: 100\r\n\r\n{", `"reason":"request"`},
		{"a negative length", secured, post + "Content-Length: -1\r\n\r\n", "400 Bad Request"},
		{"two lengths", secured, post + "Content-Length: 2\r\nContent-Length: 3\r\n\r\n{}", "400 Bad Request"},
		{"a body in another encoding", secured, post + "Content-Encoding: gzip\r\nContent-Length: 4\r\n\r\n\x1f\x8b\b\x00", `"reason":"request"`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			conn := tt.dial()
			defer conn.Close()
			conn.SetDeadline(time.Now().Add(15 * time.Second))
			if _, err := io.WriteString(conn, tt.send); err != nil && tt.want != "431 " {
				t.Fatal(err)
			}
			if half, ok := conn.(interface{ CloseWrite() error }); ok {
				half.CloseWrite()
			}
			answer, err := io.ReadAll(conn)
			if errors.Is(err, os.ErrDeadlineExceeded) {
				t.Error("the connection is kept open")
			}
			if !strings.Contains(string(answer), tt.want) {
				t.Errorf("got %q, %v, want %q in it", answer, err, tt.want)
			}
			trust(t, c)
		})
	}
}

// TestEndlessBody: a request whose body never ends is refused at the size limit.
func TestEndlessBody(t *testing.T) {
	c := New(t, scoring(time.Hour))
	rt := &http.Transport{TLSClientConfig: insecure()}
	defer rt.CloseIdleConnections()
	counted := &endless{}
	r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, c.URL()+api.PathCertificates, counted)
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Content-Type", "application/json")
	// The transport may see the connection end before it reads the response.
	if answer, err := rt.RoundTrip(r); err == nil {
		defer answer.Body.Close()
		var p api.Problem
		testworld.Must(0, json.NewDecoder(answer.Body).Decode(&p))
		if p.Reason != wire.TooLarge {
			t.Errorf("got %+v, want reason %q", p, wire.TooLarge)
		}
	}
	if n, most := counted.n.Load(), int64(wire.MaxRequest+8<<20); n > most { // socket buffers on both sides
		t.Errorf("%d bytes went out, want at most %d", n, most)
	}
	trust(t, c)
}

// endless is a body of spaces that counts the bytes read. The count is atomic, since the
// transport may still read after the response has arrived.
type endless struct{ n atomic.Int64 }

func (e *endless) Read(b []byte) (int, error) {
	e.n.Add(int64(len(b)))
	return copy(b, bytes.Repeat([]byte(" "), len(b))), nil
}

// TestFullDisk: the authority's disk fills up under a running cluster. The authority issues
// no certificate that it cannot record, everything that only reads continues, and free
// space restores issuing without a restart.
func TestFullDisk(t *testing.T) {
	dir := t.TempDir()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=2m"); err != nil {
		t.Skipf("SKIPPED: mounting a small disk: %v", err)
	}
	t.Cleanup(func() { syscall.Unmount(dir, syscall.MNT_DETACH) })
	c := New(t, scoring(time.Hour))
	c.StopAuthority()
	for _, file := range c.files() {
		testworld.Must(0, os.WriteFile(filepath.Join(dir, filepath.Base(file)), testworld.Must(os.ReadFile(file)), 0o600))
	}
	c.dsn = "sqlite:" + filepath.Join(dir, "authority.db")
	c.StartAuthority()
	t.Cleanup(c.StopAuthority) // before the disk is unmounted
	r := c.Start("scoring", "scoring 1", hello("ok"))
	a := authorityOf(t, c)
	before := logged(t, a, "issued")

	filler := filepath.Join(dir, "filler")
	if err := os.WriteFile(filler, make([]byte, 4<<20), 0o600); !errors.Is(err, syscall.ENOSPC) {
		t.Fatalf("got %v, want the disk full", err)
	}
	var err error
	for range 50 { // free pages inside the file may still hold some records
		request, _ := apply(t, c, a, scorer(c))
		if _, err = a.Certify(t.Context(), request); err != nil {
			break
		}
		before++
	}
	testworld.Refused(t, err, wire.StoreFailed)
	if _, err := get(t, c.Client("scoring", r.Address), "https://"+ServerName("scoring")); err != nil {
		t.Errorf("trusting and calling while the disk is full: %v", err)
	}
	if n := logged(t, a, "issued"); n != before {
		t.Errorf("got %d issued in the log, want the %d that were answered", n, before)
	}
	testworld.Must(0, os.Remove(filler))
	c.Start("scoring", "scoring 1", hello("ok"))
	if n := logged(t, a, "issued"); n != before+1 {
		t.Errorf("got %d issued in the log once there is space, want %d", n, before+1)
	}
}

// TestUnreadablePolicy: `cohort policy check` refuses files that are not policies, each
// with an error code, a cause and a hint.
func TestUnreadablePolicy(t *testing.T) {
	s := shell{bin: filepath.Join(Build(t, "./cmd/cohort"), "cohort"), dir: t.TempDir()}
	files := map[string]string{
		"binary.toml": "\x7fELF\x00\xff", "empty.toml": "", "cut.toml": "schema = \"cohort/policy/v1", "other.toml": "schema = \"cohort/policy/v2\"\n",
		"long.toml": strings.Repeat("#\n", wire.MaxPolicy), "crlf.toml": "schema = \"cohort/policy/v1\"\r\n",
	}
	for name, content := range files {
		testworld.Must(0, os.WriteFile(filepath.Join(s.dir, name), []byte(content), 0o600))
	}
	for name, code := range map[string]string{
		"missing.toml": "file", ".": "file", "long.toml": "usage", "binary.toml": "policy", "empty.toml": "policy",
		"cut.toml": "policy", "other.toml": "policy", "crlf.toml": "policy",
	} {
		exit, told := s.run(t, "policy", "check", name)
		if exit == 0 || exit == 4 || !strings.Contains(told, "["+code+"]") {
			t.Errorf("%s: got exit %d and %s, want [%s]", name, exit, told, code)
		}
		for _, part := range []string{"error: ", "cause: ", "hint: "} {
			if !strings.Contains("\n"+told, "\n"+part) {
				t.Errorf("%s: got %q, want a line %q", name, told, part)
			}
		}
	}
}
