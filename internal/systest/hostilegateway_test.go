package systest

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/cohort-tee/cohort/client"
	"github.com/cohort-tee/cohort/internal/hostilegateway"
	"github.com/cohort-tee/cohort/internal/testworld"
	"github.com/cohort-tee/cohort/internal/wire"
	"github.com/cohort-tee/cohort/policy/sshsig"
)

// pieces responds to a request in several chunks, and counts executions by path.
func pieces(executed *sync.Map) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if _, err := io.Copy(io.Discard, r.Body); err != nil {
			return
		}
		count, _ := executed.LoadOrStore(r.URL.Path, new(atomic.Int64))
		count.(*atomic.Int64).Add(1)
		for i := range 4 {
			fmt.Fprintf(w, "piece %d\n", i)
			http.NewResponseController(w).Flush()
		}
	})
}

const allPieces = "piece 0\npiece 1\npiece 2\npiece 3\n"

// behindHostileGateway starts a cluster whose history has three steps, the last signed by two
// owners, with a hostile gateway before it.
func behindHostileGateway(t *testing.T, executed *sync.Map) (*Cluster, string) {
	t.Helper()
	c, _ := shared(t, 2, time.Hour, pieces(executed))
	ben := testworld.NewKey()
	push(t, c, c.NextPolicy("quorum = 1", "quorum = 2", "} ]\n[platform.soft]", fmt.Sprintf("}, { name = \"ben\", ssh = %q } ]\n[platform.soft]", ben.AuthorizedKey())))
	step := c.NextPolicy("lifetime = \"1h0m0s\"", "lifetime = \"59m0s\"")
	step.Signatures = append(step.Signatures, testworld.Must(sshsig.Sign(ben, sshsig.ForPolicy, step.Policy)))
	c.Steps[len(c.Steps)-1] = step
	push(t, c, step)
	other := New(t, scoring(time.Hour))
	other.StartManager()
	hostile := hostilegateway.New(
		hostilegateway.Origin{Gateway: "https://" + c.manager.listen, Authority: c.URL()},
		hostilegateway.Origin{Gateway: "https://" + other.manager.listen, Authority: other.URL()})
	server := httptest.NewServer(hostile)
	t.Cleanup(func() { server.Close(); hostile.Close() })
	return c, server.URL
}

// manipulated does what a client does, through a gateway: it fetches trust, opens a session with fresh
// evidence, and sends two requests that are not safe. It returns where the first error was, and none
// if there was none.
func manipulated(ctx context.Context, config client.TrustConfig, gateway, path string) (hostilegateway.Stage, error) {
	config.Authorities, config.Gateways = nil, []string{gateway}
	trust, err := client.FetchTrust(ctx, config)
	if err != nil {
		return hostilegateway.Trust, err
	}
	ch, err := client.Open(ctx, client.OpenConfig{Trust: trust, Gateway: gateway, FreshEvidence: true})
	if err != nil {
		return hostilegateway.Open, err
	}
	defer ch.Close(ctx)
	for range 2 {
		r, err := http.NewRequestWithContext(ctx, http.MethodPost, scoringURL+path, strings.NewReader("content"))
		if err != nil {
			return "", err
		}
		response, err := ch.RoundTrip(r)
		if err != nil {
			return hostilegateway.Request, err
		}
		b, err := io.ReadAll(response.Body)
		response.Body.Close()
		if err != nil {
			return hostilegateway.Content, err
		}
		if string(b) != allPieces {
			return hostilegateway.Content, fmt.Errorf("got %q without an error", b)
		}
	}
	return "", nil
}

// TestManipulations: the Go client refuses each manipulation of the table, with the reason there, and
// accepts what an honest gateway passes on.
func TestManipulations(t *testing.T) {
	waits(t)
	var executed sync.Map
	c, hostile := behindHostileGateway(t, &executed)
	if stage, err := manipulated(t.Context(), c.TrustConfig("scoring"), hostile+"/honest", "/honest"); err != nil {
		t.Fatalf("an honest gateway: %s: %v", stage, err)
	}
	if len(hostilegateway.Table) < 25 {
		t.Errorf("got %d manipulations, want at least 25", len(hostilegateway.Table))
	}
	for _, m := range hostilegateway.Table {
		t.Run(m.Name, func(t *testing.T) {
			t.Parallel()
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			stage, err := manipulated(ctx, c.TrustConfig("scoring"), hostile+"/"+m.Name, "/"+m.Name)
			if err == nil || stage != m.Stage || wire.ReasonOf(err) != m.Reason {
				t.Errorf("it %s: got %q at %q: %v, want %q at %q", m.Does, wire.ReasonOf(err), stage, err, m.Reason, m.Stage)
			}
			isEarly := m.Stage == hostilegateway.Trust || m.Stage == hostilegateway.Open
			if count, ok := executed.Load("/" + m.Name); ok && (isEarly || count.(*atomic.Int64).Load() > 2) {
				t.Errorf("units executed %d requests", count.(*atomic.Int64).Load())
			}
		})
	}
}

