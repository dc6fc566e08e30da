// Package agent runs a program that knows nothing of Cohort as a unit: behind the
// unit's certificate, with a port on loopback, and with its peers at plain HTTP addresses.
//
// [Run] starts the program from its open file and gives it the environment that policy
// names, and nothing else of the agent's. Requests reach it once it accepts connections,
// and it never outlives the agent. What the unit trusts and refuses, package unit says;
// nothing that a client sends is passed to the program as the agent's own word.
//
// Files, each using those before it: proxy.go, splice.go, peers.go, program.go,
// certdir.go, agent.go.
package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"strconv"
	"syscall"
	"time"

	"github.com/cohort-tee/cohort/internal/wire"
	"github.com/cohort-tee/cohort/unit"
)

// Forward says what the agent passes on to its program.
type Forward string

// What an agent forwards.
const (
	ForwardHTTP Forward = "http" // HTTP/1.1, HTTP/2 and upgrades, as a reverse proxy
	ForwardTCP  Forward = "tcp"  // what TLS carries, byte by byte
)

// Config says which program an agent runs and how it serves it.
type Config struct {
	Unit    *unit.Unit   // enrolled; the caller closes it
	Program *os.File     // the program's file, which is executed as it is, not by name
	Args    []string     // after argv[0]; {port} stands for the program's port
	Listen  net.Listener // closed by the agent; nil only with CertDir, for a program that serves TLS itself
	Forward Forward      // required with Listen
	Peers   []Peer       // roles of the unit's group that the program calls
	Stdout  io.Writer    // of the program; nil discards
	Stderr  io.Writer
	Log     *slog.Logger // nil discards

	// CertDir is a directory on a tmpfs that the agent keeps filled with
	// tls.crt, tls.key and ca.crt. Empty writes none.
	CertDir string
	// Disk accepts a CertDir on a medium that survives the TEE's memory.
	Disk bool
	// Reload is sent to the program after each renewal of CertDir. Zero
	// sends none.
	Reload syscall.Signal
	// Started is called once, when the program accepts connections and CertDir is
	// filled. Nil is not called.
	Started func()
}

// acceptTime is how long a program may take until it accepts connections.
const acceptTime = 30 * time.Second

// Run runs a program that knows nothing of Cohort behind the unit's
// certificate, until ctx is done or the program ends. The program gets a
// loopback port as PORT and in place of {port}, the environment that policy
// gives it, and nothing else of the agent's environment. No connection is
// accepted before the program accepts its own.
//
// When ctx is done, requests in flight are finished, the program and what it
// started are asked to end (SIGTERM) and after 10 seconds made to (SIGKILL), and
// Run returns nil. When the program ends by itself the error is an [*Exit].
// The program never outlives the agent, however that ends.
func Run(ctx context.Context, c Config) (err error) {
	if err := c.validate(); err != nil {
		return err
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if c.Listen != nil {
		defer c.Listen.Close()
	}
	address, err := freeAddress()
	if err != nil {
		return fmt.Errorf("choosing the program's port: %w", err)
	}
	certs, err := openCertDir(c)
	if err != nil {
		return fmt.Errorf("certificate directory: %w", err)
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	peers, err := c.openPeers()
	if err != nil {
		return err
	}
	defer peers.close()
	p, err := launch(c, address, peers, cancel)
	if err != nil {
		return fmt.Errorf("starting the program: %w", err)
	}
	defer p.terminate()
	if err := p.accepts(ctx, acceptTime); err != nil {
		return err
	}
	certsDone := certs.watchUpdates(ctx, p)
	defer func() {
		cancel(nil)
		err = errors.Join(err, <-certsDone)
	}()
	if c.Started != nil && ctx.Err() == nil {
		c.Started()
	}
	return c.serve(ctx, address)
}

// serve forwards until ctx is done, and says why when that is the program's end.
func (c Config) serve(ctx context.Context, address string) error {
	var err error
	switch {
	case c.Listen == nil:
		<-ctx.Done()
	case c.Forward == ForwardTCP:
		err = serveTCP(ctx, c.Unit, c.Listen, address)
	default:
		proxy, closeIdle := newProxy(address, c.Log)
		defer closeIdle()
		err = c.Unit.Serve(ctx, c.Listen, proxy)
	}
	return errors.Join(endedBy(ctx), err)
}

// endedBy is the program's exit when that is what ended ctx.
func endedBy(ctx context.Context) error {
	if exit := (*Exit)(nil); errors.As(context.Cause(ctx), &exit) {
		return exit
	}
	return nil
}

// validate tells every fault of a configuration.
func (c Config) validate() error {
	var faults []error
	fault := func(rule string, got, want any) {
		faults = append(faults, wire.Refuse(wire.BadRequest, "agent configuration: "+rule, got, want))
	}
	if c.Unit == nil {
		fault("unit", "no unit", "an enrolled unit")
	}
	if c.Program == nil {
		fault("program", "no program", "an executable file")
	}
	if c.Listen == nil && c.CertDir == "" {
		fault("listener", "neither of them", "a listener, or a certificate directory")
	}
	if c.Listen != nil && c.Forward != ForwardHTTP && c.Forward != ForwardTCP {
		fault("forward", c.Forward, "http or tcp")
	}
	if c.Reload != 0 && c.CertDir == "" {
		fault("reload signal", c.Reload, "none without a certificate directory")
	}
	return errors.Join(faults...)
}

// freeAddress is a loopback address without a listener at present.
func freeAddress() (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	port := l.Addr().(*net.TCPAddr).Port
	return net.JoinHostPort("127.0.0.1", strconv.Itoa(port)), l.Close()
}
