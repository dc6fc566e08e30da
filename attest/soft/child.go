//go:build linux

package soft

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"syscall"
	"time"

	"github.com/cohort-tee/cohort/attest"
	"golang.org/x/sys/unix"
)

// Environment of a child.
const (
	settingPrefix = "COHORT_"
	variableFD    = "COHORT_SOFT_FD" // number of the descriptor of the child's device
	childFD       = 3                // its value: the first after stdin, stdout, stderr
)

// argv0 is the name of every measured program, whatever its file was called.
const argv0 = "program"

// stopGrace is how long a child has between SIGTERM and SIGKILL.
const stopGrace = 5 * time.Second

// noCore as a limit on the size of core files turns them off; unlike 0 it also
// stops cores that the kernel pipes to a handler.
const noCore = 1

// Exit is how a process ended: with a code, or by a signal.
type Exit struct {
	Code   int            `json:"code"`
	Signal syscall.Signal `json:"signal"`
}

// String is "exit code N" or "signal: NAME".
func (e Exit) String() string {
	if e.Signal != 0 {
		return "signal: " + e.Signal.String()
	}
	return fmt.Sprintf("exit code %d", e.Code)
}

// child is one launched process and the daemon's end of its device.
type child struct {
	cmd       *exec.Cmd
	image     *image // what it executes
	statement Statement
	device    *net.UnixConn
	exited    chan struct{} // closed when exit is set and nothing of it is left
	exit      Exit
}

// start executes the image and reaps it. The goroutine that starts a child
// stays on its thread until the child is gone, because the kernel kills the
// child when the thread that made it ends.
func (c *child) start() error {
	c.exited = make(chan struct{})
	started := make(chan error)
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := c.cmd.Start()
		started <- err
		if err == nil {
			c.waitAndClean()
		}
	}()
	if err := <-started; err != nil {
		return fmt.Errorf("executing the program: %w", err)
	}
	return nil
}

// waitAndClean waits for the end, ends what is left of the process group while the
// child's id is still its own, and closes the device.
func (c *child) waitAndClean() {
	pid := c.cmd.Process.Pid
	for unix.Waitid(unix.P_PID, pid, nil, unix.WEXITED|unix.WNOWAIT, nil) == unix.EINTR {
	}
	unix.Kill(-pid, unix.SIGKILL)
	c.cmd.Wait()
	c.device.Close()
	status := c.cmd.ProcessState.Sys().(syscall.WaitStatus)
	if status.Signaled() {
		c.exit.Signal = status.Signal()
	} else {
		c.exit.Code = status.ExitStatus()
	}
	close(c.exited)
}

// terminate ends the child: SIGTERM, and SIGKILL when that was not enough.
func (c *child) terminate() {
	c.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-c.exited:
	case <-time.After(stopGrace):
		c.cmd.Process.Kill()
		<-c.exited
	}
}

// exposed reports whether a party other than the measured program can see into the
// child: a tracer, a core file, or because it is no longer the program that was
// started. What cannot be found out counts as exposed.
func (c *child) exposed() bool {
	pid := c.cmd.Process.Pid
	return traced(pid) || dumpable(pid) || !c.executes(pid)
}

// traced looks at every thread, since a tracer may take any one of them.
func traced(pid int) bool {
	threads, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/status", pid))
	if err != nil || len(threads) == 0 {
		return true
	}
	return slices.ContainsFunc(threads, tracedThread)
}

func tracedThread(path string) bool {
	status, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ESRCH) {
		return false // this thread ended in between
	}
	return !bytes.Contains(status, []byte("\nTracerPid:\t0\n"))
}

func dumpable(pid int) bool {
	var limit unix.Rlimit
	err := unix.Prlimit(pid, unix.RLIMIT_CORE, nil, &limit)
	return err != nil || limit.Cur != noCore
}

func (c *child) executes(pid int) bool {
	running, err := os.Stat(fmt.Sprintf("/proc/%d/exe", pid))
	if err != nil {
		return false
	}
	started, err := c.image.file.Stat()
	return err == nil && os.SameFile(running, started)
}

// serveDevice serves the child's calls until the device is closed.
func (c *child) serveDevice(k keys) {
	for {
		var asked call
		if err := receiveNoFiles(c.device, &asked); err != nil {
			c.device.Close()
			return
		}
		data, err := c.perform(k, asked)
		reply := deviceResponse{Number: asked.Number, Data: data}
		if err != nil {
			reply.Refusal = refusalOf(err)
		}
		if err := sendMessage(c.device, reply); err != nil {
			c.device.Close()
			return
		}
	}
}

// perform does what a call asks for, for the measurement of this child.
func (c *child) perform(k keys, asked call) ([]byte, error) {
	switch asked.Op {
	case opAttest:
		return c.attest(k, asked.Data)
	case opSeal:
		to, err := references(asked.To)
		if err != nil {
			return nil, err
		}
		return Seal(k.sealing, asked.Data, c.statement.Measurement(), to)
	case opUnseal:
		return Unseal(k.sealing, asked.Data, c.statement.Measurement())
	}
	return nil, refuseCall("operation", asked.Op, "attest, seal or unseal")
}

func (c *child) attest(k keys, data []byte) ([]byte, error) {
	s := c.statement
	if len(data) != len(s.ReportData) {
		return nil, refuseCall("report data length", len(data), len(s.ReportData))
	}
	s.ReportData = attest.ReportData(data)
	s.Debug = c.exposed()
	return Sign(k.attestation, s)
}

func references(framed [][]byte) ([]attest.ReferenceValue, error) {
	var to []attest.ReferenceValue
	for _, b := range framed {
		reference, err := attest.ParseMeasurement(b)
		if err != nil {
			return nil, err
		}
		to = append(to, reference)
	}
	return to, nil
}
