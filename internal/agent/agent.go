// Package agent runs a program that has no Cohort code as a unit. The agent serves the unit's
// certificate and forwards requests to the program's port on loopback. The program calls its
// peers at plain HTTP addresses on loopback.
//
// [Run] starts the program from its open file, with the environment variables of the policy and
// no others of the agent's environment. The agent accepts requests once the program accepts
// connections, and the program never outlives the agent. Package unit documents what the unit
// trusts and refuses. The agent removes header fields of clients that the program could mistake
// for the agent's.
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

// Forward is the protocol that the agent forwards to its program.
type Forward string

// Protocols that an agent forwards.
const (
	ForwardHTTP Forward = "http" // HTTP/1.1, HTTP/2 and upgrades, as a reverse proxy
	ForwardTCP  Forward = "tcp"  // the plaintext bytes of TLS connections
)

// Config configures an agent: its program, and how requests reach it.
type Config struct {
	Unit    *unit.Unit   // enrolled; the caller closes it
	Program *os.File     // the program's open file; the agent executes this file, not a path
	Args    []string     // arguments after argv[0]; {port} is replaced with the program's port
	Listen  net.Listener // the agent closes it; nil only with CertDir, for a program that serves TLS itself
	Forward Forward      // required with Listen
	Peers   []Peer       // roles of the unit's group that the program calls
	Stdout  io.Writer    // output of the program; nil discards it
	Stderr  io.Writer
	Log     *slog.Logger // nil discards

	// CertDir is a directory on a tmpfs in which the agent writes and renews tls.crt, tls.key
	// and ca.crt. If it is empty, the agent writes no files.
	CertDir string
	// Disk permits a CertDir on other file systems, whose files may outlive the TEE's memory.
	Disk bool
	// Reload is the signal that the program receives after each renewal of CertDir. Zero means
	// no signal.
	Reload syscall.Signal
	// Started, if not nil, is called once, when the program accepts connections and the files in
	// CertDir are written.
	Started func()
}

// acceptTime is the time within which the program must accept connections.
const acceptTime = 30 * time.Second

// Run runs the program and forwards requests to it until ctx is done or the program ends. The
// program receives a loopback port as PORT and in place of {port}, the environment variables of
// the policy, and no others of the agent's environment. Run accepts no connection before the
// program accepts connections.
//
// When ctx is done, Run lets requests in flight finish, sends SIGTERM to the program and the
// processes that it started, sends SIGKILL after 10 seconds, and returns nil. If the program
// ends by itself the error is an [*Exit]. The program never outlives the agent, even if the
// agent is killed.
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

// serve forwards until ctx is done. If the program ended, the error is its [*Exit].
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

// endedBy returns the program's [*Exit] if it cancelled ctx, else nil.
func endedBy(ctx context.Context) error {
	if exit := (*Exit)(nil); errors.As(context.Cause(ctx), &exit) {
		return exit
	}
	return nil
}

// validate reports all faults of a configuration together.
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

// freeAddress returns a loopback address that has no listener now.
func freeAddress() (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	port := l.Addr().(*net.TCPAddr).Port
	return net.JoinHostPort("127.0.0.1", strconv.Itoa(port)), l.Close()
}