// manipulatedProxy is [manipulated] for a program that uses `cohort proxy`: the reason is the code of the
// command's error, that of a problem, or that in the log of a response that was aborted.
func manipulatedProxy(t *testing.T, bin, path string, args ...string) (hostilegateway.Stage, wire.Reason) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), filepath.Join(bin, "cohort"), append([]string{"proxy", "-o", "json", "--listen", "127.0.0.1:0", "--state", filepath.Join(t.TempDir(), "seen.json")}, args...)...)
	faults := &lockedBuffer{}
	cmd.Stderr = faults
	out := testworld.Must(cmd.StdoutPipe())
	testworld.NoError(t, cmd.Start())
	defer cmd.Wait()
	defer cmd.Process.Signal(syscall.SIGTERM)
	var start struct{ URL string }
	if json.NewDecoder(out).Decode(&start) != nil {
		cmd.Wait()
		var fault struct{ Code wire.Reason }
		testworld.NoError(t, json.Unmarshal([]byte(faults.String()), &fault))
		return hostilegateway.Open, fault.Code // or before
	}
	for range 2 {
		response, err := http.Post(start.URL+path, "text/plain", strings.NewReader("content"))
		testworld.NoError(t, err)
		b, err := io.ReadAll(response.Body)
		response.Body.Close()
		var problem struct{ Reason wire.Reason }
		switch {
		case err != nil:
			testworld.Eventually(t, "the proxy logs why", func() bool { return strings.Contains(faults.String(), "response aborted") })
			return hostilegateway.Content, wire.Reason(regexp.MustCompile(`response aborted" reason=([a-z-]+)`).FindStringSubmatch(faults.String())[1])
		case response.StatusCode != http.StatusOK:
			testworld.NoError(t, json.Unmarshal(b, &problem))
			return hostilegateway.Request, problem.Reason
		case string(b) != allPieces:
			t.Errorf("got %q without an error", b)
		}
	}
	return "", ""
}

// lockedBuffer collects the output of a process.
type lockedBuffer struct {
	mu   sync.Mutex
	text strings.Builder
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.String()
}

// TestManipulationsOfTheProxy: a program behind `cohort proxy` sees each manipulation refused with the same
// reason as a Go client, before its request is sent where the Go client sends none.
func TestManipulationsOfTheProxy(t *testing.T) {
	waits(t)
	bin := Build(t, "./cmd/cohort")
	var executed sync.Map
	c, hostile := behindHostileGateway(t, &executed)
	args := []string{"--genesis", c.Genesis.Hex(), "--task", "scoring", "--fresh-evidence", "--gateway"}
	if stage, reason := manipulatedProxy(t, bin, "/honest", append(args, hostile+"/honest")...); stage != "" {
		t.Fatalf("an honest gateway: %s: %s", stage, reason)
	}
	for _, m := range hostilegateway.Table {
		t.Run(m.Name, func(t *testing.T) {
			t.Parallel()
			stage, reason := manipulatedProxy(t, bin, "/"+m.Name, append(args[:len(args):len(args)], hostile+"/"+m.Name)...)
			want := m.Stage
			if want == hostilegateway.Trust {
				want = hostilegateway.Open
			}
			if stage != want || reason != m.Reason {
				t.Errorf("it %s: got %q at %q, want %q at %q", m.Does, reason, stage, m.Reason, want)
			}
			if _, ok := executed.Load("/" + m.Name); ok && want == hostilegateway.Open {
				t.Error("units executed a request")
			}
		})
	}
}

// clientVariable is the environment variable with the command of another implementation, for
// [TestManipulationsElsewhere]. It is run with COHORT_HOSTILE_GATEWAY, the URL of the hostile gateway,
// where GET / lists the manipulations, COHORT_GENESIS, COHORT_TASK and COHORT_HOST.
const clientVariable = "COHORT_HOSTILE_CLIENT"

// TestManipulationsElsewhere runs another implementation against the table: for each manipulation it prints
// one line of JSON with its name, and the stage and reason of its refusal.
func TestManipulationsElsewhere(t *testing.T) {
	command := strings.Fields(os.Getenv(clientVariable))
	if len(command) == 0 {
		t.Skip("SKIPPED: " + clientVariable + " names no client")
	}
	refusesManipulations(t, command...)
}

// refusesManipulations requires of the client of a command that it refuses each manipulation with the reason
// of the table.
func refusesManipulations(t *testing.T, command ...string) {
	t.Helper()
	var executed sync.Map
	c, hostile := behindHostileGateway(t, &executed)
	cmd := exec.CommandContext(t.Context(), command[0], command[1:]...)
	cmd.Env = append(os.Environ(), "COHORT_HOSTILE_GATEWAY="+hostile, "COHORT_GENESIS="+c.Genesis.Hex(), "COHORT_TASK=scoring", "COHORT_HOST="+ServerName("scoring"))
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s: %v\n%s", command, err, out)
	}
	type refused struct {
		Name   string
		Stage  hostilegateway.Stage
		Reason wire.Reason
	}
	got := map[string]refused{}
	for line := range strings.Lines(string(out)) {
		var r refused
		testworld.NoError(t, json.Unmarshal([]byte(line), &r))
		got[r.Name] = r
	}
	for _, m := range hostilegateway.Table {
		if want := (refused{m.Name, m.Stage, m.Reason}); got[m.Name] != want {
			t.Errorf("it %s: got %+v, want %+v", m.Does, got[m.Name], want)
		}
	}
}

// TestManipulationsPage: docs/reference/manipulations.md lists the table.
func TestManipulationsPage(t *testing.T) {
	var rows strings.Builder
	for _, m := range hostilegateway.Table {
		fmt.Fprintf(&rows, "| `%s` | %s | %s | `%s` |\n", m.Name, m.Does, m.Stage, m.Reason)
	}
	page := testworld.Must(os.ReadFile("../../docs/reference/manipulations.md"))
	if !strings.Contains(string(page), rows.String()) {
		t.Errorf("docs/reference/manipulations.md does not have the rows\n%s", &rows)
	}
}
