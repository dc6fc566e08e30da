package soft

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"reflect"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/internal/wire"
)

// tee is a daemon under test.
type tee struct {
	socket string
	rules  attest.Rules
	end    func() // shuts down and waits
}

func startDaemon(t *testing.T, dir string) tee {
	t.Helper()
	d, err := NewDaemon(Config{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	socket := filepath.Join(shortDir(t), "s")
	ln, err := Listen(socket)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var serving sync.WaitGroup
	serving.Go(func() {
		if err := d.Serve(ctx, ln); err != nil {
			t.Errorf("serving: %v", err)
		}
	})
	end := sync.OnceFunc(func() {
		cancel()
		serving.Wait()
		d.Close()
	})
	t.Cleanup(end)
	return tee{socket: socket, rules: attest.Rules{Roots: []attest.Digest{d.RootDigest()}}, end: end}
}

// shortDir returns a directory whose path is short enough for a socket's name.
func shortDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "soft")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// self returns this test binary.
func self(t *testing.T) *os.File { return open(t, "/proc/self/exe") }

// variant returns this test binary with one byte appended: a different program with the same
// behavior.
func variant(t *testing.T) *os.File {
	t.Helper()
	b, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "variant")
	if err := os.WriteFile(path, append(b, 0), 0o700); err != nil {
		t.Fatal(err)
	}
	return open(t, path)
}

func open(t *testing.T, path string) *os.File {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

// running is a launched process whose output the test reads.
type running struct {
	*Process
	out *bufio.Reader
}

func (e tee) launch(t *testing.T, r LaunchRequest) (running, error) {
	t.Helper()
	out, in, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { out.Close() })
	defer in.Close()
	r.Stdout, r.Stderr = in, os.Stderr
	p, err := Launch(t.Context(), e.socket, r)
	return running{Process: p, out: bufio.NewReader(out)}, err
}

func (e tee) mustLaunch(t *testing.T, r LaunchRequest) running {
	t.Helper()
	p, err := e.launch(t, r)
	if err != nil {
		t.Fatalf("launching: %v", err)
	}
	return p
}

// run launches a program, waits for its end and returns its output.
func (e tee) run(t *testing.T, r LaunchRequest) string {
	t.Helper()
	p := e.mustLaunch(t, r)
	out, err := io.ReadAll(p.out)
	if err != nil {
		t.Fatal(err)
	}
	if exit, err := p.Wait(); err != nil || exit != (Exit{}) {
		t.Fatalf("got %v, %v, want exit code 0\n%s", exit, err, out)
	}
	return string(out)
}

// play runs the test binary in a role.
func (e tee) play(t *testing.T, role string, r LaunchRequest) heard {
	t.Helper()
	if r.Program == nil {
		r.Program = self(t)
	}
	if r.Settings == nil {
		r.Settings = map[string]string{}
	}
	r.Settings[roleSetting] = role
	return decodeHeard(t, e.run(t, r))
}

func asInput(b ...[]byte) map[string]string {
	in, _ := json.Marshal(b)
	return map[string]string{inputSetting: string(in)}
}

// claims appraises evidence, which must be good.
func (e tee) claims(t *testing.T, h heard) attest.Claims {
	t.Helper()
	if h.Refusal != nil {
		t.Fatalf("refused: %v", h.Refusal)
	}
	claims, err := appraise(h.Evidence, e.rules)
	if err != nil {
		t.Fatal(err)
	}
	return claims
}

func measure(t *testing.T, program, agent *os.File, args ...string) (attest.Measurement, bool) {
	t.Helper()
	m, dynamic, err := Measure(program, agent, args)
	if err != nil {
		t.Fatal(err)
	}
	return m, dynamic
}

// hello builds the small program in testdata.
func hello(t *testing.T) *os.File {
	t.Helper()
	path := filepath.Join(t.TempDir(), "hello")
	build := exec.Command("go", "build", "-o", path, "./testdata/hello")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("building testdata/hello: %v\n%s", err, out)
	}
	return open(t, path)
}

