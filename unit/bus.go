package unit

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"log/slog"
	"math/rand/v2"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cohort-tee/cohort/internal/bus"
	"github.com/cohort-tee/cohort/internal/channel"
	"github.com/cohort-tee/cohort/internal/envelope"
	"github.com/cohort-tee/cohort/internal/retry"
	"github.com/cohort-tee/cohort/internal/wire"
)

// Manager is the cluster manager that a unit connects to. It is untrusted:
// without it, or with a bad one, the sessions of a unit are shared with the
// others by the clients' tickets alone. The unit reads a protocol of Cohort's own
// from it and nothing that a library parses (docs/spec/bus.md).
type Manager struct {
	// URL is tls://host:port of the bus, or those of several managers, with
	// commas between: the unit connects to each of them. Empty is no manager.
	URL string
	// CA is what the managers' certificates chain to. Nil is the system's.
	CA *x509.CertPool
}

// Times and sizes of a unit at the bus.
const (
	lookEvery = 100 * time.Millisecond // whether there is something to report
	pullTime  = 250 * time.Millisecond // a request waits for it
	rangeTime = 500 * time.Millisecond
	lastTime  = 2 * time.Second // to publish what is left at the end
	lowRange  = 1 << 12         // numbers left when more are asked for
)

// relay is how the channel of a unit uses the bus. Without a connection it
// carries nothing.
type relay struct {
	host  *channel.Host
	clock func() time.Time
	conn  atomic.Pointer[bus.Conn] // nil: none

	mu      sync.Mutex
	numbers bus.Range // guarded by mu: what is left of it
}

func newRelay(h *channel.Host, clock func() time.Time) *relay {
	return &relay{host: h, clock: clock}
}

// connected reports whether the manager is there now.
func (r *relay) connected() bool {
	conn := r.conn.Load()
	return conn != nil && conn.Connected()
}

// Number is the next number of the range that the manager gave, or else a random
// one of those above 2^63, which no manager begins with.
func (r *relay) Number() uint64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.numbers.Count == 0 {
		return rand.Uint64() | 1<<63
	}
	n := r.numbers.First
	r.numbers.First++
	r.numbers.Count--
	return n
}

// low reports whether numbers are running out.
func (r *relay) low() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.numbers.Count < lowRange
}

// take begins a new range.
func (r *relay) take(numbers bus.Range) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.numbers = numbers
}

// Push publishes a sealed session or a tombstone for all other units. When too
// many wait it is dropped: a unit that misses it asks for it.
func (r *relay) Push(kind envelope.Kind, sealed []byte) {
	item, err := itemOf(kind, sealed)
	if conn := r.conn.Load(); err == nil && conn != nil {
		_ = conn.Publish(item) // as above
	}
}

// itemOf adds to a sealed message what a manager needs to know of it.
func itemOf(kind envelope.Kind, sealed []byte) (bus.Item, error) {
	s, err := envelope.ParseSealed(kind, sealed)
	if err != nil {
		return bus.Item{}, err
	}
	item := bus.Item{Kind: bus.Sealed, Session: s.Session, Expiry: s.Expiry, Bytes: sealed}
	if kind == envelope.Tombstone {
		item.Kind = bus.Tombstone
	}
	return item, nil
}

// Pull asks the manager for its copy of a session. A tombstone ends the session
// here, and no ticket opens it again.
func (r *relay) Pull(ctx context.Context, id wire.SessionID) ([]byte, error) {
	conn := r.conn.Load()
	if conn == nil || !conn.Connected() {
		return nil, wire.Refuse(wire.NotFound, "unit: manager", "none", "one that keeps copies")
	}
	ctx, cancel := context.WithTimeout(ctx, pullTime)
	defer cancel()
	item, err := conn.FetchCopy(ctx, id)
	if err != nil {
		return nil, err
	}
	if item.Kind == bus.Tombstone {
		_, err := r.host.Terminate(item.Bytes, r.clock()) // one that does not hold buries nothing
		return nil, errors.Join(wire.Refuse(wire.SessionOver, "session "+id.String(), "a tombstone", "a sealed session"), err)
	}
	return item.Bytes, nil
}

// meet keeps the unit connected to its managers until ctx is done.
func (u *Unit) meet(ctx context.Context) {
	for ctx.Err() == nil {
		if err := u.attend(ctx, u.held.Load()); err != nil {
			u.config.Log.Warn("no manager", "unit", u.id, "reason", wire.ReasonOf(err), "cause", err)
			_ = retry.Sleep(ctx, authorityBackoff.Max) // the loop sees ctx
		}
	}
}

