package bus

import (
	"context"
	"crypto/tls"
	"errors"
	"math/rand/v2"
	"net/url"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cohort-tee/cohort/internal/wire"
)

// Config configures the connections of a unit.
type Config struct {
	URL string // tls://host:port of each manager, separated by commas

	// TLS verifies a manager's certificate, which must contain the host of the manager's URL. At
	// every handshake it presents the unit's signing certificate and its cross-certificate.
	TLS *tls.Config

	// Ended, if set, is called after a connection to a manager ended or could not be made, from
	// one goroutine for each manager.
	Ended func(manager string, err error)
}

// Conn has a unit's connections, one to each of its managers. It reconnects with jitter until it
// is closed, so failures of its methods are temporary. One connected manager is the relay: it
// receives the items that the unit seals, and pushes the items of other units. When the relay's
// connection is lost, a different connected manager becomes the relay.
//
// It is safe for concurrent use. Only Close and methods with a context wait for a manager.
type Conn struct {
	links      []*link
	items      chan Item // queued for the relay
	ended      func(manager string, err error)
	subscriber atomic.Pointer[func(Item)]

	once    sync.Once
	closing chan struct{} // when closed, links write queued items and end
	cancel  context.CancelFunc
	running sync.WaitGroup

	mu        sync.Mutex
	heartbeat Heartbeat // guarded by mu: contents of the next heartbeat
	relay     *link     // guarded by mu; nil: no manager is connected
}

// Connect starts connecting in the background and returns at once. It fails only if the
// configuration is invalid, with [wire.BadRequest]. The caller ends the Conn with [Conn.Close].
func Connect(c Config) (*Conn, error) {
	if c.TLS == nil {
		return nil, wire.Refuse(wire.BadRequest, "bus: TLS", "no configuration", "a configuration with the unit's certificate")
	}
	managers := strings.Split(c.URL, ",")
	if !ValidURLs(c.URL) {
		return nil, wire.Refuse(wire.BadRequest, "bus: URL", c.URL, "tls://host:port, several separated by commas")
	}
	ctx, cancel := context.WithCancel(context.Background())
	conn := &Conn{items: make(chan Item, mostWaiting), ended: c.Ended, closing: make(chan struct{}), cancel: cancel}
	for _, text := range managers {
		u, _ := url.Parse(text) // ValidURLs accepted it
		conn.links = append(conn.links, newLink(conn, u, c.TLS))
	}
	// Shuffle, so that units choose different managers as their relay.
	rand.Shuffle(len(conn.links), func(i, j int) { conn.links[i], conn.links[j] = conn.links[j], conn.links[i] })
	for _, l := range conn.links {
		conn.running.Go(func() { l.keepConnected(ctx) })
	}
	return conn, nil
}

// ValidURLs reports whether text is a valid URL field of [Config].
func ValidURLs(text string) bool {
	for one := range strings.SplitSeq(text, ",") {
		u, err := url.Parse(one)
		if err != nil || u.Scheme != "tls" || u.Hostname() == "" || u.Port() == "" || u.User != nil || u.Path != "" {
			return false
		}
	}
	return true
}

// Close ends the connections. It first sends the items that are still queued to the relay, for
// at most one second.
func (c *Conn) Close() {
	c.once.Do(func() { close(c.closing) })
	timer := time.AfterFunc(closeTime, c.cancel)
	defer timer.Stop()
	defer c.cancel()
	c.running.Wait()
}

// Connected reports whether at least one manager is connected.
func (c *Conn) Connected() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.relay != nil
}

// SendHeartbeat sends a heartbeat to every manager, now and every [HeartbeatInterval] until the
// next call. The Conn sets the field Relay. SendHeartbeat refuses a heartbeat that
// [Heartbeat.Append] refuses.
func (c *Conn) SendHeartbeat(b Heartbeat) error {
	if _, err := b.Append(nil); err != nil {
		return err
	}
	c.mu.Lock()
	c.heartbeat = b
	c.mu.Unlock()
	for _, l := range c.links {
		l.requestHeartbeat()
	}
	return nil
}