func TestLaunchedProgramIsTheMeasuredOne(t *testing.T) {
	e := startDaemon(t, t.TempDir())
	h := e.play(t, "report", LaunchRequest{Args: []string{"--model", "m.json", ""}})
	claims := e.claims(t, h)
	want, dynamic := measure(t, self(t), nil, "--model", "m.json", "")
	if !reflect.DeepEqual(claims.Measurement, want) || claims.Dynamic != dynamic {
		t.Errorf("got %v dynamic %v, want %v dynamic %v", claims.Measurement, claims.Dynamic, want, dynamic)
	}
	if claims.Debug {
		t.Error("evidence of a child that nobody traces says debug")
	}
	if string(claims.ReportData) != string(testData[:]) {
		t.Error("evidence carries other report data")
	}
	if args := []string{"--model", "m.json", ""}; !reflect.DeepEqual(h.Argv, append([]string{argv0}, args...)) || !reflect.DeepEqual(h.Args, args) {
		t.Errorf("got argv %q and arguments %q, want %q", h.Argv, h.Args, args)
	}
}

func TestAgentRunsTheMeasuredProgram(t *testing.T) {
	e := startDaemon(t, t.TempDir())
	program := hello(t)
	h := e.play(t, "agent", LaunchRequest{Agent: self(t), Program: program, Args: []string{"one", "two"}})
	claims := e.claims(t, h)
	want, _ := measure(t, program, self(t), "one", "two")
	if !reflect.DeepEqual(claims.Measurement, want) {
		t.Errorf("got %v, want %v", claims.Measurement, want)
	}
	if !reflect.DeepEqual(h.Argv, []string{argv0}) {
		t.Errorf("agent: got argv %q, want none but the name", h.Argv)
	}
	if out := string(h.Data); !strings.HasSuffix(out, "\"one\"\n\"two\"\n") {
		t.Errorf("program: got %q, want its arguments and no environment", out)
	}
}

func TestStaticAndDynamicPrograms(t *testing.T) {
	if _, dynamic := measure(t, hello(t), nil); dynamic {
		t.Error("a static program is said to be dynamic")
	}
	shell := open(t, "/bin/sh")
	if _, dynamic := measure(t, shell, nil); !dynamic {
		t.Error("/bin/sh is said to be static")
	}
	if _, dynamic := measure(t, hello(t), shell); !dynamic {
		t.Error("a static program under a dynamic agent is said to be static")
	}
}

func TestRewritingTheFileChangesNothing(t *testing.T) {
	e := startDaemon(t, t.TempDir())
	program := variant(t)
	want, _ := measure(t, program, nil)
	p := e.mustLaunch(t, LaunchRequest{Program: program, Stdin: blocking(t), Settings: map[string]string{roleSetting: "line"}})
	expectLine(t, p.out, "ready")
	if err := os.WriteFile(program.Name(), []byte("rewritten in place"), 0o700); err != nil {
		t.Fatal(err)
	}
	// The child still runs the sealed copy, and that copy is measured.
	h := finish(t, p)
	if got := e.claims(t, h).Measurement; !reflect.DeepEqual(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

// blocking returns a standard input that blocks the role "line" until [finish].
func blocking(t *testing.T) *os.File {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close() })
	context.AfterFunc(t.Context(), func() { w.Close() })
	stdin.Store(t.Name(), w)
	return r
}

// stdin has, by test, the write end of [blocking].
var stdin sync.Map

// finish unblocks a program in the role "line" and returns its output.
func finish(t *testing.T, p running) heard {
	t.Helper()
	w, _ := stdin.LoadAndDelete(t.Name())
	w.(*os.File).Close()
	out, err := io.ReadAll(p.out)
	if err != nil {
		t.Fatal(err)
	}
	return decodeHeard(t, string(out))
}

func expectLine(t *testing.T, r *bufio.Reader, want string) {
	t.Helper()
	got, err := r.ReadString('\n')
	if err != nil || strings.TrimSpace(got) != want {
		t.Fatalf("got %q, %v, want %q", got, err, want)
	}
}

func TestSealedCopyCannotBeChanged(t *testing.T) {
	e := startDaemon(t, t.TempDir())
	h := e.play(t, "write", LaunchRequest{Agent: self(t), Program: hello(t)})
	if h.Refusal != nil || len(h.Args) > 0 {
		t.Errorf("got done: %q, error %v, want nothing done", h.Args, h.Refusal)
	}
}

