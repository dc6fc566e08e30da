package systest

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/cohort-tee/cohort/client"
	"github.com/cohort-tee/cohort/internal/localproxy"
	"github.com/cohort-tee/cohort/internal/loopback"
	"github.com/cohort-tee/cohort/internal/testworld"
)

// localProxy is a running `cohort proxy`.
type localProxy struct {
	t     *testing.T
	cmd   *exec.Cmd
	dir   string
	ended chan error
	start struct{ URL, Host string } // what it printed
}

// proxyArgs returns the arguments of `cohort proxy` for a cluster with a manager.
func (c *Cluster) proxyArgs(more ...string) []string {
	c.t.Helper()
	ca := filepath.Join(c.t.TempDir(), "manager.pem")
	testworld.NoError(c.t, os.WriteFile(ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.manager.certificate.Certificate[0]}), 0o600))
	return append([]string{"--gateway", "https://" + c.manager.listen, "--manager-ca", ca, "--genesis", c.Genesis.Hex(), "--task", "scoring"}, more...)
}

// startLocalProxy runs `cohort proxy` until the test ends, and returns once programs can use it.
func startLocalProxy(t *testing.T, bin string, args ...string) *localProxy {
	t.Helper()
	p := &localProxy{t: t, dir: t.TempDir(), ended: make(chan error, 1)}
	args = append([]string{"proxy", "-o", "json", "--listen", "127.0.0.1:0", "--state", filepath.Join(p.dir, "seen.json")}, args...)
	p.cmd = exec.Command(filepath.Join(bin, "cohort"), args...)
	log := testworld.Must(os.Create(filepath.Join(p.dir, "log")))
	defer log.Close()
	p.cmd.Stderr = log
	out := testworld.Must(p.cmd.StdoutPipe())
	testworld.NoError(t, p.cmd.Start())
	if err := json.NewDecoder(out).Decode(&p.start); err != nil {
		t.Fatalf("cohort proxy printed no start: %v, %v\n%s", err, p.cmd.Wait(), p.log())
	}
	go func() { io.Copy(io.Discard, out); p.ended <- p.cmd.Wait(); close(p.ended) }()
	t.Cleanup(func() {
		p.cmd.Process.Signal(syscall.SIGCONT)
		p.cmd.Process.Signal(syscall.SIGTERM)
		for range p.ended {
		}
		if t.Failed() {
			t.Logf("cohort proxy logged\n%s", p.log())
		}
	})
	return p
}

func (p *localProxy) log() string {
	b, _ := os.ReadFile(filepath.Join(p.dir, "log"))
	return string(b[max(0, len(b)-4096):])
}

// peak returns the most memory that the proxy has used, in KiB.
func (p *localProxy) peak() int {
	p.t.Helper()
	for line := range strings.Lines(string(testworld.Must(os.ReadFile(fmt.Sprintf("/proc/%d/status", p.cmd.Process.Pid))))) {
		if text, ok := strings.CutPrefix(line, "VmHWM:"); ok {
			return testworld.Must(strconv.Atoi(strings.TrimSpace(strings.TrimSuffix(strings.TrimSpace(text), "kB"))))
		}
	}
	p.t.Fatal("no VmHWM in the process's status")
	return 0
}

// get sends a request through the proxy, and returns status and content.
func (p *localProxy) get(path string) (int, string, error) {
	ctx, cancel := context.WithTimeout(p.t.Context(), time.Minute)
	defer cancel()
	r := testworld.Must(http.NewRequestWithContext(ctx, http.MethodGet, p.start.URL+path, nil))
	response, err := http.DefaultClient.Do(r)
	if err != nil {
		return 0, "", err
	}
	defer response.Body.Close()
	b, err := io.ReadAll(response.Body)
	return response.StatusCode, string(b), err
}

// programs is a service for programs of all kinds: it measures uploads, streams, and passes other
// requests on to the example chat.
func programs(chat *url.URL) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("PUT /upload", func(w http.ResponseWriter, r *http.Request) {
		sum := sha256.New()
		n, err := io.Copy(sum, r.Body)
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		fmt.Fprintf(w, "%d %x", n, sum.Sum(nil))
	})
	mux.HandleFunc("GET /stream", func(w http.ResponseWriter, r *http.Request) {
		length, _ := time.ParseDuration(r.URL.Query().Get("for"))
		w.Header().Set("Content-Type", "text/event-stream")
		tick := time.NewTicker(100 * time.Millisecond)
		defer tick.Stop()
		for i := range int(length / (100 * time.Millisecond)) {
			select {
			case <-tick.C:
				fmt.Fprintf(w, "data: %d\n\n", i)
				http.NewResponseController(w).Flush()
			case <-r.Context().Done():
				return
			}
		}
		fmt.Fprint(w, "data: done\n\n")
	})
	mux.HandleFunc("GET /hello", func(w http.ResponseWriter, r *http.Request) { fmt.Fprintf(w, "hello from %s", r.Host) })
	if chat != nil {
		mux.Handle("/v1/", &httputil.ReverseProxy{FlushInterval: -1, Rewrite: func(r *httputil.ProxyRequest) { r.SetURL(chat) }})
	}
	return mux
}

