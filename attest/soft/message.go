//go:build linux

package soft

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"syscall"
	"time"

	"github.com/cohort-tee/cohort/internal/wire"
)

// maxMessage bounds one message: a sealed blob of 128 KiB in base64 fits, and
// it stays below the kernel's default socket buffer of 208 KiB.
const maxMessage = 192 << 10

// maxFiles is how many descriptors a message carries at most: program, stdin,
// stdout, stderr, agent.
const maxFiles = 5

// launchMessage asks the daemon to launch. Its descriptors are program, stdin,
// stdout, stderr, and the agent when there is one.
type launchMessage struct {
	Args     []string          `json:"args"`
	Settings map[string]string `json:"settings"`
	Dir      string            `json:"dir"`
}

// launchReply is what the daemon reports a launcher: first the process or a
// refusal, at the end the exit.
type launchReply struct {
	PID     int           `json:"pid,omitempty"`
	Exit    *Exit         `json:"exit,omitempty"`
	Refusal *wire.Refusal `json:"refusal,omitempty"`
}

// forwardedSignals are those that a launcher may send to the child.
var forwardedSignals = []syscall.Signal{syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP, syscall.SIGKILL}

// signalMessage asks the daemon to send a signal to the child.
type signalMessage struct {
	Signal syscall.Signal `json:"signal"`
}

// welcome is the first message a child reads: its measured arguments. Its one
// descriptor is the program that an agent has to run.
type welcome struct {
	Args []string `json:"args"`
}

// Operations of a child on its device.
const (
	opAttest = "attest"
	opSeal   = "seal"
	opUnseal = "unseal"
)

// call is a child's request to its device. The response has the same number.
type call struct {
	Number uint64   `json:"number"`
	Op     string   `json:"op"`
	Data   []byte   `json:"data"`
	To     [][]byte `json:"to,omitempty"` // reference values, framed
}

// deviceResponse is the device's response.
type deviceResponse struct {
	Number  uint64        `json:"number"`
	Data    []byte        `json:"data,omitempty"`
	Refusal *wire.Refusal `json:"refusal,omitempty"`
}

// refusalOf makes an error something that can be sent: a refusal as it is, any
// other error as reason "internal".
func refusalOf(err error) *wire.Refusal {
	var r *wire.Refusal
	if errors.As(err, &r) {
		return r
	}
	return &wire.Refusal{Reason: wire.Internal, Rule: err.Error()}
}

// sendMessage writes one message with its descriptors.
func sendMessage(conn *net.UnixConn, message any, files ...*os.File) error {
	b, err := json.Marshal(message)
	if err != nil {
		return fmt.Errorf("encoding a message: %w", err)
	}
	if len(b) > maxMessage {
		return wire.Refuse(wire.TooLarge, "soft message: size in bytes", len(b), maxMessage)
	}
	var rights []byte
	if len(files) > 0 {
		fds := make([]int, len(files))
		for i, f := range files {
			fds[i] = int(f.Fd())
		}
		rights = syscall.UnixRights(fds...)
	}
	if _, _, err := conn.WriteMsgUnix(b, rights, nil); err != nil {
		return fmt.Errorf("sending a message: %w", err)
	}
	return nil
}

// receiveMessage reads one message and the descriptors that came with it, which the
// caller closes. At the end of the connection its error is [io.EOF].
func receiveMessage(conn *net.UnixConn, message any) ([]*os.File, error) {
	b := make([]byte, maxMessage)
	rights := make([]byte, syscall.CmsgSpace(4*maxFiles))
	n, rightsLen, flags, _, err := conn.ReadMsgUnix(b, rights)
	if err != nil {
		return nil, err
	}
	files, err := filesOf(rights[:rightsLen])
	if err == nil && flags&(syscall.MSG_TRUNC|syscall.MSG_CTRUNC) != 0 {
		err = wire.Refuse(wire.TooLarge, "soft message", "a cut message", "192 KiB and 5 descriptors at most")
	}
	if err == nil {
		err = decode(b[:n], message)
	}
	if err != nil {
		closeAll(files)
		return nil, err
	}
	return files, nil
}

// receiveNoFiles reads a message that may carry no descriptors.
func receiveNoFiles(conn *net.UnixConn, message any) error {
	files, err := receiveMessage(conn, message)
	closeAll(files)
	if err == nil && len(files) > 0 {
		return wire.Refuse(wire.Malformed, "soft message: descriptors", len(files), 0)
	}
	return err
}

// boundBy makes every operation on conn fail once ctx is done. The function it
// returns ends that, and reports whether ctx was not done yet.
func boundBy(ctx context.Context, conn *net.UnixConn) (release func() bool) {
	done := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(done)
		conn.SetDeadline(time.Unix(1, 0))
	})
	return func() bool {
		if stop() {
			return true
		}
		<-done
		return false
	}
}

func decode(b []byte, message any) error {
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(message); err != nil {
		return wire.Refuse(wire.Malformed, "soft message", err, "a JSON message of this protocol")
	}
	if _, err := d.Token(); err != io.EOF {
		return wire.Refuse(wire.Malformed, "soft message", "trailing bytes", "one JSON message")
	}
	return nil
}

// filesOf takes the descriptors out of control messages. They close on exec.
func filesOf(control []byte) ([]*os.File, error) {
	messages, err := syscall.ParseSocketControlMessage(control)
	if err != nil {
		return nil, fmt.Errorf("reading descriptors: %w", err)
	}
	var files []*os.File
	for _, m := range messages {
		fds, err := syscall.ParseUnixRights(&m)
		if err != nil {
			return files, fmt.Errorf("reading descriptors: %w", err)
		}
		for _, fd := range fds {
			files = append(files, os.NewFile(uintptr(fd), "received"))
		}
	}
	return files, nil
}

func closeAll(files []*os.File) {
	for _, f := range files {
		f.Close()
	}
}
