package manager

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"math/rand/v2"
	"net"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/cohort-tee/cohort/internal/bus"
	"github.com/cohort-tee/cohort/internal/wire"
)

// member is a unit as the gateway sees it at one address.
type member struct {
	id        wire.UnitID
	cluster   bus.Cluster
	transport *http.Transport
	inFlight  atomic.Int64    // requests of this gateway
	lost      context.Context // done when nothing can be heard of the unit
	lose      context.CancelCauseFunc

	beat bus.Beat  // guarded by registry.mu
	last time.Time // guarded by registry.mu: when it beat

	mu       sync.Mutex
	failures int       // guarded by mu: in a row
	resting  time.Time // guarded by mu: not tried before this, unless all rest
}

func newMember(id wire.UnitID, c bus.Cluster, t *http.Transport) *member {
	m := &member{id: id, cluster: c, transport: t}
	m.lost, m.lose = context.WithCancelCause(context.Background())
	return m
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
	d := min(backOffMax, backOffMin<<min(m.failures, 10))
	m.failures++
	m.resting = now.Add(d/2 + rand.N(d/2))
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
// address whatever the request says, and to nobody whose chain is not of the
// unit's cluster and bears the names that the unit claims.
func (d dialer) transport(c bus.Cluster, b bus.Beat) *http.Transport {
	dial := net.Dialer{Timeout: connectWait, KeepAliveConfig: aliveCheck, Control: limitUnacked}
	address, names := b.Address, slices.Clone(b.Names)
	var protocols http.Protocols
	protocols.SetHTTP1(true)
	config := &tls.Config{
		MinVersion: tls.VersionTLS13,
		// This turns off only the rules of crypto/tls about host names:
		// VerifyConnection runs in every handshake and is about clusters.
		InsecureSkipVerify: true,
		VerifyConnection:   func(s tls.ConnectionState) error { return d.check(s.PeerCertificates, c, names) },
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

func (d dialer) check(chain []*x509.Certificate, want bus.Cluster, names []string) error {
	got, err := bus.CheckChain(chain, d.roots, d.clock())
	if err != nil {
		return err
	}
	if got != want {
		return wire.Refuse(wire.WrongIdentity, "unit: cluster", got, want)
	}
	for _, name := range names {
		if !slices.Contains(chain[0].DNSNames, name) {
			return wire.Refuse(wire.WrongName, "unit: name", name, chain[0].DNSNames)
		}
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