// startChat runs the example chat.
func startChat(t *testing.T, bin string) *url.URL {
	t.Helper()
	address := loopback.FreeAddress(t)
	_, port, _ := net.SplitHostPort(address)
	cmd := exec.CommandContext(t.Context(), filepath.Join(bin, "chat"))
	cmd.Env = append(os.Environ(), "PORT="+port)
	testworld.NoError(t, cmd.Start())
	t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	testworld.Within(t, 10*time.Second, "chat to listen", func() bool {
		c, err := net.Dial("tcp", address)
		if err == nil {
			c.Close()
		}
		return err == nil
	})
	return testworld.Must(url.Parse("http://" + address))
}

// programOutput is what the programs in interop/openai print: the tokens of a stream, and a whole response.
type programOutput struct{ Token, Whole string }

// sdk runs a program that uses the proxy as OpenAI's SDKs do, and returns the streamed text and the whole one.
func (p *localProxy) sdk(env []string, name string, args ...string) (streamed, whole string) {
	p.t.Helper()
	cmd := exec.CommandContext(p.t.Context(), name, args...)
	cmd.Env = append(append(os.Environ(), "OPENAI_BASE_URL="+p.start.URL+"/v1"), env...)
	var faults bytes.Buffer
	cmd.Stderr = &faults
	out, err := cmd.Output()
	if err != nil {
		p.t.Fatalf("%s: %v\n%s%s\n%s", name, err, out, &faults, p.log())
	}
	for lines := bufio.NewScanner(bytes.NewReader(out)); lines.Scan(); {
		var o programOutput
		testworld.NoError(p.t, json.Unmarshal(lines.Bytes(), &o))
		streamed, whole = streamed+o.Token, whole+o.Whole
	}
	return streamed, whole
}

// TestLocalProxy runs the command `cohort proxy` with programs that know nothing of Cohort.
func TestLocalProxy(t *testing.T) {
	waits(t)
	bin := Build(t, "./cmd/cohort", "./examples/chat")
	for name, run := range map[string]func(*testing.T, string){
		"other languages": proxyLanguages, "curl": proxyCurl, "refusals": proxyRefusals, "forms": proxyForms,
		"idle": proxyIdle, "faults": proxyFaults, "replaced cluster": proxyReplacedCluster, "end": proxyEnd, "receipts": proxyReceipts, "stopped": proxyStopped,
	} {
		t.Run(name, func(t *testing.T) {
			waits(t)
			run(t, bin)
		})
	}
}

// proxyLanguages: a Python program and OpenAI's JavaScript SDK stream and send requests
// through `cohort proxy`, with nothing but a base URL and an API key.
func proxyLanguages(t *testing.T, bin string) {
	c, _ := shared(t, 2, time.Hour, programs(startChat(t, bin)))
	token := filepath.Join(t.TempDir(), "token")
	testworld.NoError(t, os.WriteFile(token, []byte("0123456789abcdef0123456789abcdef\n"), 0o600))
	p := startLocalProxy(t, bin, c.proxyArgs("--token-file", token)...)
	key := []string{"OPENAI_API_KEY=0123456789abcdef0123456789abcdef"}
	files := testworld.Must(filepath.Abs("../../interop/openai"))
	want, installed := "", ""
	t.Run("Python", func(t *testing.T) {
		const python = "/usr/bin/python3" // of the system, whose packages include httpx
		if out, err := exec.Command(python, "-c", "import httpx").CombinedOutput(); err != nil {
			t.Skipf("NO HTTPX: %s", out)
		}
		streamed, whole := p.sdk(key, python, filepath.Join(files, "stream.py"))
		if want = whole; streamed != whole || whole == "" {
			t.Errorf("got %q streamed and %q whole", streamed, whole)
		}
	})
	dir := t.TempDir()
	t.Run("JavaScript", func(t *testing.T) {
		if _, err := exec.LookPath("npm"); err != nil {
			t.Skip("NO NPM: OpenAI's JavaScript SDK was not installed")
		}
		for _, name := range []string{"package.json", "package-lock.json", "stream.mjs"} {
			testworld.NoError(t, os.WriteFile(filepath.Join(dir, name), testworld.Must(os.ReadFile(filepath.Join(files, name))), 0o600))
		}
		install := exec.CommandContext(t.Context(), "npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund")
		install.Dir = dir
		if out, err := install.CombinedOutput(); err != nil {
			t.Fatalf("npm ci: %v\n%s", err, out)
		}
		installed = dir
		streamed, whole := p.sdk(key, "node", filepath.Join(dir, "stream.mjs"))
		if streamed != whole || whole == "" || want != "" && whole != want {
			t.Errorf("got %q streamed and %q whole, want %q", streamed, whole, want)
		}
	})
	t.Run("JavaScript, no response", func(t *testing.T) {
		if installed == "" {
			t.Skip("SKIPPED: OpenAI's JavaScript SDK was not installed")
		}
		wantRepeated(t, installed, client.ErrOutcomeUnknown, 1)
		wantRepeated(t, installed, client.ErrUnreachable, 3)
	})
	t.Run("without the key", func(t *testing.T) {
		if status, body, err := p.get("/hello"); err != nil || status != http.StatusUnauthorized {
			t.Errorf("got status %d, %s, %v, want 401", status, body, err)
		}
	})
}

