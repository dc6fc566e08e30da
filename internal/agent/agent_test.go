package agent

import (
	"bufio"
	"context"
	"crypto/rand"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/cohort-tee/cohort/internal/testworld"
	"github.com/cohort-tee/cohort/internal/wire"
	"github.com/cohort-tee/cohort/unit"
	"github.com/cohort-tee/cohort/unit/unittest"
)

// programDir is where [built] builds.
var programDir string

func TestMain(m *testing.M) {
	dir, err := os.MkdirTemp("", "cohort-unit-test-")
	if err != nil {
		panic(err)
	}
	programDir = dir
	code := m.Run()
	os.RemoveAll(dir)
	os.Exit(code)
}

// built builds the program of testdata once, and gives its file's name.
var built = sync.OnceValues(func() (string, error) {
	if name := os.Getenv("COHORT_TEST_PROGRAM"); name != "" {
		return name, nil
	}
	name := filepath.Join(programDir, "program")
	build := exec.Command("go", "build", "-o", name, "./testdata/program")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		return "", fmt.Errorf("%w: %s", err, out)
	}
	return name, nil
})

// agent is an agent under test, behind a unit of the task scoring.
type agent struct {
	*unit.Unit
	t       *testing.T
	world   *unittest.World
	address string
	user    *http.Client
	stop    context.CancelFunc
	done    chan error
}

// runAgent runs an agent in the program's mode.
func runAgent(t *testing.T, mode string, change func(*Config)) *agent {
	t.Helper()
	w := unittest.New(t, "1h")
	return runAgentIn(t, w, started(w, "scoring", w.Authority(w.AuthorityKeys)), mode, change)
}

func runAgentIn(t *testing.T, w *unittest.World, u *unit.Unit, mode string, change func(*Config)) *agent {
	t.Helper()
	name, err := built()
	testworld.NoError(t, err)
	file, err := os.Open(name)
	testworld.NoError(t, err)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	testworld.NoError(t, err)
	c := Config{
		Unit: u, Program: file, Args: []string{mode, "{port}", "port={port}"}, Listen: l, Forward: ForwardHTTP,
		Stdout: t.Output(), Stderr: t.Output(),
	}
	if change != nil {
		change(&c)
	}
	ctx, stop := context.WithCancel(context.Background())
	a := &agent{Unit: u, t: t, world: w, address: l.Addr().String(), user: user(w, u, "HTTP/1.1"), stop: stop, done: make(chan error, 1)}
	go func() {
		defer file.Close()
		a.done <- Run(ctx, c)
		close(a.done)
	}()
	t.Cleanup(func() {
		stop()
		<-a.done
	})
	return a
}

// get asks the program, through the agent.
func (a *agent) get(path string, header ...string) *http.Response {
	a.t.Helper()
	r, err := http.NewRequest(http.MethodGet, "https://"+a.address+path, nil)
	testworld.NoError(a.t, err)
	for i := 0; i < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	answer, err := a.user.Do(r)
	testworld.NoError(a.t, err)
	a.t.Cleanup(func() { answer.Body.Close() })
	return answer
}

func (a *agent) text(path string) string {
	a.t.Helper()
	body, err := io.ReadAll(a.get(path).Body)
	testworld.NoError(a.t, err)
	return string(body)
}

func (a *agent) json(path string, v any, header ...string) {
	a.t.Helper()
	testworld.NoError(a.t, json.NewDecoder(a.get(path, header...).Body).Decode(v))
}

func TestAgentStartsProgram(t *testing.T) {
	t.Setenv("HOST_CHOICE", "x")
	a := runAgent(t, "http", nil)
	var got struct {
		Args, Env []string
	}
	a.json("/start", &got)
	port := strings.TrimPrefix(got.Env[len(got.Env)-1], "PORT=")
	if want := []string{"LANG=C", "PORT=" + port}; !slices.Equal(got.Env, want) {
		t.Errorf("got environment %q, want %q", got.Env, want)
	}
	if want := []string{"program", "http", port, "port=" + port}; !slices.Equal(got.Args, want) {
		t.Errorf("got arguments %q, want %q", got.Args, want)
	}
}

// TestAgentExecutesTheFile: what stands under the file's name when the program
// is started does not matter.
func TestAgentExecutesTheFile(t *testing.T) {
	name, err := built()
	testworld.NoError(t, err)
	content, err := os.ReadFile(name)
	testworld.NoError(t, err)
	copied := filepath.Join(t.TempDir(), "program")
	testworld.NoError(t, os.WriteFile(copied, content, 0o700))
	file, err := os.Open(copied)
	testworld.NoError(t, err)
	defer file.Close()
	testworld.NoError(t, os.Remove(copied))
	testworld.NoError(t, os.WriteFile(copied, []byte("#!/bin/false\n"), 0o700))
	a := runAgent(t, "http", func(c *Config) { c.Program = file })
	if got := a.text("/hups"); got != "0" {
		t.Errorf("got %q, want the program's answer", got)
	}
}

