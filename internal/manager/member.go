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

// member is a unit as the gateway sees it at one address.
type member struct {
	id        wire.UnitID
	transport *http.Transport
	since     time.Time       // when it was first heard at the address
	inFlight  atomic.Int64    // requests of this gateway
	places    *limit.Shares   // one for each of these
	turns     *limit.Turns    // of those that look for a connection
	lost      context.Context // done when nothing can be heard of the unit
	lose      context.CancelCauseFunc
	names     atomic.Pointer[[]string] // DNS names in its TLS leaf; nil: not known yet

	// Guarded by registry.mu: unit is its newest certificate, of one id and
	// cluster; last is when it was heard, and by says who reported it then.
	unit     bus.Unit
	beat     bus.Beat
	by       source
	last     time.Time
	nameAt   time.Time // it is not asked for its names before
	nameWait time.Duration

	mu       sync.Mutex
	failures int       // guarded by mu: in a row
	resting  time.Time // guarded by mu: not tried before this, unless all rest
}

// newMember is a unit without its transport, which has so many requests of this
// gateway at once.
func newMember(u bus.Unit, now time.Time, perUnit int) *member {
	m := &member{id: u.ID, unit: u, since: now, places: limit.NewShares(quotaPerUnit, perUnit), turns: limit.NewTurns(quotaConnect, 4*maxDials, maxWaiting)}
	m.lost, m.lose = context.WithCancelCause(context.Background())
	return m
}

// named takes in the names that a verified TLS leaf of the unit bears.
func (m *member) named(names []string) {
	names = slices.Clone(names[:min(len(names), maxNames)])
	m.names.Store(&names)
}

// hasName reports whether the unit's TLS leaf bears a name.
func (m *member) hasName(name string) bool {
	names := m.names.Load()
	return names != nil && slices.Contains(*names, name)
}

// close drops connections that wait; those in use end with their requests.
func (m *member) close() { m.transport.CloseIdleConnections() }

// probe ends the requests under way at a silent unit when no connection to it
// can be made either.
func (m *member) probe(ctx context.Context) {
	conn, err := m.transport.DialTLSContext(ctx, "tcp", "")
	if err != nil {
		m.lose(err)
		return
	}
	conn.Close()
}

// during is the context of a request to the unit.
func (m *member) during(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancelCause(ctx)
	stop := context.AfterFunc(m.lost, func() { cancel(context.Cause(m.lost)) })
	return ctx, func() { stop(); cancel(nil) }
}

// turn waits until a request may look for a connection to the unit, a free one or a
// new one; done ends its turn. Addresses come in turn: else those with many requests
// would take every connection that becomes free.
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

// compare orders two units, the one to be preferred first: not resting, fewer
// requests under way here, fewer by its own word. Any is better than none.
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

// rest is how long the unit still rests.
func (m *member) rest(now time.Time) time.Duration {
	m.mu.Lock()
	defer m.mu.Unlock()
	return max(0, m.resting.Sub(now))
}

// failed lets a unit that could not be reached rest, longer each time.
func (m *member) failed(now time.Time) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.failures++
	m.resting = now.Add(unitBackoff.Wait(m.failures))
}

// answered ends a rest.
func (m *member) answered() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.failures, m.resting = 0, time.Time{}
}

// maxDials bounds the handshakes with one unit at a time: when answers are late,
// requests wait for connections that become free instead of making all later.
const maxDials = 4

// dialer makes connections to units.
type dialer struct {
	roots *x509.CertPool
	clock func() time.Time
}

// transport keeps connections to one unit: HTTP/1.1 over TLS 1.3, to its
// address whatever the request says, and to no server whose chain is not of the
// unit's cluster. It reports the names in each leaf that is.
func (d dialer) transport(c bus.Cluster, address string, named func([]string)) *http.Transport {
	dial := net.Dialer{Timeout: connectWait, KeepAliveConfig: aliveCheck, Control: limitUnacked}
	var protocols http.Protocols
	protocols.SetHTTP1(true)
	config := &tls.Config{
		MinVersion: tls.VersionTLS13,
		// This turns off only the rules of crypto/tls about host names:
		// VerifyConnection runs in every handshake and is about clusters.
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

// aliveCheck finds a unit behind a cut network while nothing is sent to it, and
// limitUnacked while something is: else requests would wait there for minutes.
var aliveCheck = net.KeepAliveConfig{Enable: true, Idle: lostUnit / 2, Interval: lostUnit / 4, Count: 2}

// tcpUserTimeout is TCP_USER_TIMEOUT of Linux, in milliseconds (RFC 5482).
const tcpUserTimeout = 18

func limitUnacked(_, _ string, conn syscall.RawConn) error {
	return conn.Control(func(fd uintptr) {
		// Without it, requests wait longer.
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

// neverSent reports whether an error says that no connection was made, so that
// the unit has seen nothing of the request.
func neverSent(err error) bool {
	var op *net.OpError
	var refusal *wire.Refusal
	return errors.As(err, &op) && op.Op == "dial" || errors.As(err, &refusal)
}