// wantRepeated fails the test unless OpenAI's SDK in a directory sends its request so many times to a proxy
// whose every request ends in an error: SDKs repeat requests by themselves, and must not repeat one whose outcome
// is unknown.
func wantRepeated(t *testing.T, dir string, end error, want int64) {
	t.Helper()
	var sent atomic.Int64
	p := testworld.Must(localproxy.NewProxy(localproxy.Config{
		Host: func() string { return ServerName("scoring") }, Log: slog.New(slog.DiscardHandler),
		Through: failing(func() error { sent.Add(1); return end }),
	}))
	server := httptest.NewServer(p)
	defer server.Close()
	cmd := exec.CommandContext(t.Context(), "node", filepath.Join(dir, "stream.mjs"))
	cmd.Env = append(os.Environ(), "OPENAI_BASE_URL="+server.URL+"/v1", "OPENAI_API_KEY=none")
	if out, err := cmd.CombinedOutput(); err == nil || sent.Load() != want {
		t.Errorf("%v: the SDK sent %d requests, want %d: %v\n%s", end, sent.Load(), want, err, out)
	}
}

// failing is a way to a cluster on which each request ends in an error.
type failing func() error

func (f failing) RoundTrip(*http.Request) (*http.Response, error) { return nil, f() }

// proxyCurl: a large upload, a long stream and a download go through the proxy at constant memory.
func proxyCurl(t *testing.T, bin string) {
	size, length := int64(64<<20), 20*time.Second
	if full() {
		size, length = 1<<30, 10*time.Minute
	}
	c, _ := shared(t, 2, time.Hour, programs(nil))
	p := startLocalProxy(t, bin, c.proxyArgs()...)
	stream := exec.CommandContext(t.Context(), "curl", "-sSfN", p.start.URL+"/stream?for="+length.String())
	tokens := testworld.Must(stream.StdoutPipe())
	testworld.NoError(t, stream.Start())
	counted := make(chan int, 1)
	go func() {
		n := 0
		for lines := bufio.NewScanner(tokens); lines.Scan(); {
			if strings.HasPrefix(lines.Text(), "data: ") {
				n++
			}
		}
		counted <- n
	}()
	before := p.peak()
	want := sha256.New()
	upload := exec.CommandContext(t.Context(), "curl", "-sSf", "-T", "-", p.start.URL+"/upload")
	upload.Stdin = io.TeeReader(io.LimitReader(&repeating{}, size), want)
	out, err := upload.CombinedOutput()
	if err != nil || string(out) != fmt.Sprintf("%d %s", size, hex.EncodeToString(want.Sum(nil))) {
		t.Errorf("upload: got %s, %v, want %d bytes", out, err, size)
	}
	if n, err := <-counted, stream.Wait(); err != nil || n != int(length/(100*time.Millisecond))+1 {
		t.Errorf("stream: got %d events, %v, want %d and done", n, err, length/(100*time.Millisecond))
	}
	if grew := p.peak() - before; grew > 16<<10 {
		t.Errorf("the proxy's memory grew by %d KiB, want at most 16 MiB", grew)
	} else {
		t.Logf("the proxy used %d KiB at its start and %d KiB more at its peak", before, grew)
	}
}

// repeating is content that repeats after a prime number of bytes.
type repeating struct{ at int }

func (p *repeating) Read(b []byte) (int, error) {
	for i := range b {
		b[i] = byte(p.at % 251)
		p.at++
	}
	return len(b), nil
}