func TestConnectThenExecGetsNoEvidence(t *testing.T) {
	e := startDaemon(t, t.TempDir())
	// A process with a connection to the public socket, launched or not, is a launcher for the
	// daemon and gets no evidence.
	h := e.play(t, "public", LaunchRequest{Settings: map[string]string{socketSetting: e.socket}})
	if h.Refusal == nil || h.Evidence != nil {
		t.Fatalf("got evidence %x, want none", h.Evidence)
	}
	// The same with the documented steps: connect, pass the connection on, execute.
	conn, err := net.Dial(network, e.socket)
	if err != nil {
		t.Fatal(err)
	}
	f, err := conn.(*net.UnixConn).File()
	if err != nil {
		t.Fatal(err)
	}
	conn.Close()
	defer f.Close()
	cmd := exec.Command("/proc/self/exe")
	cmd.ExtraFiles = []*os.File{f}
	cmd.Env = []string{roleSetting + "=report", fmt.Sprintf("%s=%d", variableFD, childFD)}
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	h = decodeHeard(t, string(out))
	if h.Refusal == nil || h.Refusal.Reason != wire.NotThisDevice || h.Evidence != nil {
		t.Errorf("got %v and evidence %x, want %v", h.Refusal, h.Evidence, wire.NotThisDevice)
	}
}

func TestNotInherited(t *testing.T) {
	for name, value := range map[string]string{"a word": "x", "no descriptor": "9999", "a file": "0"} {
		t.Run(name, func(t *testing.T) {
			t.Setenv(variableFD, value)
			if _, err := Inherited(); !errors.Is(err, wire.NotThisDevice) {
				t.Errorf("got %v, want %v", err, wire.NotThisDevice)
			}
		})
	}
	if _, err := Inherited(); !errors.Is(err, wire.NotThisDevice) {
		t.Errorf("no variable: got %v, want %v", err, wire.NotThisDevice)
	}
}

func TestEnvironmentIsSettingsOnly(t *testing.T) {
	t.Setenv("LD_PRELOAD", "/nowhere/evil.so")
	t.Setenv("COHORT_UNASKED", "1")
	e := startDaemon(t, t.TempDir())
	h := e.play(t, "report", LaunchRequest{Settings: map[string]string{"COHORT_COMMAND": `["authority","run"]`}})
	want := map[string]bool{
		roleSetting + "=report": true, `COHORT_COMMAND=["authority","run"]`: true, variableFD + "=3": true,
	}
	for _, v := range h.Environ {
		if !want[v] {
			t.Errorf("the child has %q", v)
		}
		delete(want, v)
	}
	for v := range want {
		t.Errorf("the child lacks %q", v)
	}
}

func TestSealingInTheDaemon(t *testing.T) {
	dir := t.TempDir()
	e := startDaemon(t, dir)
	me, other := self(t), variant(t)
	mine, _ := measure(t, me, nil)
	others, _ := measure(t, other, nil)
	toMe := e.play(t, "seal", LaunchRequest{}).Data
	toOther := e.play(t, "seal", LaunchRequest{Settings: asInput(others.Bytes())}).Data
	toBoth := e.play(t, "seal", LaunchRequest{Settings: asInput(others.Bytes(), mine.Bytes())}).Data
	root := e.rules
	e.end()
	e = startDaemon(t, dir) // everything below runs after a restart
	if !reflect.DeepEqual(e.rules, root) {
		t.Errorf("got root %v after a restart, want %v", e.rules.Roots, root.Roots)
	}
	for _, c := range []struct {
		name    string
		sealed  []byte
		program *os.File
		args    []string
		ok      bool
	}{
		{"to me, by me", toMe, me, nil, true},
		{"to me, by another", toMe, other, nil, false},
		{"to me, by me with other arguments", toMe, me, []string{"x"}, false},
		{"to another, by me who sealed it", toOther, me, nil, false},
		{"to another, by it", toOther, other, nil, true},
		{"to both, by me", toBoth, me, nil, true},
		{"to both, by the other", toBoth, other, nil, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			h := e.play(t, "unseal", LaunchRequest{Program: c.program, Args: c.args, Settings: asInput(c.sealed)})
			if c.ok && (h.Refusal != nil || string(h.Data) != "secret") {
				t.Errorf("got %q, %v, want the secret", h.Data, h.Refusal)
			}
			if !c.ok && (h.Data != nil || !errors.Is(h.Refusal, wire.NotMeasured)) {
				t.Errorf("got %q, %v, want %v", h.Data, h.Refusal, wire.NotMeasured)
			}
		})
	}
}

