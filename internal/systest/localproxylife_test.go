package systest

import (
	"bufio"
	"encoding/json"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/cohort-tee/cohort/internal/authorityclient"
	"github.com/cohort-tee/cohort/internal/loopback"
	"github.com/cohort-tee/cohort/internal/testworld"
	"github.com/cohort-tee/cohort/internal/wire"
)

// wantHello fails the test unless a request through the proxy succeeds.
func (p *localProxy) wantHello(when string) {
	p.t.Helper()
	if status, body, err := p.get("/hello"); err != nil || status != http.StatusOK {
		p.t.Errorf("%s: got status %d, %s, %v, want 200", when, status, body, err)
	}
}

// wantProblem fails the test unless a request through the proxy ends in a problem with the reason.
func (p *localProxy) wantProblem(when string, want wire.Reason) {
	p.t.Helper()
	var problem struct {
		Reason wire.Reason
		Retry  string
	}
	status, body, err := p.get("/hello")
	if err == nil {
		err = json.Unmarshal([]byte(body), &problem)
	}
	if err != nil || status != http.StatusBadGateway || problem.Reason != want || problem.Retry != "safe" {
		p.t.Errorf("%s: got status %d, %s, %v, want 502 and reason %q", when, status, body, err, want)
	}
}

// proxyIdle: the proxy is not used while all certificates, ring keys and its session end. The next request
// succeeds at once, in another session.
func proxyIdle(t *testing.T, bin string) {
	const life = 6 * time.Second
	c, units := shared(t, 2, life, programs(nil))
	metrics := loopback.FreeAddress(t)
	p := startLocalProxy(t, bin, c.proxyArgs("--metrics", metrics)...)
	p.wantHello("at the start")
	first := units[0].Unit.Stats().NotAfter
	testworld.Within(t, time.Minute, "two lifetimes to pass", func() bool { return time.Now().After(first.Add(2 * life)) })
	p.wantHello("after two lifetimes")
	response := testworld.Must(http.Get("http://" + metrics + "/readyz"))
	if response.Body.Close(); response.StatusCode != http.StatusOK {
		t.Errorf("readyz: got status %d", response.StatusCode)
	}
}

// proxyFaults: what programs see while the authority is away, while the gateway is away, and when they are
// back; the ring keys roll meanwhile. A newer policy is remembered for the next start.
func proxyFaults(t *testing.T, bin string) {
	c, _ := shared(t, 2, time.Hour, programs(nil))
	p := startLocalProxy(t, bin, c.proxyArgs()...)
	c.StopAuthority()
	p.wantHello("without an authority")
	c.StopManager()
	p.wantProblem("without a gateway", wire.Unavailable)
	c.StartManager()
	testworld.Within(t, time.Minute, "the gateway to have units", func() bool {
		status, _, err := p.get("/hello")
		return err == nil && status == http.StatusOK
	})
	c.StartAuthority()
	step := c.NextPolicy("lifetime = \"1h0m0s\"", "lifetime = \"59m0s\"")
	push(t, c, step)
	pins := authorityclient.Pins{State: filepath.Join(p.dir, "seen.json"), Genesis: c.Genesis.Hex()}
	testworld.Within(t, time.Minute, "the proxy to remember the newer policy", func() bool {
		seen, err := authorityclient.ReadState(pins.State)
		return err == nil && seen.Policy().Genuine() && seen.Policy().Document().Sequence == 2
	})
	p.wantHello("under the newer policy")
}

// proxyReplacedCluster: another cluster of the same owners' names, at the same addresses, takes the place of the
// pinned one. No program's request reaches it: the new units do not have the session, and at its next start
// the proxy refuses the cluster by name.
func proxyReplacedCluster(t *testing.T, bin string) {
	c, units := shared(t, 1, time.Hour, programs(nil))
	p := startLocalProxy(t, bin, c.proxyArgs()...)
	p.wantHello("at the start")
	for _, u := range units {
		u.Kill()
	}
	c.StopManager()
	c.KillAuthority()
	other := New(t, scoring(time.Hour))
	other.StopAuthority()
	other.addr = c.addr
	other.StartAuthority()
	other.manager = other.newGateway()
	other.manager.listen, other.manager.certificate, other.manager.ca = c.manager.listen, c.manager.certificate, c.manager.ca
	other.StartManager()
	t.Cleanup(other.StopManager)
	executed := false
	attended(t, other.Start("scoring", "scoring 1", http.HandlerFunc(func(http.ResponseWriter, *http.Request) { executed = true })))
	p.wantProblem("at another cluster", wire.Unavailable)
	if exit, faults := refusedProxy(t, bin, c.proxyArgs("--listen", "127.0.0.1:0")...); exit != 1 || !strings.Contains(faults, "[genesis]") {
		t.Errorf("at its next start: got exit %d and %s, want 1 and [genesis]", exit, faults)
	}
	if executed {
		t.Error("the request reached the other cluster")
	}
}

