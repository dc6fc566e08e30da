package systest

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/attest/attesttest"
	"github.com/cohort-tee/cohort/client"
	"github.com/cohort-tee/cohort/internal/loopback"
	"github.com/cohort-tee/cohort/internal/manager"
	"github.com/cohort-tee/cohort/internal/manager/selfsigned"
	"github.com/cohort-tee/cohort/internal/opsserver"
	"github.com/cohort-tee/cohort/internal/testworld"
	"github.com/cohort-tee/cohort/internal/wire"
	"github.com/cohort-tee/cohort/policy"
)

// Clusters of processes: this test binary also plays the authority and the manager, each in
// another role; units run the program in testdata/unit. The test itself is the client.

// roleVariable is the environment variable that names the test binary's role.
const roleVariable = "SYSTEST_ROLE"

// TestProcess is the entry point of the other roles. In an ordinary test run it does
// nothing.
func TestProcess(t *testing.T) {
	role := map[string]func(*testing.T) any{"authority": beAuthority, "manager": beManager, "nats": beNATS, "joined-manager": beJoinedManager, "strangers": beStrangers}[os.Getenv(roleVariable)]
	if role == nil {
		return
	}
	if err := json.NewEncoder(os.Stdout).Encode(role(t)); err != nil {
		t.Fatal(err)
	}
	io.Copy(io.Discard, os.Stdin)
}

// asked returns the process's configuration from its environment.
func asked[T any](t *testing.T) (config T) {
	t.Helper()
	if err := json.Unmarshal([]byte(os.Getenv("SYSTEST_CONFIG")), &config); err != nil {
		t.Fatal(err)
	}
	return config
}

// toStderr logs everything.
func toStderr() *slog.Logger {
	return slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug}))
}

// authorityPlace is the address of an authority, and the pins that units need.
type authorityPlace struct {
	URL     string
	Genesis attest.Digest
	Root    attest.Digest
	Device  distant // of the program "scoring 1"
}

// authorityWish is the configuration of an authority. Store, address and TEE outlive the
// process.
type authorityWish struct {
	Store, Address string
	Genesis        policy.Step
	Device         distant
	Metrics        string // host:port; empty: none
}

func beAuthority(t *testing.T) any {
	wish := asked[authorityWish](t)
	c := &Cluster{t: t, Log: toStderr(), Steps: []policy.Step{wish.Genesis}, dsn: wish.Store, addr: wish.Address, tee: wish.Device, metrics: wish.Metrics}
	c.StartAuthority()
	t.Cleanup(c.StopAuthority)
	return "serving"
}

// managerPlace is the address of a manager.
type managerPlace struct {
	Gateway string `json:"gateway"` // host:port
	Bus     string `json:"bus"`
	CA      string `json:"ca"` // file
	Metrics string `json:"metrics"`
}

// managerWish is the configuration of a manager.
type managerWish struct {
	Root         []byte // of the authority, DER
	Dir          string
	Gateway, Bus string // host:port
}

func beManager(t *testing.T) any {
	wish := asked[managerWish](t)
	root, err := x509.ParseCertificate(wish.Root)
	if err != nil {
		t.Fatal(err)
	}
	place := managerPlace{Gateway: wish.Gateway, Bus: wish.Bus, CA: selfsigned.CAFile(wish.Dir)}
	m, err := manager.New(manager.Config{
		DataDir: wish.Dir, Roots: []*x509.Certificate{root}, BusAddress: place.Bus, Log: toStderr(),
		Limits: manager.Limits{Copies: 1 << 30}, // room for a million sessions
	})
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", place.Gateway)
	if err != nil {
		t.Fatal(err)
	}
	operator := testworld.Must(net.Listen("tcp", "127.0.0.1:0"))
	place.Metrics = operator.Addr().String()
	ctx, cancel := context.WithCancel(context.Background())
	var serving sync.WaitGroup
	serving.Go(func() {
		if err := opsserver.RunBeside(ctx, operator, m.OperatorHandler(), toStderr(), func(ctx context.Context) error { return m.Serve(ctx, l) }); err != nil {
			t.Errorf("manager ended: %v", err)
		}
	})
	t.Cleanup(serving.Wait)
	t.Cleanup(cancel)
	return place
}

// process is a running process. All its files are below its directory; its log is the file
// "log".
type process struct {
	pid int
	dir string
	end func(os.Signal) // signals and waits; nil closes its standard input instead
}

// startProcess runs a command until the test ends, and reads its address from its standard
// output.
func startProcess(t *testing.T, cmd *exec.Cmd, place any) *process {
	t.Helper()
	p := &process{dir: t.TempDir()}
	log, err := os.Create(filepath.Join(p.dir, "log"))
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	cmd.Env, cmd.Dir, cmd.Stderr = append(cmd.Environ(), "TMPDIR="+p.dir), p.dir, log
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	p.pid = cmd.Process.Pid
	var once sync.Once
	p.end = func(s os.Signal) {
		once.Do(func() {
			if s != nil { // first: without its input it shuts down normally
				cmd.Process.Signal(s)
			}
			in.Close()
			io.Copy(io.Discard, out)
			if err := cmd.Wait(); s == nil && err != nil || t.Failed() {
				b, _ := os.ReadFile(log.Name())
				t.Logf("%s ended with %v:\n%s", filepath.Base(cmd.Path), err, b[max(0, len(b)-1024):])
			}
		})
	}
	t.Cleanup(func() { p.end(nil) })
	line, err := bufio.NewReader(out).ReadBytes('\n')
	if err == nil {
		err = json.Unmarshal(line, place)
	}
	if err != nil {
		t.Fatalf("process of %s: %v", t.Name(), err)
	}
	return p
}