// TestSignalsAreForwarded: a launched program ends with the signal that its launcher sends, even
// if the daemon ignores that signal.
func TestSignalsAreForwarded(t *testing.T) {
	signal.Ignore(syscall.SIGHUP)
	defer signal.Reset(syscall.SIGHUP)
	e := startDaemon(t, t.TempDir())
	for _, s := range forwardedSignals {
		p := e.mustLaunch(t, LaunchRequest{Program: self(t), Settings: map[string]string{roleSetting: "sleep"}})
		expectLine(t, p.out, "ready")
		if err := p.Signal(s); err != nil {
			t.Fatal(err)
		}
		late := time.AfterFunc(10*time.Second, func() {
			status, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.PID))
			t.Errorf("%v: after 10 s the process is still there:\n%s", s, status)
			_ = p.Signal(syscall.SIGKILL)
		})
		if exit, err := p.Wait(); err != nil || exit.Signal != s {
			t.Errorf("%v: got %v, %v", s, exit, err)
		}
		late.Stop()
		if err := syscall.Kill(p.PID, 0); err != syscall.ESRCH {
			t.Errorf("%v: process %d: got %v, want it gone", s, p.PID, err)
		}
	}
	p := e.mustLaunch(t, LaunchRequest{Program: self(t), Settings: map[string]string{roleSetting: "sleep"}})
	if err := p.Signal(syscall.SIGSTOP); !errors.Is(err, wire.BadRequest) {
		t.Errorf("SIGSTOP: got %v, want %v", err, wire.BadRequest)
	}
}

// expectEnd fails unless all processes with the other end exit soon.
func expectEnd(t *testing.T, r *bufio.Reader) {
	t.Helper()
	ended := make(chan struct{})
	go func() {
		io.Copy(io.Discard, r)
		close(ended)
	}()
	select {
	case <-ended:
	case <-time.After(2 * stopGrace):
		t.Error("the program is still there")
	}
}

// start runs the test binary in a role outside the daemon.
func start(t *testing.T, role string, env ...string) (*exec.Cmd, *bufio.Reader) {
	t.Helper()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(env, roleSetting+"="+role)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
	})
	return cmd, bufio.NewReader(out)
}

func TestLaunchersDeathEndsTheProgram(t *testing.T) {
	e := startDaemon(t, t.TempDir())
	cmd, out := start(t, "launcher", socketSetting+"="+e.socket)
	expectLine(t, out, "ready")
	cmd.Process.Kill()
	expectEnd(t, out)
}

func TestProgramsEndEndsWhatItStarted(t *testing.T) {
	e := startDaemon(t, t.TempDir())
	p := e.mustLaunch(t, LaunchRequest{Program: self(t), Settings: map[string]string{roleSetting: "parent"}})
	if exit, err := p.Wait(); err != nil || exit != (Exit{}) {
		t.Fatalf("got %v, %v, want exit code 0", exit, err)
	}
	expectEnd(t, p.out)
}

func TestDaemonsDeathEndsTheProgram(t *testing.T) {
	socket := filepath.Join(shortDir(t), "s")
	cmd, out := start(t, "daemon", socketSetting+"="+socket, inputSetting+"="+t.TempDir())
	expectLine(t, out, "ready")
	p := tee{socket: socket}.mustLaunch(t, LaunchRequest{Program: self(t), Settings: map[string]string{roleSetting: "stubborn"}})
	expectLine(t, p.out, "ready")
	cmd.Process.Kill()
	expectEnd(t, p.out)
	if _, err := p.Wait(); !errors.Is(err, wire.NotThisDevice) {
		t.Errorf("got %v, want %v", err, wire.NotThisDevice)
	}
}

func TestShutdownEndsAllChildren(t *testing.T) {
	if testing.Short() {
		t.Skip("takes the five seconds that a child has to end by itself")
	}
	t.Parallel()
	e := startDaemon(t, t.TempDir())
	var all []running
	for _, role := range []string{"sleep", "stubborn"} {
		p := e.mustLaunch(t, LaunchRequest{Program: self(t), Settings: map[string]string{roleSetting: role}})
		expectLine(t, p.out, "ready")
		all = append(all, p)
	}
	e.end()
	want := []syscall.Signal{syscall.SIGTERM, syscall.SIGKILL}
	for i, p := range all {
		exit, err := p.Wait()
		if err != nil || exit.Signal != want[i] && exit.Code == 0 {
			t.Errorf("got %v, %v, want %v", exit, err, want[i])
		}
	}
}
