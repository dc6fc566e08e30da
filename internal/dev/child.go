package dev

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"syscall"
	"time"

	"github.com/cohort-tee/cohort/attest/soft"
	"github.com/cohort-tee/cohort/internal/cli/frame"
	"github.com/cohort-tee/cohort/internal/cli/localtee"
	"github.com/cohort-tee/cohort/internal/retry"
)

// restarts is the back-off before a child is started again. A child that ran for settled resets
// it.
var restarts = retry.Backoff{First: 100 * time.Millisecond, Max: 5 * time.Second}

const settled = 10 * time.Second

// longestSocket is the longest path of a socket that is safe for the kernel's limit.
const longestSocket = 100

// Daemon is the soft TEE daemon as a child process.
type Daemon struct {
	Root   string
	Socket string
	temp   string // folder of the socket if the path in the state would be too long
	cmd    *exec.Cmd
	exited chan struct{} // closed when err is set
	err    error         // result of the process
}

// StartDaemon runs `cohort soft` and waits until it listens.
func StartDaemon(ctx context.Context, cohort, state string) (*Daemon, error) {
	d := &Daemon{Socket: filepath.Join(state, "tee"), exited: make(chan struct{})}
	if len(d.Socket) > longestSocket {
		var err error
		if d.temp, err = os.MkdirTemp("", "cohort-"); err != nil {
			return nil, err
		}
		d.Socket = filepath.Join(d.temp, "tee")
	}
	log, err := os.Create(filepath.Join(state, "soft.log"))
	if err != nil {
		return nil, err
	}
	defer log.Close()
	d.cmd = plainCommand(context.Background(), log, cohort, "soft", "--socket", d.Socket, "--dir", filepath.Join(state, "soft"), "-o", "json")
	out, err := d.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := d.runProcess(ctx, out); err != nil {
		return nil, errors.Join(fmt.Errorf("%w\n%s", err, LogTail(log.Name())), d.Stop())
	}
	return d, nil
}

// plainCommand returns a command that runs cohort outside the TEE. It receives SIGTERM when ctx
// is done. It has a process group of its own, so that the terminal's Ctrl-C does not reach it.
// If the thread that starts it ends, for example because this process is killed, the kernel
// sends it SIGTERM.
func plainCommand(ctx context.Context, log *os.File, cohort string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, cohort, args...)
	cmd.Env, cmd.Stderr = []string{}, log
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGTERM}
	return cmd
}

