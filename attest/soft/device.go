//go:build linux

package soft

import (
	"context"
	"errors"
	"net"
	"os"
	"strconv"
	"sync"
	"time"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/internal/wire"
	"golang.org/x/sys/unix"
)

// welcomeTime is how long a child waits for its welcome, which the daemon sends
// before it starts the child: it is there already, or this is no device.
const welcomeTime = time.Second

// Device is the daemon as a program sees it that the daemon launched. It
// implements [attest.Attester] and [attest.Sealer] and is safe for concurrent
// use; one call is under way at a time.
type Device struct {
	args    []string
	program *os.File // nil but for an agent

	mu     sync.Mutex // guards what follows
	conn   *net.UnixConn
	number uint64 // of the last call
}

var (
	_ attest.Attester = (*Device)(nil)
	_ attest.Sealer   = (*Device)(nil)
)

// Inherited is the device that the daemon gave this process. It takes the
// variable COHORT_SOFT_FD out of the environment, so it works once. It refuses
// with reason "not-this-device" in a process that no daemon launched.
func Inherited() (*Device, error) {
	conn, err := inheritedConn()
	if err != nil {
		return nil, err
	}
	d := &Device{conn: conn}
	if err := d.readWelcome(); err != nil {
		conn.Close()
		return nil, err
	}
	return d, nil
}

func inheritedConn() (*net.UnixConn, error) {
	text, ok := os.LookupEnv(variableFD)
	if !ok {
		return nil, wire.Refuse(wire.NotThisDevice, "soft device", "no "+variableFD, "a process that the soft daemon launched")
	}
	os.Unsetenv(variableFD)
	fd, err := strconv.Atoi(text)
	if err == nil {
		unix.CloseOnExec(fd)
		var kind int
		kind, err = unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_TYPE)
		if err == nil && kind != unix.SOCK_SEQPACKET {
			err = unix.ENOTSOCK
		}
	}
	if err != nil {
		return nil, wire.Refuse(wire.NotThisDevice, "soft device: "+variableFD, text, "the descriptor of a device")
	}
	return connOf(os.NewFile(uintptr(fd), "device"))
}

func (d *Device) readWelcome() error {
	ctx, cancel := context.WithTimeout(context.Background(), welcomeTime)
	defer cancel()
	defer boundBy(ctx, d.conn)()
	var w welcome
	files, err := receiveMessage(d.conn, &w)
	if err != nil || len(files) > 1 {
		closeAll(files)
		return wire.Refuse(wire.NotThisDevice, "soft device: welcome", err, "a daemon's welcome")
	}
	d.args = w.Args
	if len(files) == 1 {
		d.program = files[0]
	}
	return nil
}

// Arguments are the measured arguments: of this program, or of the program that
// this agent runs.
func (d *Device) Arguments() []string { return d.args }

// Program is the measured program that this agent has to run: a sealed memory
// file that closes on exec and stays the device's. It is executed as
// /proc/PID/fd/N, with this process's id and the file's descriptor. In a
// process that is no agent it refuses with reason "not-found".
func (d *Device) Program() (*os.File, error) {
	if d.program == nil {
		return nil, wire.Refuse(wire.NotFound, "soft device: program", "a launch without an agent", "an agent's")
	}
	return d.program, nil
}

// Attest asks the daemon for evidence.
func (d *Device) Attest(ctx context.Context, data attest.ReportData) (attest.Evidence, error) {
	raw, err := d.callDaemon(ctx, call{Op: opAttest, Data: data[:]})
	if err != nil {
		return attest.Evidence{}, err
	}
	return attest.Evidence{Platform: attest.Soft, Raw: raw}, nil
}

// Seal asks the daemon to seal a secret to the given reference values, or to
// this program alone.
func (d *Device) Seal(ctx context.Context, secret []byte, to []attest.ReferenceValue) ([]byte, error) {
	asked := call{Op: opSeal, Data: secret}
	for _, reference := range to {
		asked.To = append(asked.To, reference.Bytes())
	}
	return d.callDaemon(ctx, asked)
}

// Unseal asks the daemon for a secret that was sealed to this program.
func (d *Device) Unseal(ctx context.Context, sealed []byte) ([]byte, error) {
	return d.callDaemon(ctx, call{Op: opUnseal, Data: sealed})
}

// callDaemon sends one request and waits for its response. Responses to requests that
// were abandoned are skipped.
func (d *Device) callDaemon(ctx context.Context, asked call) ([]byte, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.conn.SetDeadline(time.Time{})
	defer boundBy(ctx, d.conn)()
	d.number++
	asked.Number = d.number
	if err := sendMessage(d.conn, asked); err != nil {
		return nil, callError(ctx, err)
	}
	for {
		var a deviceResponse
		if err := receiveNoFiles(d.conn, &a); err != nil {
			return nil, callError(ctx, err)
		}
		if a.Number == asked.Number {
			return a.result()
		}
	}
}

func (a deviceResponse) result() ([]byte, error) {
	if a.Refusal != nil {
		return nil, a.Refusal
	}
	return a.Data, nil
}

// callError is the error of a call that got no response: the caller's own
// deadline, the refusal to send it, or a device that is gone.
func callError(ctx context.Context, err error) error {
	var r *wire.Refusal
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case errors.As(err, &r):
		return err
	}
	return wire.Refuse(wire.NotThisDevice, "soft device", err, "an answer of the daemon")
}
