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

// Bounds of forwarding, as those of [unit.Unit.Serve].
const (
	handshakeTime  = 10 * time.Second
	forwardTime    = 10 * time.Second      // connections open at shutdown
	acceptPause    = 50 * time.Millisecond // while no file can be opened
	maxConnections = 10_000                // open at once
)

// serveTCP forwards what TLS connections carry to address, until ctx is done;
// it then lets open connections finish for at most 10 seconds. A connection
// ends with its certificate. It closes l.
//
// Handshakes are bounded as those of [unit.Unit.Serve] are, and what is forwarded counts
// as requests in flight do. What the program speaks is not known here, and a
// connection on which nothing moves may be as it should be: it stays.
func serveTCP(ctx context.Context, u *unit.Unit, l net.Listener, address string) error {
	l = u.Listen(l)
	cut, cutAll := context.WithCancel(context.WithoutCancel(ctx))
	defer cutAll()
	closing := context.AfterFunc(ctx, func() { l.Close() })
	defer closing()

	config := u.ServerTLS()
	config.NextProtos = nil // the program's protocol has no name here
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
				cutAll() // no connection is left to drain
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
		_ = retry.Sleep(ctx, acceptPause) // until a file is closed
	}
}

// forward completes the handshake and carries both directions of one
// connection until both have ended, while there is room for it.
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

// halfConn is a connection whose two directions end apart.
type halfConn interface {
	net.Conn
	CloseWrite() error
}

// splice copies one direction and passes its end on. A direction that breaks
// breaks both connections: a cut-off message is never taken for a whole one.
func splice(to, from halfConn) {
	buffer := buffers{}.Get()
	defer buffers{}.Put(buffer)
	// The wrappers hide methods that would copy with a buffer of their own.
	_, err := io.CopyBuffer(struct{ io.Writer }{to}, struct{ io.Reader }{from}, buffer)
	if err == nil {
		err = to.CloseWrite()
	}
	if err != nil {
		abort(to)
		abort(from)
	}
}

// abort ends a connection so that its peer sees it broken, by a reset: most TLS
// stacks take a mere end for a good one.
func abort(c halfConn) {
	raw := net.Conn(c)
	if t, ok := c.(*tls.Conn); ok {
		raw = t.NetConn()
	}
	if tcp, ok := raw.(interface{ SetLinger(sec int) error }); ok {
		_ = tcp.SetLinger(0) // fails on a closed connection alone
	}
	raw.Close()
}
