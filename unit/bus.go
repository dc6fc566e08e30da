package unit

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cohort-tee/cohort/internal/bus"
	"github.com/cohort-tee/cohort/internal/channel"
	"github.com/cohort-tee/cohort/internal/wire"
)

// Manager is the cluster manager that a unit meets. It is trusted with nothing:
// without it, or with a bad one, the sessions of a unit are shared with the
// others by the clients' tickets alone.
type Manager struct {
	// URL is tls://host:port of the bus, or those of several managers, with
	// commas between: the unit meets one of them. Empty is no manager.
	URL string
	// CA is what the managers' certificates chain to. Nil is the system's.
	CA *x509.CertPool
}

// Times and sizes of a unit at the bus.
const (
	lookEvery = 100 * time.Millisecond // whether there is something to say
	pullTime  = 250 * time.Millisecond // a request waits for it
	rangeTime = 500 * time.Millisecond
	lowRange  = 1 << 12 // numbers left when more are asked for
	queueSize = 1 << 12 // sealed sessions that wait to be published
)

// relay is how the channel of a unit uses the bus. Without a connection it
// carries nothing.
type relay struct {
	host  *channel.Host
	clock func() time.Time
	conn  atomic.Pointer[bus.Conn] // nil: none
	queue chan bus.Item

	mu      sync.Mutex
	numbers bus.Range // guarded by mu: what is left of it
}

func newRelay(h *channel.Host, clock func() time.Time) *relay {
	return &relay{host: h, clock: clock, queue: make(chan bus.Item, queueSize)}
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

// Push queues a sealed session or a tombstone for all other units. When the
// queue is full it is dropped: a unit that misses it asks for it.
func (r *relay) Push(kind channel.Pushed, sealed []byte) {
	item, err := itemOf(kind, sealed)
	if err != nil || r.conn.Load() == nil {
		return
	}
	select {
	case r.queue <- item:
	default:
	}
}

// items are how what is pushed travels, and the labels in its bytes.
var items = map[channel.Pushed]struct {
	kind         bus.Kind
	whole, bound wire.Label
}{
	channel.PushSession:   {bus.Sealed, wire.LabelSealedSession, wire.LabelSealed},
	channel.PushTombstone: {bus.Tombstone, wire.LabelTombstone, wire.LabelTombstoneBound},
}

// itemOf puts beside sealed bytes what a relay needs to know of them: session
// and expiry, as they stand in the associated data.
func itemOf(kind channel.Pushed, sealed []byte) (bus.Item, error) {
	labels := items[kind]
	var whole [3][]byte // associated data, nonce, ciphertext
	if err := wire.UnframeInto(whole[:], labels.whole, sealed); err != nil {
		return bus.Item{}, err
	}
	var bound [6][]byte // suite, identity, ring, session, expiry, sealing unit
	if err := wire.UnframeInto(bound[:], labels.bound, whole[0]); err != nil {
		return bus.Item{}, err
	}
	if len(bound[3]) != len(wire.SessionID{}) || len(bound[4]) != 8 {
		return bus.Item{}, wire.Refuse(wire.Malformed, "sealed session: sizes", "others", "24 and 8 bytes")
	}
	return bus.Item{Kind: labels.kind, Session: wire.SessionID(bound[3]), Expiry: binary.BigEndian.Uint64(bound[4]), Bytes: sealed}, nil
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
	item, err := conn.Pull(ctx, id)
	if err != nil {
		return nil, err
	}
	if item.Kind == bus.Tombstone {
		_, err := r.host.Bury(item.Bytes, r.clock()) // one that does not hold buries nothing
		return nil, errors.Join(wire.Refuse(wire.SessionOver, "session "+id.String(), "a tombstone", "a sealed session"), err)
	}
	return item.Bytes, nil
}

// meet keeps the unit connected to its manager until ctx is done.
func (u *Unit) meet(ctx context.Context) {
	for ctx.Err() == nil {
		if err := u.attend(ctx, u.held.Load()); err != nil {
			u.config.Log.Warn("no manager", "unit", u.id, "reason", wire.ReasonOf(err), "cause", err)
			_ = pause(ctx, lastStep) // the loop sees ctx
		}
	}
}

// attend takes part in the cluster of the identity in e, until the unit has
// another identity or ctx is done.
func (u *Unit) attend(ctx context.Context, e *enrolment) error {
	cross, err := x509.ParseCertificate(e.identity.Cross)
	if err != nil {
		return fmt.Errorf("reading the cross-certificate: %w", err)
	}
	conn, err := bus.Connect(bus.Config{
		URL: u.config.Manager.URL, Cluster: bus.ClusterOf(cross.RawSubjectPublicKeyInfo), Unit: u.id, TLS: u.busTLS(),
	})
	if err != nil {
		return err
	}
	defer conn.Close()
	if err := conn.Subscribe(u.pushed); err != nil {
		return fmt.Errorf("subscribing: %w", err)
	}
	u.cluster.relay.conn.Store(conn)
	defer u.cluster.relay.conn.Store(nil)
	u.converse(ctx, conn, e)
	return nil
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
			return &tls.Certificate{Certificate: [][]byte{e.unit, e.identity.Cross}, PrivateKey: u.signing}, nil
		},
	}
}

