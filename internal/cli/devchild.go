package cli

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
	"github.com/cohort-tee/cohort/internal/retry"
)

// restarts is the wait before a child is started again; one that ran for settled begins anew.
var restarts = retry.Backoff{First: 100 * time.Millisecond, Max: 5 * time.Second}

const settled = 10 * time.Second

// longestSocket is the length of a socket's path that the kernel takes.
const longestSocket = 100

// daemon is the soft daemon as a child process.
type daemon struct {
	root   string
	socket string
	temp   string // folder of the socket, where the state's own path is too long
	cmd    *exec.Cmd
	exited chan struct{} // closed when err is set
	err    error         // how the process ended
}

// startDaemon runs `cohort soft` and waits until it listens.
func startDaemon(ctx context.Context, cohort, state string) (*daemon, error) {
	d := &daemon{socket: filepath.Join(state, "tee"), exited: make(chan struct{})}
	if len(d.socket) > longestSocket {
		var err error
		if d.temp, err = os.MkdirTemp("", "cohort-"); err != nil {
			return nil, err
		}
		d.socket = filepath.Join(d.temp, "tee")
	}
	log, err := os.Create(filepath.Join(state, "soft.log"))
	if err != nil {
		return nil, err
	}
	defer log.Close()
	d.cmd = plainCommand(context.Background(), log, cohort, "soft", "--socket", d.socket, "--dir", filepath.Join(state, "soft"), "-o", "json")
	out, err := d.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := d.run(ctx, out); err != nil {
		return nil, errors.Join(fmt.Errorf("%w\n%s", err, tail(log.Name())), d.stop())
	}
	return d, nil
}

// plainCommand is a cohort outside the TEE, which is asked to end when ctx is
// done. A group of its own keeps the terminal's Ctrl-C from it; should the thread
// that starts it end, as when this process is killed, the kernel ends it.
func plainCommand(ctx context.Context, log *os.File, cohort string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, cohort, args...)
	cmd.Env, cmd.Stderr = []string{}, log
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGTERM}
	return cmd
}

// run starts the process on a thread that lives as long as it, because the
// parent-death signal is the thread's, and reads the root it prints.
func (d *daemon) run(ctx context.Context, out io.Reader) error {
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
		var said struct{ Root string }
		err = json.NewDecoder(bufio.NewReader(out)).Decode(&said)
		d.root = said.Root
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

// stop ends the daemon, and with it whatever it launched.
func (d *daemon) stop() error {
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

// output runs a cohort command measured and gives what it printed. What it said
// beside that is passed on where it failed.
func (d *daemon) output(ctx context.Context, cohort string, args ...string) ([]byte, error) {
	settings, err := commandSettings(args)
	if err != nil {
		return nil, err
	}
	out, err := os.CreateTemp("", "cohort-")
	if err != nil {
		return nil, err
	}
	defer os.Remove(out.Name())
	defer out.Close()
	talk, err := os.CreateTemp("", "cohort-")
	if err != nil {
		return nil, err
	}
	defer os.Remove(talk.Name())
	defer talk.Close()
	l := launch{program: []string{cohort}, settings: settings, stdout: out, stderr: talk}
	p, err := l.start(ctx, d.socket)
	if err != nil {
		return nil, err
	}
	exit, err := p.Wait()
	if err == nil && exit != (soft.Exit{}) {
		err = fmt.Errorf("cohort %s: %v: %s", args[0], exit, tail(talk.Name()))
	}
	if err != nil {
		return nil, err
	}
	return os.ReadFile(out.Name())
}

// child is one supervised process.
type child struct {
	name    string
	log     string
	run     runner
	started func(pid int)
	failed  chan error // the first end, for who waits until it is ready
}

// runner runs a process until it ends, which it is asked to when ctx is done.
// Its error is never nil.
type runner func(ctx context.Context, log *os.File, started func(pid int)) error

func (d *dev) newChild(name string, run runner) *child {
	return &child{name: name, log: filepath.Join(d.state, name+".log"), run: run, started: func(int) {}, failed: make(chan error, 1)}
}

// measured runs a cohort with a command line in the TEE.
func (d *dev) measured(l launch, args []string) runner {
	return func(ctx context.Context, log *os.File, started func(int)) (err error) {
		l.stdout, l.stderr = log, log
		if l.settings, err = commandSettings(args); err != nil {
			return err
		}
		p, err := l.start(ctx, d.tee.socket)
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

// plain runs a cohort with a command line outside the TEE.
func (d *dev) plain(args ...string) runner {
	return func(ctx context.Context, log *os.File, started func(int)) error {
		runtime.LockOSThread() // see plainCommand
		defer runtime.UnlockOSThread()
		cmd := plainCommand(ctx, log, d.bin.cohort, args...)
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

// supervise keeps a child running until ctx is done.
func (d *dev) supervise(ctx context.Context, c *child) {
	d.children.Go(func() {
		failures := 0
		for ctx.Err() == nil {
			began := d.app.now()
			err := c.runOnce(ctx)
			if ctx.Err() != nil {
				return
			}
			select {
			case c.failed <- err:
			default:
			}
			if d.app.now().Sub(began) > settled {
				failures = 0
			}
			failures++
			pause := restarts.Longest(failures)
			d.app.say("%s ended (%v); starting it again in %v", c.name, err, pause)
			_ = retry.Sleep(ctx, pause) // the loop sees ctx
		}
	})
}

// runOnce runs the child until it ends, with its log.
func (c *child) runOnce(ctx context.Context) error {
	log, err := os.OpenFile(c.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	return c.run(ctx, log, c.started)
}

// await tries ready until it holds. A child that ends before is an error, with
// the end of its log.
func (c *child) await(ctx context.Context, ready func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, startTime)
	defer cancel()
	for {
		err := ready(ctx)
		if err == nil {
			return nil
		}
		select {
		case end := <-c.failed:
			return &fault{codeProgram, fmt.Errorf("%s: %w:\n%s", c.name, end, tail(c.log)), "its whole log is " + c.log}
		case <-ctx.Done():
			return fmt.Errorf("%s: not ready within %v: %w:\n%s", c.name, startTime, err, tail(c.log))
		case <-time.After(50 * time.Millisecond):
		}
	}
}