func TestAgentForwardedHeader(t *testing.T) {
	a := runAgent(t, "http", nil)
	for _, protocol := range []string{"HTTP/1.1", "HTTP/2.0"} {
		a.user = user(a.world, a.Unit, protocol)
		var got struct {
			Header http.Header
			Host   string
			Proto  string
		}
		a.json("/request", &got, "Forwarded", "for=evil", "X-Forwarded-For", "evil", "X-Forwarded-Port", "evil", "X-Real-Ip", "evil", "X-Kept", "kept")
		want := `for=127.0.0.1;host="` + a.address + `";proto=https`
		if got := got.Header["Forwarded"]; len(got) != 1 || got[0] != want {
			t.Errorf("got Forwarded %q, want %q", got, want)
		}
		for name, values := range got.Header {
			if slices.Contains(values, "evil") {
				t.Errorf("header %s came through from outside", name)
			}
		}
		if got.Host != a.address || got.Header.Get("X-Kept") != "kept" || got.Proto != "HTTP/1.1" {
			t.Errorf("got host %q, kept %q, %s", got.Host, got.Header.Get("X-Kept"), got.Proto)
		}
	}
}

func TestForwarded(t *testing.T) {
	for _, row := range []struct{ remote, host, want string }{
		{"192.0.2.1:4711", "a.example", `for=192.0.2.1;host="a.example";proto=https`},
		{"[2001:db8::1]:4711", "a.example:443", `for="[2001:db8::1]";host="a.example:443";proto=https`},
		{"", "a.example", `for=unknown;host="a.example";proto=https`},
		{"192.0.2.1:1", `a";for=evil;x="\`, `for=192.0.2.1;host="a\";for=evil;x=\"\\";proto=https`},
	} {
		if got := forwarded(row.remote, row.host); got != row.want {
			t.Errorf("got %s, want %s", got, row.want)
		}
	}
}

// TestAgentStreams: both directions of a request flow before either has ended.
func TestAgentStreams(t *testing.T) {
	a := runAgent(t, "http", nil)
	for _, protocol := range []string{"HTTP/1.1", "HTTP/2.0"} {
		a.user = user(a.world, a.Unit, protocol)
		answer, out := a.stream()
		lines := bufio.NewScanner(answer)
		for _, line := range []string{"ready", "one", "two"} {
			if line != "ready" {
				io.WriteString(out, line+"\n")
			}
			if !lines.Scan() || lines.Text() != line {
				t.Fatalf("%s: got %q, want %q before the request has ended", protocol, lines.Text(), line)
			}
		}
		out.Close()
	}
}

// stream opens a request that streams both ways.
func (a *agent) stream() (in io.Reader, out io.WriteCloser) {
	a.t.Helper()
	body, out := io.Pipe()
	giveUp := time.AfterFunc(5*time.Second, func() { body.CloseWithError(errors.New("nothing came back")) })
	defer giveUp.Stop()
	answer, err := a.user.Post("https://"+a.address+"/stream", "text/plain", body)
	testworld.NoError(a.t, err)
	a.t.Cleanup(func() { answer.Body.Close() })
	return answer.Body, out
}

func TestAgentCarriesLargeBodies(t *testing.T) {
	a := runAgent(t, "http", nil)
	body := rand.Text() + strings.Repeat("x", 3<<20)
	answer, err := a.user.Post("https://"+a.address+"/echo", "text/plain", strings.NewReader(body))
	testworld.NoError(t, err)
	defer answer.Body.Close()
	got, err := io.ReadAll(answer.Body)
	if err != nil || string(got) != body {
		t.Errorf("got %d bytes, %v, want the %d that were sent", len(got), err, len(body))
	}
}

func TestAgentUpgrades(t *testing.T) {
	a := runAgent(t, "http", nil)
	a.user.Timeout = 0 // with one the client hides the connection
	a.text("/hups")
	testworld.NoError(t, a.Attempt(testworld.ShortContext(t))) // an older connection upgrades like any other
	answer := a.get("/upgrade", "Connection", "Upgrade", "Upgrade", "echo")
	if answer.StatusCode != http.StatusSwitchingProtocols {
		t.Fatalf("got status %d, want 101", answer.StatusCode)
	}
	c := answer.Body.(io.ReadWriter)
	io.WriteString(c, "ping")
	got := make([]byte, 4)
	if _, err := io.ReadFull(c, got); err != nil || string(got) != "ping" {
		t.Errorf("got %q, %v, want ping", got, err)
	}
}

// TestAgentEndsWithProgram: the program's end is the agent's.
func TestAgentEndsWithProgram(t *testing.T) {
	for _, row := range []struct {
		name string
		end  func(*agent, int)
		want int
	}{
		{"exit code", func(a *agent, _ int) { a.user.Get("https://" + a.address + "/exit?code=7") }, 7},
		{"exit code 0", func(a *agent, _ int) { a.user.Get("https://" + a.address + "/exit?code=0") }, 0},
		{"signal", func(_ *agent, pid int) { syscall.Kill(pid, syscall.SIGKILL) }, 137},
	} {
		t.Run(row.name, func(t *testing.T) {
			a := runAgent(t, "http", nil)
			var start struct{ Pid int }
			a.json("/start", &start)
			row.end(a, start.Pid)
			var exit *Exit
			if err := <-a.done; !errors.As(err, &exit) || exit.Code != row.want {
				t.Errorf("got %v, want exit code %d", err, row.want)
			}
			if c, err := net.Dial("tcp", a.address); err == nil {
				c.Close()
				t.Error("the agent's listener is still open")
			}
		})
	}
}

// TestAgentClearsUp: what the program leaves behind at its own end does not go
// on without it.
func TestAgentClearsUp(t *testing.T) {
	a := runAgent(t, "http", nil)
	child := 0
	_, err := fmt.Sscan(a.text("/child"), &child)
	testworld.NoError(t, err)
	a.user.Get("https://" + a.address + "/exit?code=0")
	<-a.done
	testworld.Within(t, 5*time.Second, "the child is gone", func() bool { return gone(child) })
}

// TestAgentEndsProgram: nothing the program started outlives the agent.
func TestAgentEndsProgram(t *testing.T) {
	a := runAgent(t, "http", nil)
	var start struct{ Pid, Child int }
	a.json("/start", &start)
	_, err := fmt.Sscan(a.text("/child"), &start.Child)
	testworld.NoError(t, err)
	a.stop()
	if err := <-a.done; err != nil {
		t.Errorf("got %v, want nil", err)
	}
	testworld.Within(t, 5*time.Second, "program and child are gone", func() bool { return gone(start.Pid) && gone(start.Child) })
}

// gone reports whether a process runs no more; init may not have reaped it yet.
func gone(pid int) bool {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	return err != nil || strings.Contains(string(stat), ") Z ")
}

// TestAgentInsists: a program that ignores SIGTERM is killed.
func TestAgentInsists(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("SKIPPED: that the agent ends a program which does not end is not shown; run without -short")
	}
	a := runAgent(t, "stubborn", nil)
	var start struct{ Pid int }
	a.json("/start", &start)
	begin := time.Now()
	a.stop()
	if err := <-a.done; err != nil {
		t.Errorf("got %v, want nil", err)
	}
	if got := time.Since(begin); got < stopTime || got > stopTime+5*time.Second || !gone(start.Pid) {
		t.Errorf("ended after %v, gone %v, want SIGKILL after %v", got, gone(start.Pid), stopTime)
	}
}

// TestAgentFinishesRequests: at shutdown requests in flight are answered before
// the program is asked to end.
func TestAgentFinishesRequests(t *testing.T) {
	a := runAgent(t, "http", nil)
	answer, out := a.stream()
	a.stop()
	time.Sleep(50 * time.Millisecond) // a program asked too early has ended by now
	io.WriteString(out, "last words\n")
	out.Close()
	if got, err := io.ReadAll(answer); err != nil || string(got) != "ready\nlast words\n" {
		t.Errorf("got %q, %v, want the whole answer", got, err)
	}
	testworld.NoError(t, <-a.done)
}

// TestAgentDies: a program whose agent is killed ends too. The agent runs in
// another process, this test binary with a variable set.
func TestAgentDies(t *testing.T) {
	if os.Getenv("COHORT_TEST_PROGRAM") != "" {
		a := runAgent(t, "http", nil)
		var start struct{ Pid int }
		a.json("/start", &start)
		fmt.Println("program", start.Pid)
		select {}
	}
	name, err := built()
	testworld.NoError(t, err)
	helper := exec.Command(os.Args[0], "-test.run=^TestAgentDies$")
	helper.Env = append(os.Environ(), "COHORT_TEST_PROGRAM="+name, "TMPDIR="+t.TempDir())
	out, err := helper.StdoutPipe()
	testworld.NoError(t, err)
	testworld.NoError(t, helper.Start())
	defer helper.Wait()
	pid := 0
	for lines := bufio.NewScanner(out); pid == 0 && lines.Scan(); {
		fmt.Sscanf(lines.Text(), "program %d", &pid)
	}
	if pid == 0 || gone(pid) {
		t.Fatalf("got pid %d, want a running program", pid)
	}
	testworld.NoError(t, helper.Process.Kill())
	testworld.Within(t, 5*time.Second, "the program is gone", func() bool { return gone(pid) })
}

func TestAgentProgramThatNeverAccepts(t *testing.T) {
	out, in := io.Pipe()
	defer out.Close()
	a := runAgent(t, "deaf", func(c *Config) {
		c.Stdout, c.Started = in, func() { t.Error("said to accept connections") }
	})
	_, err := out.Read(make([]byte, 1)) // so it runs
	testworld.NoError(t, err)
	a.stop()
	testworld.NoError(t, <-a.done)

	p := &program{address: "127.0.0.1:1", ended: make(chan struct{})}
	err = p.accepts(t.Context(), 50*time.Millisecond)
	testworld.Refused(t, err, wire.Unavailable)
	if !strings.Contains(err.Error(), p.address) {
		t.Errorf("got %v, want the address in it", err)
	}
}

func TestAgentProgramThatEndsAtOnce(t *testing.T) {
	a := runAgent(t, "no such mode", nil)
	var exit *Exit
	if err := <-a.done; !errors.As(err, &exit) || exit.Code != 2 {
		t.Errorf("got %v, want exit code 2", err)
	}
}

func TestAgentConfigTellsAllFaults(t *testing.T) {
	err := Run(t.Context(), Config{Reload: syscall.SIGHUP})
	testworld.Refused(t, err, wire.BadRequest)
	if joined, ok := err.(interface{ Unwrap() []error }); !ok || len(joined.Unwrap()) != 4 {
		t.Errorf("got %v, want 4 faults: unit, program, listener, reload signal", err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	testworld.NoError(t, err)
	defer l.Close()
	err = Config{Unit: &unit.Unit{}, Program: os.Stdin, Listen: l}.validate()
	testworld.Refused(t, err, wire.BadRequest)
}

func TestAgentForwardsTCP(t *testing.T) {
	a := runAgent(t, "tcp", func(c *Config) { c.Forward = ForwardTCP })
	c, err := tls.Dial("tcp", a.address, &tls.Config{InsecureSkipVerify: true})
	testworld.NoError(t, err)
	defer c.Close()
	sent := rand.Text() + strings.Repeat("y", 1<<20)
	go func() {
		io.WriteString(c, sent)
		c.CloseWrite()
	}()
	got, err := io.ReadAll(c)
	if err != nil || string(got) != sent {
		t.Errorf("got %d bytes, %v, want the %d that were sent", len(got), err, len(sent))
	}
}

// TestAgentForwardsNoTruncation: bytes cut off on the way are no end of
// transmission to the program.
func TestAgentForwardsNoTruncation(t *testing.T) {
	broken := make(lineWriter, 1)
	a := runAgent(t, "tcp", func(c *Config) { c.Forward, c.Stderr = ForwardTCP, broken })
	c, err := tls.Dial("tcp", a.address, &tls.Config{InsecureSkipVerify: true})
	testworld.NoError(t, err)
	io.WriteString(c, "half of it")
	testworld.NoError(t, c.NetConn().Close()) // without the alert that ends TLS
	select {
	case got := <-broken:
		if !strings.HasPrefix(got, "broken:") {
			t.Errorf("got %q, want the program to see a broken connection", got)
		}
	case <-time.After(5 * time.Second):
		t.Error("the program saw a good end of a broken connection")
	}
}

type lineWriter chan string

func (l lineWriter) Write(b []byte) (int, error) {
	l <- string(b)
	return len(b), nil
}

// TestAgentForwardsNoTruncationBack: nor to the client.
func TestAgentForwardsNoTruncationBack(t *testing.T) {
	a := runAgent(t, "tcp", func(c *Config) { c.Forward = ForwardTCP })
	c, err := tls.Dial("tcp", a.address, &tls.Config{InsecureSkipVerify: true})
	testworld.NoError(t, err)
	defer c.Close()
	io.WriteString(c, "break")
	if _, err := c.Read(make([]byte, 1)); err == nil || errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("got %v, want a broken connection", err)
	}
}

func TestAgentTCPDrains(t *testing.T) {
	a := runAgent(t, "tcp", func(c *Config) { c.Forward = ForwardTCP })
	c, err := tls.Dial("tcp", a.address, &tls.Config{InsecureSkipVerify: true})
	testworld.NoError(t, err)
	defer c.Close()
	a.stop()
	time.Sleep(50 * time.Millisecond)
	io.WriteString(c, "last words")
	c.CloseWrite()
	if got, err := io.ReadAll(c); err != nil || string(got) != "last words" {
		t.Errorf("got %q, %v, want the echo", got, err)
	}
	testworld.NoError(t, <-a.done)
}