// refusedProxy runs `cohort proxy`, which must end by itself, and returns its exit code and errors.
func refusedProxy(t *testing.T, bin string, args ...string) (exit int, faults string) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), filepath.Join(bin, "cohort"), append([]string{"proxy", "--state", filepath.Join(t.TempDir(), "seen.json")}, args...)...)
	var text bytes.Buffer
	cmd.Stderr = &text
	out, err := cmd.Output()
	var ended *exec.ExitError
	if len(out) > 0 || !errors.As(err, &ended) {
		t.Fatalf("got output %q and %v, want an error\n%s", out, err, &text)
	}
	return ended.ExitCode(), text.String()
}

// proxyRefusals: when a check fails, no program is ever served: the proxy ends with a code and a hint
// before it listens.
func proxyRefusals(t *testing.T, bin string) {
	c, _ := shared(t, 1, time.Hour, programs(nil))
	other := New(t, scoring(time.Hour))
	stranger := other.Start("scoring", "scoring 1", programs(nil))
	address := loopback.FreeAddress(t)
	taken := testworld.Must(net.Listen("tcp", "127.0.0.1:0"))
	defer taken.Close()
	dead := loopback.FreeAddress(t)
	for _, row := range []struct {
		name string
		args []string
		exit int
		code string
	}{
		{"another genesis", c.proxyArgs("--genesis", strings.Repeat("1", 64)), 1, "genesis"},
		{"another cluster's authority", c.proxyArgs("--genesis", other.Genesis.Hex()), 1, "genesis"},
		{"another task", c.proxyArgs("--task", "other"), 1, "not-found"},
		{"another name", c.proxyArgs("--name", "evil.example"), 1, "name"},
		{"an authority that is away", c.proxyArgs("--authority", "https://"+dead), 3, "unreachable"},
		{"a gateway that is away", c.proxyArgs("--gateway", "https://"+dead), 3, "unreachable"},
		{"a gateway that is away, beside an authority", c.proxyArgs("--gateway", "https://"+dead, "--authority", c.URL()), 3, "unavailable"},
		{"no token off loopback", c.proxyArgs("--listen", "0.0.0.0:0"), 2, "usage"},
		{"an address that is taken", c.proxyArgs("--listen", taken.Addr().String()), 1, "port-taken"},
		{"direct, to no unit", []string{"--direct", "--address", dead, "--authority", c.URL(), "--genesis", c.Genesis.Hex(), "--task", "scoring"}, 3, "unavailable"},
		{"direct, to another cluster", []string{"--direct", "--address", stranger.Address, "--authority", c.URL(), "--genesis", c.Genesis.Hex(), "--task", "scoring"}, 1, "genesis"},
	} {
		t.Run(row.name, func(t *testing.T) {
			exit, faults := refusedProxy(t, bin, append([]string{"--listen", address}, row.args...)...)
			if exit != row.exit || !strings.Contains(faults, "["+row.code+"]") || !strings.Contains(faults, "\nhint: ") {
				t.Errorf("got exit %d and %s, want %d and [%s] with a hint", exit, faults, row.exit, row.code)
			}
			if _, err := net.Dial("tcp", address); err == nil {
				t.Error("it listens")
			}
		})
	}
}

// proxyForms: one-offs and TLS with fail-over serve programs too.
func proxyForms(t *testing.T, bin string) {
	c, units := shared(t, 2, time.Hour, programs(nil))
	direct := []string{"--direct", "--authority", c.URL(), "--genesis", c.Genesis.Hex(), "--task", "scoring"}
	for _, u := range units {
		direct = append(direct, "--address", u.Address)
	}
	for name, args := range map[string][]string{"one-offs": c.proxyArgs("--oneoff"), "direct": direct, "fresh evidence": c.proxyArgs("--fresh-evidence")} {
		p := startLocalProxy(t, bin, args...)
		if status, body, err := p.get("/hello"); err != nil || status != http.StatusOK || body != "hello from "+ServerName("scoring") {
			t.Errorf("%s: got status %d, %q, %v", name, status, body, err)
		}
		response, err := http.Post(p.start.URL+"/upload", "text/plain", strings.NewReader("x"))
		testworld.NoError(t, err)
		b, err := io.ReadAll(response.Body)
		response.Body.Close()
		want := http.StatusMethodNotAllowed // of the service
		if name == "one-offs" {
			want = http.StatusForbidden
		}
		if err != nil || response.StatusCode != want {
			t.Errorf("%s, not safe: got status %d, %s, %v, want %d", name, response.StatusCode, b, err, want)
		}
	}
}