// runProcess starts the process and reads the root that it prints. The thread that starts the
// process lives as long as the process, because the kernel sends the parent-death signal when
// that thread ends.
func (d *Daemon) runProcess(ctx context.Context, out io.Reader) error {
	started := make(chan error)
	read := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		defer close(d.exited)
		err := d.cmd.Start()
		started <- err
		if err != nil {
			return
		}
		var printed struct{ Root string }
		err = json.NewDecoder(bufio.NewReader(out)).Decode(&printed)
		d.Root = printed.Root
		read <- err
		d.err = d.cmd.Wait()
	}()
	if err := <-started; err != nil {
		return err
	}
	select {
	case err := <-read:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Stop ends the daemon and all programs that it launched.
func (d *Daemon) Stop() error {
	if d.cmd.Process != nil {
		_ = d.cmd.Process.Signal(syscall.SIGTERM)
	}
	<-d.exited
	err := d.err
	if d.temp != "" {
		err = errors.Join(err, os.RemoveAll(d.temp))
	}
	return err
}

// output runs a cohort command in the TEE and returns its standard output. If the command fails,
// the error contains the end of its standard error.
func (d *Daemon) output(ctx context.Context, cohort string, args ...string) ([]byte, error) {
	settings, err := localtee.CommandSettings(args)
	if err != nil {
		return nil, err
	}
	out, err := os.CreateTemp("", "cohort-")
	if err != nil {
		return nil, err
	}
	defer os.Remove(out.Name())
	defer out.Close()
	stderr, err := os.CreateTemp("", "cohort-")
	if err != nil {
		return nil, err
	}
	defer os.Remove(stderr.Name())
	defer stderr.Close()
	l := localtee.Launch{Program: []string{cohort}, Settings: settings, Stdout: out, Stderr: stderr}
	p, err := l.Start(ctx, d.Socket)
	if err != nil {
		return nil, err
	}
	exit, err := p.Wait()
	if err == nil && exit != (soft.Exit{}) {
		err = fmt.Errorf("cohort %s: %v: %s", args[0], exit, LogTail(stderr.Name()))
	}
	if err != nil {
		return nil, err
	}
	return os.ReadFile(out.Name())
}

// child is a supervised process.
type child struct {
	name    string
	Log     string
	run     runner
	started func(pid int)
	failed  chan error // receives the first error, for Await
}

// runner runs a process until it ends, and asks it to end when ctx is done. It always returns an
// error.
type runner func(ctx context.Context, log *os.File, started func(pid int)) error

// NewChild prepares a process with its own log file.
func (d *Cluster) NewChild(name string, run runner) *child {
	return &child{name: name, Log: filepath.Join(d.State, name+".log"), run: run, started: func(int) {}, failed: make(chan error, 1)}
}

// Measured returns a runner of a launch in the TEE, with a command line of cohort.
func (d *Cluster) Measured(l localtee.Launch, args []string) runner {
	return func(ctx context.Context, log *os.File, started func(int)) (err error) {
		l.Stdout, l.Stderr = log, log
		if l.Settings, err = localtee.CommandSettings(args); err != nil {
			return err
		}
		p, err := l.Start(ctx, d.TEE.Socket)
		if err != nil {
			return err
		}
		started(p.PID)
		stop := context.AfterFunc(ctx, func() { _ = p.Signal(syscall.SIGTERM) })
		defer stop()
		exit, err := p.Wait()
		if err != nil {
			return err
		}
		return errors.New(exit.String())
	}
}

// plain returns a runner of a program outside the TEE, with a command line.
func (d *Cluster) plain(program string, args ...string) runner {
	return func(ctx context.Context, log *os.File, started func(int)) error {
		runtime.LockOSThread() // see plainCommand
		defer runtime.UnlockOSThread()
		cmd := plainCommand(ctx, log, program, args...)
		if err := cmd.Start(); err != nil {
			return err
		}
		started(cmd.Process.Pid)
		if err := cmd.Wait(); err != nil {
			return err
		}
		return errors.New("exit status 0")
	}
}

// supervise runs a child, again after each end, until ctx is done.
func (d *Cluster) supervise(ctx context.Context, c *child) {
	d.children.Go(func() {
		failures := 0
		for ctx.Err() == nil {
			began := d.App.Now()
			err := c.RunOnce(ctx)
			if ctx.Err() != nil {
				return
			}
			select {
			case c.failed <- err:
			default:
			}
			if d.App.Now().Sub(began) > settled {
				failures = 0
			}
			failures++
			pause := restarts.Longest(failures)
			d.App.Notef("%s ended (%v); starting it again in %v", c.name, err, pause)
			_ = retry.Sleep(ctx, pause) // the loop checks ctx
		}
	})
}

// RunOnce runs the child once until it ends, and appends to its log.
func (c *child) RunOnce(ctx context.Context) error {
	log, err := os.OpenFile(c.Log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	return c.run(ctx, log, c.started)
}

// Await calls ready until it returns nil. If the child ends first, or StartTime passes, it
// returns an error with the end of the child's log.
func (c *child) Await(ctx context.Context, ready func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, StartTime)
	defer cancel()
	for {
		err := ready(ctx)
		if err == nil {
			return nil
		}
		select {
		case end := <-c.failed:
			return &frame.Fault{Code: frame.CodeProgram, Cause: fmt.Errorf("%s: %w:\n%s", c.name, end, LogTail(c.Log)), Hint: "its whole log is " + c.Log}
		case <-ctx.Done():
			return fmt.Errorf("%s: not ready within %v: %w:\n%s", c.name, StartTime, err, LogTail(c.Log))
		case <-time.After(50 * time.Millisecond):
		}
	}
}
