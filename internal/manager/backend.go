package manager

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/cohort-tee/cohort/internal/bus"
	"github.com/cohort-tee/cohort/internal/limit"
	"github.com/cohort-tee/cohort/internal/wire"
)

// backend is the gateway's state of one unit at one address.
type backend struct {
	id           wire.UnitID
	transport    *http.Transport
	addressSince time.Time       // first heartbeat with this address
	inFlight     atomic.Int64    // requests from this gateway
	places       *limit.Shares   // one for each request in flight
	dialTurns    *limit.Turns    // requests that wait for a connection
	unreachable  context.Context // done when the unit sends no heartbeats and cannot be reached
	cancel       context.CancelCauseFunc
	names        atomic.Pointer[[]string] // DNS names in its TLS leaf; nil: not known yet

	// Guarded by registry.mu. unit has the newest certificates; its id and cluster never change.
	// lastSeen is the time of the newest heartbeat, reportedBy its source.
	unit          bus.Unit
	heartbeat     bus.Heartbeat
	reportedBy    reporter
	lastSeen      time.Time
	nextNameProbe time.Time // earliest time of the next attempt to read its names
	nameBackoff   time.Duration

	mu        sync.Mutex
	failures  int       // guarded by mu: consecutive failures
	restUntil time.Time // guarded by mu: until then it is tried only if all units rest
}

// newBackend makes a backend for at most perUnit requests in flight from this gateway. The
// caller sets its transport.
func newBackend(u bus.Unit, now time.Time, perUnit int) *backend {
	m := &backend{id: u.ID, unit: u, addressSince: now, places: limit.NewShares(quotaPerUnit, perUnit), dialTurns: limit.NewTurns(quotaConnect, 4*maxDials, maxWaiting)}
	m.unreachable, m.cancel = context.WithCancelCause(context.Background())
	return m
}

// setNames records the DNS names of a verified TLS leaf of the unit.
func (m *backend) setNames(names []string) {
	names = slices.Clone(names[:min(len(names), maxNames)])
	m.names.Store(&names)
}

// hasName reports whether the unit's TLS leaf contains a DNS name.
func (m *backend) hasName(name string) bool {
	names := m.names.Load()
	return names != nil && slices.Contains(*names, name)
}

// closeIdle closes idle connections. Connections in use close when their requests end.
func (m *backend) closeIdle() { m.transport.CloseIdleConnections() }

// cancelIfUnreachable cancels the requests in progress at a unit without heartbeats if a new
// connection to it fails too.
func (m *backend) cancelIfUnreachable(ctx context.Context) {
	conn, err := m.transport.DialTLSContext(ctx, "tcp", "")
	if err != nil {
		m.cancel(err)
		return
	}
	conn.Close()
}

// requestContext returns a context that ends with ctx or when the unit becomes unreachable.
func (m *backend) requestContext(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancelCause(ctx)
	stop := context.AfterFunc(m.unreachable, func() { cancel(context.Cause(m.unreachable)) })
	return ctx, func() { stop(); cancel(nil) }
}

// waitForConnection waits until a request may use an idle connection to the unit or open a new
// one; the caller ends its turn with done. Client addresses take turns: otherwise an address
// with many requests would take every connection that becomes free.
func (m *backend) waitForConnection(ctx context.Context, from netip.Addr) (done func(), err error) {
	if !m.dialTurns.TryAcquire() {
		ctx, cancel := context.WithTimeout(ctx, connectWait)
		defer cancel()
		if err := m.dialTurns.Acquire(ctx, from, ""); err != nil {
			return nil, &net.OpError{Op: "dial", Net: "tcp", Err: err}
		}
	}
	return sync.OnceFunc(m.dialTurns.Release), nil
}

// compare returns a negative number if the gateway prefers m to other: a unit that rests less,
// then one with fewer requests from this gateway, then one that reports fewer requests. Any unit
// is preferred to nil.
func (m *backend) compare(other *backend, now time.Time) int {
	if other == nil {
		return -1
	}
	return cmp.Or(
		cmp.Compare(m.restLeft(now), other.restLeft(now)),
		cmp.Compare(m.inFlight.Load(), other.inFlight.Load()),
		cmp.Compare(m.heartbeat.InFlight, other.heartbeat.InFlight),
	)
}