// proxyEnd: SIGTERM stops listening and lets a stream finish; a second signal ends the process at once.
func proxyEnd(t *testing.T, bin string) {
	c, _ := shared(t, 1, time.Hour, programs(nil))
	for _, row := range []struct {
		name   string
		length string
		twice  bool
	}{{"one signal", "2s", false}, {"two signals", "1h", true}} {
		t.Run(row.name, func(t *testing.T) {
			p := startLocalProxy(t, bin, c.proxyArgs()...)
			response := testworld.Must(http.Get(p.start.URL + "/stream?for=" + row.length))
			defer response.Body.Close()
			lines := bufio.NewScanner(response.Body)
			lines.Scan()
			testworld.NoError(t, p.cmd.Process.Signal(syscall.SIGTERM))
			testworld.Within(t, 10*time.Second, "the proxy to stop listening", func() bool {
				another, err := (&http.Client{Transport: &http.Transport{DisableKeepAlives: true}}).Get(p.start.URL + "/hello")
				if err == nil {
					another.Body.Close()
				}
				return err != nil
			})
			if row.twice {
				testworld.NoError(t, p.cmd.Process.Signal(syscall.SIGTERM))
			}
			last := ""
			for lines.Scan() {
				last += lines.Text()
			}
			if whole := lines.Err() == nil && strings.HasSuffix(last, "data: done"); whole == row.twice {
				t.Errorf("whole: %t, ends in %q, %v", whole, last[max(0, len(last)-20):], lines.Err())
			}
			if err := <-p.ended; (err == nil) == row.twice {
				t.Errorf("the proxy ended with %v", err)
			}
		})
	}
}

// proxyReceipts: each response has a receipt that verifies offline, and a response whose receipt cannot be written
// does not look complete.
func proxyReceipts(t *testing.T, bin string) {
	c, _ := shared(t, 2, time.Hour, programs(nil))
	dir := filepath.Join(t.TempDir(), "receipts")
	p := startLocalProxy(t, bin, c.proxyArgs("--receipts", dir)...)
	p.wantHello("with receipts")
	if status, _, err := p.get("/stream?for=1s"); err != nil || status != http.StatusOK {
		t.Errorf("a stream: got status %d, %v", status, err)
	}
	files := testworld.Must(filepath.Glob(filepath.Join(dir, "*.json")))
	if len(files) != 2 {
		t.Fatalf("got %d receipts, want 2", len(files))
	}
	for _, file := range files {
		verify := exec.Command(filepath.Join(bin, "cohort"), "verify", "--receipt", file, "--genesis", c.Genesis.Hex(), "--task", "scoring", "--state", filepath.Join(p.dir, "seen.json"))
		if out, err := verify.CombinedOutput(); err != nil || !strings.Contains(string(out), "signed by") {
			t.Errorf("verifying %s: %v\n%s", file, err, out)
		}
	}
	testworld.NoError(t, os.RemoveAll(dir))
	if status, body, err := p.get("/hello"); err == nil {
		t.Errorf("without the directory: got status %d and %q, want a broken response", status, body)
	}
}

// proxyStopped: the machine sleeps for longer than certificates are valid. The first request afterwards succeeds.
func proxyStopped(t *testing.T, bin string) {
	if !full() {
		t.Skip("SKIPPED: no process slept for 3 minutes; COHORT_FULL=1 lets it sleep")
	}
	c, _ := shared(t, 2, time.Minute, programs(nil))
	p := startLocalProxy(t, bin, c.proxyArgs()...)
	p.wantHello("before the sleep")
	testworld.NoError(t, p.cmd.Process.Signal(syscall.SIGSTOP))
	time.Sleep(3 * time.Minute) // a stopped process sees nothing that could be waited for
	testworld.NoError(t, p.cmd.Process.Signal(syscall.SIGCONT))
	p.wantHello("after the sleep")
}
