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

// member is a unit at one address, as the gateway uses it.
type member struct {
	id        wire.UnitID
	transport *http.Transport
	since     time.Time       // first heartbeat with this address
	inFlight  atomic.Int64    // requests from this gateway
	places    *limit.Shares   // one place for each request in flight
	turns     *limit.Turns    // requests that wait for a connection
	lost      context.Context // done when the unit is silent and cannot be reached
	lose      context.CancelCauseFunc
	names     atomic.Pointer[[]string] // DNS names in its TLS leaf; nil: not known yet

	// Guarded by registry.mu: unit is the newest certificate, of one id and cluster; last is
	// the time of the newest heartbeat, and by says who reported it.
	unit     bus.Unit
	beat     bus.Beat
	by       source
	last     time.Time
	nameAt   time.Time // earliest time of the next attempt to read its names
	nameWait time.Duration

	mu       sync.Mutex
	failures int       // guarded by mu: in a row
	resting  time.Time // guarded by mu: not tried before this time, unless all units rest
}

// newMember makes a unit without its transport, with at most perUnit requests in flight from
// this gateway.
func newMember(u bus.Unit, now time.Time, perUnit int) *member {
	m := &member{id: u.ID, unit: u, since: now, places: limit.NewShares(quotaPerUnit, perUnit), turns: limit.NewTurns(quotaConnect, 4*maxDials, maxWaiting)}
	m.lost, m.lose = context.WithCancelCause(context.Background())
	return m
}

// named records the DNS names of a verified TLS leaf of the unit.
func (m *member) named(names []string) {
	names = slices.Clone(names[:min(len(names), maxNames)])
	m.names.Store(&names)
}

// hasName reports whether the unit's TLS leaf contains a DNS name.
func (m *member) hasName(name string) bool {
	names := m.names.Load()
	return names != nil && slices.Contains(*names, name)
}

// close closes idle connections; those in use end with their requests.
func (m *member) close() { m.transport.CloseIdleConnections() }

// probe cancels the requests in progress at a silent unit if a new connection to it fails as
// well.
func (m *member) probe(ctx context.Context) {
	conn, err := m.transport.DialTLSContext(ctx, "tcp", "")
	if err != nil {
		m.lose(err)
		return
	}
	conn.Close()
}

// during returns a context for a request to the unit, which also ends when the unit is
// unreachable.
func (m *member) during(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancelCause(ctx)
	stop := context.AfterFunc(m.lost, func() { cancel(context.Cause(m.lost)) })
	return ctx, func() { stop(); cancel(nil) }
}

// turn waits until a request may take or make a connection to the unit; the caller ends its
// turn with done. Client addresses take turns: otherwise an address with many requests would
// take every connection that becomes free.
func (m *member) turn(ctx context.Context, from netip.Addr) (done func(), err error) {
	if !m.turns.Try() {
		ctx, cancel := context.WithTimeout(ctx, connectWait)
		defer cancel()
		if err := m.turns.Wait(ctx, from, ""); err != nil {
			return nil, &net.OpError{Op: "dial", Net: "tcp", Err: err}
		}
	}
	return sync.OnceFunc(m.turns.Done), nil
}

// compare orders two units, the preferred one first: not resting, fewer requests from this
// gateway, fewer requests by its own report. Any unit is preferred to nil.
func (m *member) compare(other *member, now time.Time) int {
	if other == nil {
		return -1
	}
	return cmp.Or(
		cmp.Compare(m.rest(now), other.rest(now)),
		cmp.Compare(m.inFlight.Load(), other.inFlight.Load()),
		cmp.Compare(m.beat.InFlight, other.beat.InFlight),
	)
}

// rest returns how long the unit still rests.
func (m *member) rest(now time.Time) time.Duration {
	m.mu.Lock()
	defer m.mu.Unlock()
	return max(0, m.resting.Sub(now))
}

// failed records a failed attempt: the unit rests, longer each time.
func (m *member) failed(now time.Time) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.failures++
	m.resting = now.Add(unitBackoff.Wait(m.failures))
}

// answered records a response, which ends the rest.
func (m *member) answered() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.failures, m.resting = 0, time.Time{}
}

// maxDials bounds concurrent handshakes with one unit: when responses are slow, requests wait
// for connections that become free, since more handshakes would delay all of them.
const maxDials = 4

// dialer makes connections to units.
type dialer struct {
	roots *x509.CertPool
	clock func() time.Time
}

// transport returns a transport to one unit: HTTP/1.1 over TLS 1.3, always to the unit's
// address, and only to a server whose chain is of the unit's cluster. It reports the DNS names
// of each verified leaf.
func (d dialer) transport(c bus.Cluster, address string, named func([]string)) *http.Transport {
	dial := net.Dialer{Timeout: connectWait, KeepAliveConfig: aliveCheck, Control: limitUnacked}
	var protocols http.Protocols
	protocols.SetHTTP1(true)
	config := &tls.Config{
		MinVersion: tls.VersionTLS13,
		// This turns off only the host name rules of crypto/tls: VerifyConnection runs in
		// every handshake and verifies the cluster.
		InsecureSkipVerify: true,
		VerifyConnection: func(s tls.ConnectionState) error {
			err := d.check(s.PeerCertificates, c)
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

// aliveCheck detects a unit behind a cut network on an idle connection, and limitUnacked on a
// connection with unacknowledged data: otherwise requests would wait there for minutes.
var aliveCheck = net.KeepAliveConfig{Enable: true, Idle: lostUnit / 2, Interval: lostUnit / 4, Count: 2}

// tcpUserTimeout is TCP_USER_TIMEOUT of Linux, in milliseconds (RFC 5482).
const tcpUserTimeout = 18

func limitUnacked(_, _ string, conn syscall.RawConn) error {
	return conn.Control(func(fd uintptr) {
		// If it fails, requests wait longer.
		_ = syscall.SetsockoptInt(int(fd), syscall.IPPROTO_TCP, tcpUserTimeout, int(lostUnit/time.Millisecond))
	})
}

func (d dialer) check(chain []*x509.Certificate, want bus.Cluster) error {
	got, err := bus.CheckChain(chain, d.roots, d.clock())
	if err != nil {
		return err
	}
	if got != want {
		return wire.Refuse(wire.WrongIdentity, "unit: cluster", got, want)
	}
	return nil
}

// neverSent reports whether an error says that no connection was made, so that the unit has
// received no byte of the request.
func neverSent(err error) bool {
	var op *net.OpError
	var refusal *wire.Refusal
	return errors.As(err, &op) && op.Op == "dial" || errors.As(err, &refusal)
}