// heartbeatBody returns the body of the heartbeat frame for the manager of l.
func (c *Conn) heartbeatBody(l *link) []byte {
	c.mu.Lock()
	defer c.mu.Unlock()
	b := c.heartbeat
	b.Relay = c.relay == l
	body, _ := b.Append(nil) // cannot fail: SendHeartbeat validated the heartbeat, or it is zero
	return body
}

// isRelay reports whether the manager of l is the relay.
func (c *Conn) isRelay(l *link) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.relay == l
}

// updateRelay chooses the relay after the manager of l connected (there) or disconnected.
func (c *Conn) updateRelay(l *link, there bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case there && c.relay == nil:
		c.relay = l
	case !there && c.relay == l:
		c.relay = nil
		if i := slices.IndexFunc(c.links, (*link).isConnected); i >= 0 {
			c.relay = c.links[i]
			c.relay.requestHeartbeat()
		}
	}
}

// Publish queues an item, which the relay pushes to all units of the cluster. It takes ownership
// of the item's bytes. It refuses an invalid item with [wire.Malformed], and any item with
// [wire.Overload] while the queue is full.
func (c *Conn) Publish(i Item) error {
	if err := i.validate(); err != nil {
		return err
	}
	select {
	case c.items <- i:
		return nil
	default:
		return wire.Refuse(wire.Overload, "bus: sealed sessions queued", mostWaiting, "fewer")
	}
}

// PublishWithin is like Publish, but waits for room in the queue until ctx ends.
func (c *Conn) PublishWithin(ctx context.Context, i Item) error {
	if err := i.validate(); err != nil {
		return err
	}
	select {
	case c.items <- i:
		return nil
	case <-ctx.Done():
		return wire.Refuse(wire.Overload, "bus: sealed sessions queued", mostWaiting, "fewer")
	}
}

// Subscribe calls f with every item that a manager pushes, including the unit's own items, from
// one goroutine for each manager. The item's bytes are valid only during the call.
func (c *Conn) Subscribe(f func(Item)) { c.subscriber.Store(&f) }

// FetchCopy requests the stored copy of a session: a sealed session or its tombstone. It asks
// one manager after the other, the relay first. Its error has the reason [wire.NotFound] if at
// least one manager responds and none has a copy, and [wire.Unavailable] if no manager responds.
func (c *Conn) FetchCopy(ctx context.Context, s wire.SessionID) (Item, error) {
	err := error(wire.Refuse(wire.Unavailable, "bus: managers connected", 0, "at least one"))
	for _, l := range c.connectedLinks() {
		item, failed := l.fetchCopy(ctx, s)
		if failed == nil {
			return item, nil
		}
		if !errors.Is(err, wire.NotFound) {
			err = failed
		}
	}
	return Item{}, err
}

// connectedLinks returns the connected managers, the relay first.
func (c *Conn) connectedLinks() []*link {
	c.mu.Lock()
	defer c.mu.Unlock()
	var list []*link
	for _, l := range c.links {
		switch {
		case l == c.relay:
			list = slices.Insert(list, 0, l)
		case l.isConnected():
			list = append(list, l)
		}
	}
	return list
}

// AllocateRange requests session numbers from the relay, which allocates them to this unit only.
// Its error has the reason [wire.Unavailable].
func (c *Conn) AllocateRange(ctx context.Context) (Range, error) {
	c.mu.Lock()
	l := c.relay
	c.mu.Unlock()
	if l == nil {
		return Range{}, wire.Refuse(wire.Unavailable, "bus: managers connected", 0, "at least one")
	}
	return l.fetchRange(ctx)
}

// deliver passes an item to the function set by Subscribe, if any.
func (c *Conn) deliver(i Item) {
	if f := c.subscriber.Load(); f != nil {
		(*f)(i)
	}
}
