package agent

import (
	"context"
	"fmt"
	"maps"
	"net"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/cohort-tee/cohort/internal/retry"
	"github.com/cohort-tee/cohort/internal/wire"
	"golang.org/x/sys/unix"
)

// stopTime is how long a program that was asked to end may take.
const stopTime = 10 * time.Second

// programName is argv[0] of every measured program, so that no name of the
// host's choice reaches it.
const programName = "program"

// Exit is the error of [Run] when the program ended by itself.
type Exit struct {
	// Code is the program's exit code, or 128 and the number of the signal
	// that ended it.
	Code int
}

// Error tells the code.
func (e *Exit) Error() string { return fmt.Sprintf("program ended with code %d", e.Code) }

// program is a running program. It leads a process group of its own.
type program struct {
	cmd     *exec.Cmd
	address string                  // where it is to listen
	died    context.CancelCauseFunc // told the [*Exit]
	ended   chan struct{}           // closed when it has ended, together with its group
}

// launch starts the program from its open file.
func launch(c Config, address string, peers peers, died context.CancelCauseFunc) (*program, error) {
	_, port, err := net.SplitHostPort(address)
	if err != nil {
		return nil, err
	}
	cmd := &exec.Cmd{
		Path:      fmt.Sprintf("/proc/self/fd/%d", c.Program.Fd()),
		Args:      []string{programName},
		Env:       append(environment(c.Unit.Environment(), port), peers.environment()...),
		Stdout:    c.Stdout,
		Stderr:    c.Stderr,
		WaitDelay: time.Second,
		SysProcAttr: &syscall.SysProcAttr{
			Setpgid:   true,
			Pdeathsig: syscall.SIGKILL,
		},
	}
	for _, arg := range c.Args {
		cmd.Args = append(cmd.Args, peers.loadIdentities(strings.ReplaceAll(arg, "{port}", port)))
	}
	p := &program{cmd: cmd, address: address, died: died, ended: make(chan struct{})}
	started := make(chan error)
	go p.runProcess(started)
	return p, <-started
}

// environment is what policy gives the program, and its port.
func environment(given map[string]string, port string) []string {
	env := make([]string, 0, len(given)+1)
	for _, name := range slices.Sorted(maps.Keys(given)) {
		env = append(env, name+"="+given[name])
	}
	return append(env, "PORT="+port)
}

// runProcess starts the program, says how that went, and waits for its end. It keeps
// its thread: Linux sends the parent-death signal when the thread that forked
// ends, whatever becomes of the process.
func (p *program) runProcess(started chan<- error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	err := p.cmd.Start()
	started <- err
	if err != nil {
		return
	}
	defer close(p.ended)
	p.awaitEnd()
	p.signalGroup(syscall.SIGKILL) // what it left behind
	p.cmd.Wait()                   // its outcome is read from the state below
	status := p.cmd.ProcessState.Sys().(syscall.WaitStatus)
	exit := &Exit{Code: status.ExitStatus()}
	if status.Signaled() {
		exit.Code = 128 + int(status.Signal())
	}
	p.died(exit)
}

// awaitEnd blocks until the program has ended, and leaves it unreaped, so that
// its process group cannot become another's.
func (p *program) awaitEnd() {
	for unix.Waitid(unix.P_PID, p.cmd.Process.Pid, nil, unix.WEXITED|unix.WNOWAIT, nil) == unix.EINTR {
	}
}

func (p *program) signalGroup(s syscall.Signal) {
	_ = syscall.Kill(-p.cmd.Process.Pid, s) // only fails when no process is left
}

// terminate asks the program and what it started to end, insists after a while, and
// waits.
func (p *program) terminate() {
	select {
	case <-p.ended:
		return
	default:
	}
	p.signalGroup(syscall.SIGTERM)
	insist := time.AfterFunc(stopTime, func() { p.signalGroup(syscall.SIGKILL) })
	defer insist.Stop()
	<-p.ended
}

// accepts blocks until the program accepts a connection, and refuses with
// "unavailable" one that does not within limit.
func (p *program) accepts(ctx context.Context, limit time.Duration) error {
	deadline, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	for wait := time.Millisecond; ; wait = min(2*wait, 100*time.Millisecond) {
		c, err := new(net.Dialer).DialContext(deadline, "tcp", p.address)
		if err == nil {
			return c.Close()
		}
		if retry.Sleep(deadline, wait) == nil {
			continue
		}
		if ctx.Err() != nil {
			return endedBy(ctx)
		}
		return wire.Refuse(wire.Unavailable, "program: accepting connections", "none after "+limit.String(),
			"a listener on the address "+p.address+" (PORT, or {port} in its arguments)")
	}
}
