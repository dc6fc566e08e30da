// Package failpoint kills its own process, as a power failure would, at one of the points
// that its work passes: a write or sync of a database file, a message to or from a database
// server, sealing and unsealing, and the writing of a response. The points are in the
// wrapped interfaces; no code of the product contains them.
//
// A test runs its own binary as a child. The child gets [Points] from [FromEnv], wraps the
// parts of its authority, and does the work. The test kills it at one point after another
// with [KillEnv] in the child's environment, and inspects the remaining state.
//
// It is for tests only: no package of the product imports it.
package failpoint

import (
	"context"
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"

	"github.com/cohort-tee/cohort/attest"
)

// Variables of a child's environment.
const (
	killVariable = "FAILPOINT_KILL"
	logVariable  = "FAILPOINT_LOG"
)

// KillEnv returns the environment that kills a child at its n-th point, counted from 1, or
// at none when n is 0. The child writes the names of the points that it passes to the file
// log, which [Passed] reads.
func KillEnv(n int, log string) []string {
	return []string{fmt.Sprint(killVariable, "=", n), logVariable + "=" + log}
}

// Passed returns the names of the points that a child passed. If the child was killed, it
// was at the last of them.
func Passed(log string) []string {
	b, err := os.ReadFile(log)
	if err != nil {
		return nil
	}
	return strings.Fields(string(b))
}

// Points are the points that this process passes.
type Points struct {
	kill   int64
	passed atomic.Int64
	log    *os.File

	mu   sync.Mutex
	keep []any // guarded by mu: functions that only SQLite points to
}

// FromEnv returns the points that [KillEnv] set. It panics if the environment does not have
// them.
func FromEnv() *Points {
	n, err := strconv.ParseInt(os.Getenv(killVariable), 10, 64)
	if err != nil {
		panic(err)
	}
	log, err := os.Create(os.Getenv(logVariable))
	if err != nil {
		panic(err)
	}
	return &Points{kill: n, log: log}
}

// PassPoint passes a point, and kills the process if it is the selected point.
func (p *Points) PassPoint(name string) { p.passAfter(name, func() {}) }

// passAfter passes a point; at the selected point it first runs half, which does half of
// the work.
func (p *Points) passAfter(name string, half func()) {
	n := p.passed.Add(1)
	if p.kill != 0 && n > p.kill {
		select {} // another goroutine is killing the process
	}
	fmt.Fprintln(p.log, name)
	if n == p.kill {
		half()
		syscall.Kill(os.Getpid(), syscall.SIGKILL)
		select {}
	}
}

// Sealer has a point before and after sealing and unsealing.
func (p *Points) Sealer(s attest.Sealer) attest.Sealer { return sealer{p, s} }

type sealer struct {
	points *Points
	attest.Sealer
}

func (s sealer) Seal(ctx context.Context, secret []byte, to []attest.ReferenceValue) ([]byte, error) {
	s.points.PassPoint("seal")
	defer s.points.PassPoint("sealed")
	return s.Sealer.Seal(ctx, secret, to)
}

func (s sealer) Unseal(ctx context.Context, sealed []byte) ([]byte, error) {
	s.points.PassPoint("unseal")
	defer s.points.PassPoint("unsealed")
	return s.Sealer.Unseal(ctx, sealed)
}

// Listener has a point before each write to a connection that it accepts, after half of the
// write, and after it. Connections to it send only responses and TLS messages.
func (p *Points) Listener(l net.Listener) net.Listener { return listener{l, p} }

type listener struct {
	net.Listener
	points *Points
}

func (l listener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return conn{c, l.points}, nil
}

type conn struct {
	net.Conn
	points *Points
}

func (c conn) Write(b []byte) (int, error) {
	c.points.PassPoint("answer")
	c.points.passAfter("half-answer", func() { c.Conn.Write(b[:len(b)/2]) })
	n, err := c.Conn.Write(b)
	c.points.PassPoint("answered")
	return n, err
}