// pushed takes over what another unit sealed.
func (u *Unit) pushed(i bus.Item) {
	take := u.cluster.host.Join
	if i.Kind == bus.Tombstone {
		take = u.cluster.host.Bury
	}
	_, err := take(i.Bytes, u.config.Clock())
	if errors.Is(err, wire.UnknownRing) {
		u.renewSoon()
	}
}

// converse publishes what is queued, says every second how the unit is, and at
// once when it begins or ceases to be ready, and asks for numbers.
func (u *Unit) converse(ctx context.Context, conn *bus.Conn, e *enrolment) {
	ticker := time.NewTicker(lookEvery)
	defer ticker.Stop()
	var said bus.Beat
	var quiet time.Duration // since it was said
	for {
		select {
		case <-ctx.Done():
			said.Ready = false
			_ = conn.Beat(said) // else the gateway tries in vain, for a while
			u.handOver(conn)
			return
		case item := <-u.cluster.relay.queue:
			_ = conn.Publish(item) // a unit that misses it asks for it
			continue
		case <-ticker.C:
		}
		now := u.held.Load()
		if now.identity.ID != e.identity.ID {
			return
		}
		if quiet += lookEvery; !conn.Connected() {
			quiet = bus.BeatEvery // as soon as it is
			continue
		}
		if beat := u.beat(now); beat.Address != "" && (beat.Ready != said.Ready || quiet >= bus.BeatEvery) {
			_ = conn.Beat(beat) // the next one says the same
			said, quiet = beat, 0
			u.fillRange(ctx, conn)
		}
	}
}

// handOver leaves to the others what this unit may be the last to hold: sessions
// under the keys of the release before are sealed again, since the release after
// opens none of those, and what is queued is published.
func (u *Unit) handOver(conn *bus.Conn) {
	for left := 1; left > 0; {
		left = u.resealPart()
		for len(u.cluster.relay.queue) > 0 {
			_ = conn.Publish(<-u.cluster.relay.queue) // as above
		}
	}
}

// beat is how the unit is now.
func (u *Unit) beat(e *enrolment) bus.Beat {
	b := bus.Beat{
		Names: e.leaf.Leaf.DNSNames, Task: e.identity.Task, Identity: e.identity.ID, Inherits: e.ring.Inherited.Identity,
		InFlight: int(u.cluster.inFlight.Load()), Sessions: u.cluster.host.Stats(u.config.Clock()).Sessions,
		Ready: u.cluster.serving.Load() > 0 && u.Ready() == nil,
	}
	if e.identity.Group != "" {
		b.Task = e.identity.Group + "/" + e.identity.Role
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
	if numbers, err := conn.Range(ctx); err == nil {
		u.cluster.relay.take(numbers)
	}
}

// check tells whether the managers' URLs are such.
func (m Manager) check() bool {
	if m.URL == "" {
		return true
	}
	for text := range strings.SplitSeq(m.URL, ",") {
		u, err := url.Parse(text)
		if err != nil || u.Scheme != "tls" || u.Hostname() == "" || u.Port() == "" || u.User != nil {
			return false
		}
	}
	return true
}

// addressOK reports whether an advertised address is host:port, or none.
func addressOK(address string) bool {
	host, port, err := net.SplitHostPort(address)
	return address == "" || err == nil && host != "" && port != ""
}