// startRole starts this test binary in another role.
func startRole(t *testing.T, role string, config, place any) *process {
	t.Helper()
	return startProcess(t, roleCommand(role, config), place)
}

// roleCommand returns the command of this test binary in another role, directly or through
// another command.
func roleCommand(role string, config any, by ...string) *exec.Cmd {
	args := append(by, testworld.Must(os.Executable()), "-test.run=^TestProcess$", "-test.timeout=1h")
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Env = append(os.Environ(), roleVariable+"="+role, "SYSTEST_CONFIG="+string(testworld.Must(json.Marshal(config))))
	return cmd
}

// apart is a cluster whose authority, manager and units are processes.
type apart struct {
	t         *testing.T
	authority *process
	asked     authorityWish
	place     authorityPlace
	manager   *process
	wish      managerWish
	gateway   managerPlace
	trust     *client.Trust
	hostClock bool // the hosts of units set their clocks from the file "clock"
}

// newApart starts an authority with one task of the given certificate lifetime, and a
// manager.
func newApart(t *testing.T, life time.Duration) *apart {
	t.Helper()
	if testing.Short() {
		t.Skip("SKIPPED: processes of a race build are too large and too slow; run without -short")
	}
	c := New(t, scoring(life))
	c.StopAuthority()
	a := &apart{t: t, asked: authorityWish{c.dsn, c.addr, c.Steps[0], c.lend()(FirstBuild), loopback.FreeAddress(t)}, place: c.place()}
	a.startAuthority()
	trust, err := client.FetchTrust(t.Context(), client.TrustConfig{
		Authorities: []string{a.place.URL}, Genesis: a.place.Genesis, Task: "scoring", Verifier: attesttest.Verifier(),
	})
	if err != nil {
		t.Fatal(err)
	}
	a.trust = trust
	a.wish = managerWish{trust.AuthorityRoot().Raw, t.TempDir(), loopback.FreeAddress(t), loopback.FreeAddress(t)}
	a.startManager()
	return a
}

// startAuthority starts the authority at its former address.
func (a *apart) startAuthority() {
	a.t.Helper()
	var serving string
	a.authority = startRole(a.t, "authority", a.asked, &serving)
}

// startManager starts the manager at its former address.
func (a *apart) startManager() {
	a.t.Helper()
	a.manager = startRole(a.t, "manager", a.wish, &a.gateway)
	testworld.Eventually(a.t, "the manager has a certificate", func() bool { return a.managerCA() != nil })
}

// open opens a channel through the gateway, closed with the test.
func (a *apart) open() *client.Channel {
	a.t.Helper()
	ch, err := client.Open(a.t.Context(), client.OpenConfig{Trust: a.trust, Gateway: "http://" + a.gateway.Gateway})
	if err != nil {
		a.t.Fatal(err)
	}
	a.t.Cleanup(func() { ch.Close(context.Background()) })
	return ch
}

// managerCA returns the roots of the manager's certificate; nil without one.
func (a *apart) managerCA() *x509.CertPool {
	pool := x509.NewCertPool()
	if b, err := os.ReadFile(a.gateway.CA); err != nil || !pool.AppendCertsFromPEM(b) {
		return nil
	}
	return pool
}

// busTLS returns the configuration of a connection to the bus with a unit's certificate.
func (a *apart) busTLS(certificate tls.Certificate) *tls.Config {
	return &tls.Config{MinVersion: tls.VersionTLS13, RootCAs: a.managerCA(), ServerName: "127.0.0.1", Certificates: []tls.Certificate{certificate}}
}

// buildUnit builds the unit program, with a Go experiment unless it is "".
func buildUnit(t *testing.T, experiment string) string {
	t.Helper()
	bin := filepath.Join(t.TempDir(), "unit")
	cmd := exec.Command("go", "build", "-trimpath", "-o", bin, "./testdata/unit")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOEXPERIMENT="+experiment)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("building a unit with GOEXPERIMENT=%q: %v\n%s", experiment, err, out)
	}
	return bin
}

// unitProcess is a unit in a process of its own.
type unitProcess struct {
	*process
	Unit    wire.UnitID `json:"unit"`
	Collect string      `json:"collect"` // URL that runs its garbage collector
}

// start starts a unit, and waits until the manager knows it.
func (a *apart) start(bin string) *unitProcess {
	a.t.Helper()
	u := &unitProcess{}
	config := testworld.Must(json.Marshal(map[string]any{
		"authority": a.place.URL, "genesis": a.place.Genesis, "task": "scoring", "device": a.place.Device,
		"manager": "tls://" + a.gateway.Bus, "manager_ca": a.gateway.CA, "host_clock": a.hostClock,
	}))
	u.process = startProcess(a.t, exec.Command(bin, string(config)), u)
	line := []byte("\"unit added\" unit=" + u.Unit.String())
	testworld.Eventually(a.t, "the manager knows the unit", func() bool {
		return bytes.Contains(testworld.Must(os.ReadFile(filepath.Join(a.manager.dir, "log"))), line)
	})
	return u
}

// collect runs the unit's garbage collector.
func (u *unitProcess) collect(t *testing.T) {
	t.Helper()
	answer, err := http.Get(u.Collect)
	if err != nil {
		t.Fatal(err)
	}
	answer.Body.Close()
}
