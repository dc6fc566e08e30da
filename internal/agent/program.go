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

// stopTime is the time between SIGTERM and SIGKILL.
const stopTime = 10 * time.Second

// programName is argv[0] of every program, so that the host cannot choose a name that the
// program reads.
const programName = "program"

// Exit is the error of [Run] if the program ended by itself.
type Exit struct {
	// Code is the program's exit code, or 128 plus the number of the signal that ended it.
	Code int
}

// Error returns a text with the code.
func (e *Exit) Error() string { return fmt.Sprintf("program ended with code %d", e.Code) }

// program is a running program, the leader of its own process group.
type program struct {
	cmd     *exec.Cmd
	address string                  // where the program should listen
	died    context.CancelCauseFunc // called with the [*Exit] when the program ends
	ended   chan struct{}           // closed when the program has ended and its process group was killed
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
		cmd.Args = append(cmd.Args, peers.expandURLs(strings.ReplaceAll(arg, "{port}", port)))
	}
	p := &program{cmd: cmd, address: address, died: died, ended: make(chan struct{})}
	started := make(chan error)
	go p.runProcess(started)
	return p, <-started
}

// environment returns the program's variables: those of the policy, and PORT.
func environment(given map[string]string, port string) []string {
	env := make([]string, 0, len(given)+1)
	for _, name := range slices.Sorted(maps.Keys(given)) {
		env = append(env, name+"="+given[name])
	}
	return append(env, "PORT="+port)
}

// runProcess starts the program, sends the error of the start (or nil), and waits for the
// program's end. It locks its thread, since Linux sends the parent-death signal when the thread
// that forked ends, even if the process continues.
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
	p.signalGroup(syscall.SIGKILL) // processes that the program left running
	p.cmd.Wait()                   // ProcessState below contains its outcome
	status := p.cmd.ProcessState.Sys().(syscall.WaitStatus)
	exit := &Exit{Code: status.ExitStatus()}
	if status.Signaled() {
		exit.Code = 128 + int(status.Signal())
	}
	p.died(exit)
}

// awaitEnd blocks until the program has ended. It does not reap the process, so that the kernel
// cannot reuse the id of its process group.
func (p *program) awaitEnd() {
	for unix.Waitid(unix.P_PID, p.cmd.Process.Pid, nil, unix.WEXITED|unix.WNOWAIT, nil) == unix.EINTR {
	}
}

func (p *program) signalGroup(s syscall.Signal) {
	_ = syscall.Kill(-p.cmd.Process.Pid, s) // fails only if no process is left
}

// terminate sends SIGTERM to the program and the processes that it started, sends SIGKILL after
// stopTime, and waits for the program's end.
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

// accepts blocks until the program accepts a connection. If it accepts none within limit, the
// error has the reason "unavailable".
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
