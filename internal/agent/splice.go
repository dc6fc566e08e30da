package agent

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync"
	"syscall"
	"time"

	"github.com/cohort-tee/cohort/internal/limit"
	"github.com/cohort-tee/cohort/internal/retry"
	"github.com/cohort-tee/cohort/unit"
)

// Limits of forwarding, equal to those of [unit.Unit.Serve].
const (
	handshakeTime  = 10 * time.Second
	forwardTime    = 10 * time.Second      // for open connections to finish at shutdown
	acceptPause    = 50 * time.Millisecond // wait while the process has no free file descriptor
	maxConnections = 10_000                // open connections
)

// serveTCP forwards the bytes of TLS connections to address until ctx is done. It then lets open
// connections finish for at most 10 seconds. A connection ends when the unit's certificate of
// its handshake expires. serveTCP closes l.
//
// The limits of [unit.Unit.Serve] apply to handshakes, and a forwarded connection counts as a
// request in flight. Idle connections stay open: the agent does not know the program's protocol,
// in which they may be normal.
func serveTCP(ctx context.Context, u *unit.Unit, l net.Listener, address string) error {
	l = u.Listen(l)
	cut, cutAll := context.WithCancel(context.WithoutCancel(ctx))
	defer cutAll()
	closing := context.AfterFunc(ctx, func() { l.Close() })
	defer closing()

	config := u.ServerTLS()
	config.NextProtos = nil // the agent does not know the program's protocol
	crowd := limit.NewConnections(maxConnections)
	var open sync.WaitGroup
	for {
		c, err := l.Accept()
		if err == nil {
			secured := tls.Server(c, config)
			crowd.Track(secured, http.StateNew)
			open.Go(func() {
				defer crowd.Track(secured, http.StateClosed)
				forward(cut, u, secured, address, crowd)
			})
			continue
		}
		if ctx.Err() != nil {
			if endedBy(ctx) != nil {
				cutAll() // the program has ended, so open connections cannot finish
			}
			cutting := time.AfterFunc(forwardTime, cutAll)
			defer cutting.Stop()
			open.Wait()
			return nil
		}
		if !errors.Is(err, syscall.EMFILE) && !errors.Is(err, syscall.ENFILE) && !errors.Is(err, syscall.ECONNABORTED) {
			cutAll()
			open.Wait()
			return fmt.Errorf("accepting: %w", err)
		}
		_ = retry.Sleep(ctx, acceptPause) // until a file descriptor is free
	}
}

// forward completes the handshake and forwards both directions of one connection until both have
// ended. It aborts the connection if there are too many.
func forward(cut context.Context, u *unit.Unit, c *tls.Conn, address string, crowd *limit.Connections) {
	defer c.Close()
	defer context.AfterFunc(cut, func() { abort(c) })()
	if shake(cut, c) != nil {
		return
	}
	crowd.Track(c, http.StateActive)
	release, err := u.Admit(c.RemoteAddr().String())
	if err != nil {
		abort(c)
		return
	}
	defer release()
	dialled, err := new(net.Dialer).DialContext(cut, "tcp", address)
	if err != nil {
		abort(c)
		return
	}
	program := dialled.(*net.TCPConn)
	defer program.Close()
	defer context.AfterFunc(cut, func() { abort(program) })()

	var back sync.WaitGroup
	back.Go(func() { splice(c, program) })
	splice(program, c)
	back.Wait()
}

func shake(ctx context.Context, c *tls.Conn) error {
	ctx, cancel := context.WithTimeout(ctx, handshakeTime)
	defer cancel()
	return c.HandshakeContext(ctx)
}

// halfConn is a connection whose two directions can be closed separately.
type halfConn interface {
	net.Conn
	CloseWrite() error
}

// splice copies one direction and forwards its end. If the direction breaks, splice aborts both
// connections, so that the receiver never takes a truncated message for a complete one.
func splice(to, from halfConn) {
	buffer := buffers{}.Get()
	defer buffers{}.Put(buffer)
	// The wrappers hide ReadFrom and WriteTo, which would use buffers of their own.
	_, err := io.CopyBuffer(struct{ io.Writer }{to}, struct{ io.Reader }{from}, buffer)
	if err == nil {
		err = to.CloseWrite()
	}
	if err != nil {
		abort(to)
		abort(from)
	}
}

// abort resets a connection, so that its peer detects the failure: most TLS implementations
// treat a plain TCP close as a normal end.
func abort(c halfConn) {
	raw := net.Conn(c)
	if t, ok := c.(*tls.Conn); ok {
		raw = t.NetConn()
	}
	if tcp, ok := raw.(interface{ SetLinger(sec int) error }); ok {
		_ = tcp.SetLinger(0) // fails only on a closed connection
	}
	raw.Close()
}