// restLeft returns the remaining rest of the unit, 0 if it does not rest.
func (m *backend) restLeft(now time.Time) time.Duration {
	m.mu.Lock()
	defer m.mu.Unlock()
	return max(0, m.restUntil.Sub(now))
}

// recordFailure records a failed attempt: the unit rests, longer after each consecutive failure.
func (m *backend) recordFailure(now time.Time) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.failures++
	m.restUntil = now.Add(unitBackoff.Wait(m.failures))
}

// recordSuccess records a response, which ends the rest.
func (m *backend) recordSuccess() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.failures, m.restUntil = 0, time.Time{}
}

// maxDials limits concurrent handshakes with one unit. When responses are slow, requests wait
// until a connection becomes free: more handshakes would delay all of them.
const maxDials = 4

// dialer makes connections to units.
type dialer struct {
	roots *x509.CertPool
	clock func() time.Time
}

// newTransport returns a transport to one unit: HTTP/1.1 over TLS 1.3, always to the unit's
// address, and only to a server whose certificate chain is of the unit's cluster. It passes the
// DNS names of each verified leaf to named.
func (d dialer) newTransport(c bus.Cluster, address string, named func([]string)) *http.Transport {
	dial := net.Dialer{Timeout: connectWait, KeepAliveConfig: keepAlive, Control: limitUnacked}
	var protocols http.Protocols
	protocols.SetHTTP1(true)
	config := &tls.Config{
		MinVersion: tls.VersionTLS13,
		// This turns off the verification of crypto/tls, which needs a host name:
		// VerifyConnection runs in every handshake and verifies the chain and its cluster.
		InsecureSkipVerify: true,
		VerifyConnection: func(s tls.ConnectionState) error {
			err := d.verifyUnit(s.PeerCertificates, c)
			if err == nil {
				named(s.PeerCertificates[0].DNSNames)
			}
			return err
		},
	}
	slots := make(chan struct{}, maxDials)
	return &http.Transport{
		DialTLSContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
			ctx, cancel := context.WithTimeout(ctx, connectWait)
			defer cancel()
			select {
			case slots <- struct{}{}:
				defer func() { <-slots }()
			case <-ctx.Done():
				return nil, &net.OpError{Op: "dial", Net: network, Err: ctx.Err()}
			}
			conn, err := dial.DialContext(ctx, network, address)
			if err != nil {
				return nil, err
			}
			secured := tls.Client(conn, config)
			if err := secured.HandshakeContext(ctx); err != nil {
				conn.Close()
				return nil, &net.OpError{Op: "dial", Net: network, Err: err}
			}
			return secured, nil
		},
		IdleConnTimeout: idleUnit, MaxIdleConnsPerHost: 256,
		DisableCompression: true, Protocols: &protocols, MaxResponseHeaderBytes: 64 << 10,
		ReadBufferSize: chunkSize, WriteBufferSize: chunkSize,
	}
}

// keepAlive detects a unit behind a broken network on an idle connection. limitUnacked detects
// it on a connection with unacknowledged data. Without them requests would wait for minutes.
var keepAlive = net.KeepAliveConfig{Enable: true, Idle: lostUnit / 2, Interval: lostUnit / 4, Count: 2}

// tcpUserTimeout is TCP_USER_TIMEOUT of Linux, in milliseconds (RFC 5482).
const tcpUserTimeout = 18

func limitUnacked(_, _ string, conn syscall.RawConn) error {
	return conn.Control(func(fd uintptr) {
		// If it fails, requests wait longer.
		_ = syscall.SetsockoptInt(int(fd), syscall.IPPROTO_TCP, tcpUserTimeout, int(lostUnit/time.Millisecond))
	})
}

func (d dialer) verifyUnit(chain []*x509.Certificate, want bus.Cluster) error {
	got, err := bus.VerifyChain(chain, d.roots, d.clock())
	if err != nil {
		return err
	}
	if got != want {
		return wire.Refuse(wire.WrongIdentity, "unit: cluster", got, want)
	}
	return nil
}

// neverSent reports whether err means that no connection was made, so that the unit received no
// byte of the request.
func neverSent(err error) bool {
	var op *net.OpError
	var refusal *wire.Refusal
	return errors.As(err, &op) && op.Op == "dial" || errors.As(err, &refusal)
}
