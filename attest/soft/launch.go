//go:build linux

package soft

import (
	"context"
	"fmt"
	"net"
	"os"
	"slices"
	"syscall"

	"github.com/cohort-tee/cohort/internal/wire"
)

// LaunchRequest is what a launcher hands to the daemon.
type LaunchRequest struct {
	Program *os.File // what is measured; ELF, at most 1 GiB
	Agent   *os.File // measured and executed in the program's place; nil for none
	Args    []string // measured arguments of the program

	// Settings are what the host chooses: environment variables whose names
	// begin with COHORT_. They are not measured, and the child has no others.
	Settings map[string]string
	Dir      string // working directory, "/" when empty

	// Stdin, Stdout and Stderr are the child's; nil is the null device.
	Stdin, Stdout, Stderr *os.File
}

// Process is a program that the daemon launched. The daemon ends it when the
// launching process ends.
type Process struct {
	PID int

	conn   *net.UnixConn
	exited chan struct{} // closed when exit and err are set
	exit   Exit
	err    error
}

// Launch asks the daemon at socket to start a program. It blocks until the
// daemon has measured and started it, or ctx is done; afterwards ctx has no
// effect. Its error is the daemon's refusal, or has the reason
// "not-this-device" when no daemon responds. The files stay the caller's.
func Launch(ctx context.Context, socket string, r LaunchRequest) (*Process, error) {
	conn, err := (&net.Dialer{}).DialContext(ctx, network, socket)
	if err != nil && ctx.Err() != nil {
		return nil, ctx.Err()
	}
	if err != nil {
		return nil, wire.Refuse(wire.NotThisDevice, "soft daemon: socket "+socket, err, "a running daemon")
	}
	p := &Process{conn: conn.(*net.UnixConn), exited: make(chan struct{})}
	release := boundBy(ctx, p.conn)
	err = p.launch(r)
	if !release() {
		err = ctx.Err()
	}
	if err != nil {
		p.conn.Close()
		return nil, err
	}
	go p.watch()
	return p, nil
}

func (p *Process) launch(r LaunchRequest) error {
	m := launchMessage{Args: r.Args, Settings: r.Settings, Dir: r.Dir}
	if err := m.validate(); err != nil {
		return err
	}
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer null.Close()
	files := []*os.File{r.Program, orElse(r.Stdin, null), orElse(r.Stdout, null), orElse(r.Stderr, null)}
	if r.Agent != nil {
		files = append(files, r.Agent)
	}
	if err := sendMessage(p.conn, m, files...); err != nil {
		return err
	}
	reply, err := p.reply()
	if err != nil {
		return err
	}
	if reply.PID <= 0 {
		return wire.Refuse(wire.Malformed, "soft daemon: response", fmt.Sprintf("process id %d", reply.PID), "a process id")
	}
	p.PID = reply.PID
	return nil
}

func orElse(f, other *os.File) *os.File {
	if f == nil {
		return other
	}
	return f
}

// reply reads the daemon's next message; a refusal is the error.
func (p *Process) reply() (launchReply, error) {
	var reply launchReply
	if err := receiveNoFiles(p.conn, &reply); err != nil {
		return reply, wire.Refuse(wire.NotThisDevice, "soft daemon: response", err, "a response")
	}
	if reply.Refusal != nil {
		return reply, reply.Refusal
	}
	return reply, nil
}

// watch waits for the exit; its owner is Wait.
func (p *Process) watch() {
	defer close(p.exited)
	defer p.conn.Close()
	reply, err := p.reply()
	if err == nil && reply.Exit == nil {
		err = wire.Refuse(wire.Malformed, "soft daemon: response", "a message without an exit", "an exit")
	}
	if err != nil {
		p.err = err
		return
	}
	p.exit = *reply.Exit
}

// Wait blocks until the process has ended and states how. Its error has the
// reason "not-this-device" when the daemon went first, which ends the process
// too. It may be called more than once.
func (p *Process) Wait() (Exit, error) {
	<-p.exited
	return p.exit, p.err
}

// Signal sends SIGTERM, SIGINT, SIGHUP or SIGKILL to the process.
func (p *Process) Signal(s syscall.Signal) error {
	if !slices.Contains(forwardedSignals, s) {
		return refuseCall("signal", s, "SIGTERM, SIGINT, SIGHUP or SIGKILL")
	}
	return sendMessage(p.conn, signalMessage{Signal: s})
}