// attend takes part in the cluster of the identity in e, until the unit has
// another identity or ctx is done.
func (u *Unit) attend(ctx context.Context, e *enrolment) error {
	conn, err := bus.Connect(bus.Config{URL: u.config.Manager.URL, TLS: u.busTLS(), Ended: u.managerEnded})
	if err != nil {
		return err
	}
	defer conn.Close()
	conn.Subscribe(u.pushed)
	u.cluster.relay.conn.Store(conn)
	defer u.cluster.relay.conn.Store(nil)
	u.report(ctx, conn, e)
	return nil
}

// managerEnded logs why a connection to a manager ended. One that sends what it
// must not is worth a warning; others are away now and then.
func (u *Unit) managerEnded(manager string, err error) {
	level := slog.LevelDebug
	if errors.Is(err, wire.Malformed) {
		level = slog.LevelWarn
	}
	u.config.Log.Log(context.Background(), level, "connection to the manager ended", "unit", u.id, "manager", manager, "reason", wire.ReasonOf(err), "cause", err)
}

// busTLS presents the newest certificate of the signing key. The name that the
// manager's certificate must bear is that of the URL in use.
func (u *Unit) busTLS() *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS13, RootCAs: u.config.Manager.CA,
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			e, err := u.current()
			if err != nil {
				return nil, err
			}
			return &tls.Certificate{Certificate: e.identity.Serving(e.unit), PrivateKey: u.signing}, nil
		},
	}
}

// pushed takes over what another unit sealed.
func (u *Unit) pushed(i bus.Item) {
	take := u.cluster.host.ImportSession
	if i.Kind == bus.Tombstone {
		take = u.cluster.host.Terminate
	}
	_, err := take(i.Bytes, u.now())
	if errors.Is(err, wire.UnknownRing) {
		u.renewSoon()
	}
}

// report sends, every second, how the unit is, and at once when it begins or
// ceases to be ready, and asks for numbers.
func (u *Unit) report(ctx context.Context, conn *bus.Conn, e *enrolment) {
	ticker := time.NewTicker(lookEvery)
	defer ticker.Stop()
	var sent bus.Heartbeat
	quiet, asked := bus.HeartbeatInterval, bus.HeartbeatInterval // since it was sent, and since numbers were asked for
	for {
		select {
		case <-ctx.Done():
			sent.Ready = false
			_ = conn.SendHeartbeat(sent) // else the gateway tries in vain, for a while
			u.handOver(conn)
			return
		case <-ticker.C:
		}
		now := u.held.Load()
		if now.identity.ID != e.identity.ID {
			return
		}
		quiet, asked = quiet+lookEvery, asked+lookEvery
		if beat := u.beat(now); beat.Ready != sent.Ready || beat.Address != sent.Address || quiet >= bus.HeartbeatInterval {
			_ = conn.SendHeartbeat(beat) // the next one is the same
			sent, quiet = beat, 0
		}
		if conn.Connected() && asked >= bus.HeartbeatInterval {
			asked = 0
			u.fillRange(ctx, conn)
		}
	}
}

// handOver leaves to the others what this unit may be the last to hold: sessions
// under the keys of the release before are sealed again, since the release after
// opens none of those. What does not reach a manager in time is in the clients'
// tickets.
func (u *Unit) handOver(conn *bus.Conn) {
	ctx, cancel := context.WithTimeout(context.Background(), lastTime)
	defer cancel()
	for left := 1; left > 0 && ctx.Err() == nil; {
		var sealed [][]byte
		sealed, left = u.resealSome()
		for _, s := range sealed {
			if item, err := itemOf(envelope.Session, s); err == nil {
				_ = conn.PublishWithin(ctx, item) // as above
			}
		}
	}
}

// beat is how the unit is now.
func (u *Unit) beat(e *enrolment) bus.Heartbeat {
	b := bus.Heartbeat{
		Inherits: e.ring.Inherited.Identity,
		InFlight: int(u.cluster.inFlight.Load()), Sessions: u.cluster.host.Stats(u.now()).Sessions,
		Ready: u.cluster.serving.Load() > 0 && u.Ready() == nil,
	}
	if address := u.cluster.address.Load(); address != nil {
		b.Address = *address
	}
	return b
}

// fillRange asks for numbers while there is time.
func (u *Unit) fillRange(ctx context.Context, conn *bus.Conn) {
	if !u.cluster.relay.low() {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, rangeTime)
	defer cancel()
	if numbers, err := conn.AllocateRange(ctx); err == nil {
		u.cluster.relay.take(numbers)
	}
}

// check tells whether the managers' URLs are such.
func (m Manager) check() bool {
	return m.URL == "" || bus.ValidURLs(m.URL)
}

// addressOK reports whether an advertised address is host:port, or none.
func addressOK(address string) bool {
	host, port, err := net.SplitHostPort(address)
	return address == "" || err == nil && host != "" && port != ""
}
