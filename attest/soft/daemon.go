//go:build linux

package soft

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/internal/wire"
	"golang.org/x/sys/unix"
)

const (
	maxChildren   = 256              // alive at once; each takes about ten descriptors
	maxAsking     = 64               // launchers that have connected and not asked yet
	requestTime   = 10 * time.Second // a launcher that connected asks within this
	standardFiles = 4                // descriptors of a launch without an agent
)

// Config is what a daemon needs.
type Config struct {
	// Dir keeps the daemon's keys, and with them its root. It is made when
	// it does not exist and belongs to one daemon at a time.
	Dir string
}

// Daemon is the development TEE. It is safe for concurrent use.
type Daemon struct {
	keys   keys
	root   attest.Digest
	lock   *os.File
	slots  chan struct{} // one for each child
	asking chan struct{} // one for each launcher that has not asked
}

// NewDaemon opens a daemon's directory. It refuses with "unavailable" a
// directory where another daemon works, and with "store-foreign" damaged keys.
// It turns core files off for the calling process, whose children inherit that
// before their first instruction.
func NewDaemon(config Config) (*Daemon, error) {
	if config.Dir == "" {
		return nil, wire.Refuse(wire.BadRequest, "soft daemon: directory", "an empty path", "a directory for its keys")
	}
	if err := unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{Cur: noCore, Max: noCore}); err != nil {
		return nil, fmt.Errorf("turning core files off: %w", err)
	}
	lock, err := lockDir(config.Dir)
	if err != nil {
		return nil, err
	}
	d := &Daemon{lock: lock, slots: make(chan struct{}, maxChildren), asking: make(chan struct{}, maxAsking)}
	if d.keys, err = openKeys(filepath.Join(config.Dir, "keys.pem")); err == nil {
		d.root, err = RootOf(&d.keys.attestation.PublicKey)
	}
	if err != nil {
		lock.Close()
		return nil, err
	}
	return d, nil
}

// RootDigest is the digest that names this daemon in policy, under [platform.soft].
func (d *Daemon) RootDigest() attest.Digest { return d.root }

// Close releases the directory. It is called when Serve has returned.
func (d *Daemon) Close() error { return d.lock.Close() }

// Serve launches programs for each client that connects to ln, which [Listen] made, until
// ctx is done. Then it ends all children, with SIGKILL those that are still
// there after five seconds, and returns nil.
func (d *Daemon) Serve(ctx context.Context, ln net.Listener) error {
	ctx, cancel := context.WithCancel(ctx)
	var launchers sync.WaitGroup
	defer launchers.Wait()
	defer cancel()
	defer context.AfterFunc(ctx, func() { ln.Close() })()
	defer signal.Stop(catchIgnored())
	for {
		conn, err := ln.Accept()
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return fmt.Errorf("accepting a launcher: %w", err)
		}
		launcher, ok := conn.(*net.UnixConn)
		if !ok {
			conn.Close()
			return errors.New("soft daemon: listener is not a Unix socket")
		}
		launchers.Go(func() { d.serveLauncher(ctx, launcher) })
	}
}

// catchIgnored catches, and forgets, what this process ignores of the signals that are
// forwarded, as under nohup. A program would inherit that it is ignored; what is
// caught is at its default again after execve(2).
func catchIgnored() chan<- os.Signal {
	signals := make(chan os.Signal, 1)
	for _, s := range forwardedSignals {
		if signal.Ignored(s) {
			signal.Notify(signals, s)
		}
	}
	return signals
}

// serveLauncher launches one program and stays until it is gone. When the launcher
// goes first, the program is ended.
func (d *Daemon) serveLauncher(ctx context.Context, launcher *net.UnixConn) {
	var helpers sync.WaitGroup
	defer helpers.Wait()
	defer launcher.Close()
	c, err := d.admit(ctx, launcher)
	if err != nil {
		sendMessage(launcher, launchReply{Refusal: refusalOf(err)})
		return
	}
	defer func() { <-d.slots }()
	defer c.image.file.Close()
	helpers.Go(func() { c.serveDevice(d.keys) })
	gone := make(chan struct{})
	helpers.Go(func() { defer close(gone); c.forward(launcher) })
	sendMessage(launcher, launchReply{PID: c.cmd.Process.Pid})
	select {
	case <-c.exited:
	case <-gone:
		c.terminate()
	case <-ctx.Done():
		c.terminate()
	}
	sendMessage(launcher, launchReply{Exit: &c.exit})
}

// forward sends the launcher's signals to the child until the launcher goes or
// states something else.
func (c *child) forward(launcher *net.UnixConn) {
	for {
		var m signalMessage
		if err := receiveNoFiles(launcher, &m); err != nil || !slices.Contains(forwardedSignals, m.Signal) {
			return
		}
		c.cmd.Process.Signal(m.Signal)
	}
}

// admit reads a launcher's request, and starts what it asks for while there is a
// place for one more child, which the caller returns. A launcher that does not ask
// takes none.
func (d *Daemon) admit(ctx context.Context, launcher *net.UnixConn) (c *child, err error) {
	select {
	case d.asking <- struct{}{}:
	default:
		return nil, wire.Refuse(wire.TooMany, "soft daemon: launchers that have not asked", maxAsking, "fewer")
	}
	m, files, err := readRequest(ctx, launcher)
	<-d.asking
	if err != nil {
		return nil, err
	}
	defer closeAll(files)
	select {
	case d.slots <- struct{}{}:
	default:
		return nil, wire.Refuse(wire.TooMany, "soft daemon: children", maxChildren, "fewer")
	}
	if c, err = m.launch(files); err != nil {
		<-d.slots
	}
	return c, err
}

// launch starts what a launcher asks for.
func (m launchMessage) launch(files []*os.File) (*child, error) {
	if len(files) != standardFiles && len(files) != standardFiles+1 {
		return nil, refuseCall("descriptors", len(files), "program, stdin, stdout, stderr and perhaps an agent")
	}
	if err := m.validate(); err != nil {
		return nil, err
	}
	return m.start(files)
}

func readRequest(ctx context.Context, launcher *net.UnixConn) (launchMessage, []*os.File, error) {
	ctx, cancel := context.WithTimeout(ctx, requestTime)
	defer cancel()
	defer launcher.SetDeadline(time.Time{})
	defer boundBy(ctx, launcher)()
	var m launchMessage
	files, err := receiveMessage(launcher, &m)
	return m, files, err
}

func refuseCall(rule string, got, want any) error {
	return wire.Refuse(wire.BadRequest, "soft daemon: "+rule, got, want)
}
