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

// Config is what a unit connects with.
type Config struct {
	URL string // tls://host:port of the manager, or of several with commas between

	// TLS says how a manager's certificate is checked, and presents, at every
	// handshake, the unit's signing certificate and its cross-certificate. The
	// name that the manager's certificate must bear is the host of its URL.
	TLS *tls.Config

	// Ended, where set, is called with why a connection to one of the managers
	// ended or was not made, from one goroutine for each.
	Ended func(manager string, err error)
}

// Conn is a unit's connections to its managers, one to each. It connects again
// until it is closed, with jitter, so its methods fail only for the moment. Of
// the managers that are there one, the relay, gets what the unit seals and is
// asked to push what others seal; when it is lost, another is.
//
// It is safe for concurrent use. No method waits for a manager but those with a
// context.
type Conn struct {
	links []*link
	items chan Item // wait for the relay
	ended func(manager string, err error)
	call  atomic.Pointer[func(Item)]

	once    sync.Once
	closing chan struct{} // closed: write what waits, then end
	cancel  context.CancelFunc
	running sync.WaitGroup

	mu    sync.Mutex
	beat  Beat  // guarded by mu: sent last
	relay *link // guarded by mu; nil: none is there
}

// Connect begins to connect and does not wait for a manager to be there: its
// errors, with the reason [wire.BadRequest], are about the configuration. The
// caller ends it with [Conn.Close].
func Connect(c Config) (*Conn, error) {
	if c.TLS == nil {
		return nil, wire.Refuse(wire.BadRequest, "bus: TLS", "none", "a configuration with the unit's certificate")
	}
	managers := strings.Split(c.URL, ",")
	if !URLsOK(c.URL) {
		return nil, wire.Refuse(wire.BadRequest, "bus: URL", c.URL, "tls://host:port, several with commas between")
	}
	ctx, cancel := context.WithCancel(context.Background())
	conn := &Conn{items: make(chan Item, mostWaiting), ended: c.Ended, closing: make(chan struct{}), cancel: cancel}
	for _, text := range managers {
		u, _ := url.Parse(text) // URLsOK has
		conn.links = append(conn.links, newLink(conn, u, c.TLS))
	}
	// So that not all units choose the same one as their relay.
	rand.Shuffle(len(conn.links), func(i, j int) { conn.links[i], conn.links[j] = conn.links[j], conn.links[i] })
	for _, l := range conn.links {
		conn.running.Go(func() { l.run(ctx) })
	}
	return conn, nil
}

// URLsOK reports whether a text names managers as [Config] wants them.
func URLsOK(text string) bool {
	for one := range strings.SplitSeq(text, ",") {
		u, err := url.Parse(one)
		if err != nil || u.Scheme != "tls" || u.Hostname() == "" || u.Port() == "" || u.User != nil || u.Path != "" {
			return false
		}
	}
	return true
}

// Close ends the connections, once. What was published before reaches a manager
// that is there and takes it within a second.
func (c *Conn) Close() {
	c.once.Do(func() { close(c.closing) })
	timer := time.AfterFunc(closeTime, c.cancel)
	defer timer.Stop()
	defer c.cancel()
	c.running.Wait()
}

// Connected reports whether a manager is there now.
func (c *Conn) Connected() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.relay != nil
}

// Beat sends a heartbeat to every manager, now and each [BeatEvery] until the
// next call. Its Relay is chosen by the Conn. It refuses a heartbeat that
// [Beat.Append] refuses.
func (c *Conn) Beat(b Beat) error {
	if _, err := b.Append(nil); err != nil {
		return err
	}
	c.mu.Lock()
	c.beat = b
	c.mu.Unlock()
	for _, l := range c.links {
		l.wake()
	}
	return nil
}

// body is the heartbeat's body for one of the managers.
func (c *Conn) body(l *link) []byte {
	c.mu.Lock()
	defer c.mu.Unlock()
	b := c.beat
	b.Relay = c.relay == l
	body, _ := b.Append(nil) // Beat has checked it, or it is zero
	return body
}

// isRelay reports whether a manager gets what the unit seals.
func (c *Conn) isRelay(l *link) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.relay == l
}

// turn takes in that a manager is there, or is no more, and chooses the relay.
func (c *Conn) turn(l *link, there bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case there && c.relay == nil:
		c.relay = l
	case !there && c.relay == l:
		c.relay = nil
		if i := slices.IndexFunc(c.links, (*link).there); i >= 0 {
			c.relay = c.links[i]
			c.relay.wake()
		}
	}
}

// Publish gives an item to the relay, for all units of the cluster, and takes
// over its bytes. It refuses with [wire.Overload] while too many wait, and with
// [wire.Malformed] what is no item.
func (c *Conn) Publish(i Item) error {
	if err := i.check(); err != nil {
		return err
	}
	select {
	case c.items <- i:
		return nil
	default:
		return wire.Refuse(wire.Overload, "bus: sealed sessions that wait", mostWaiting, "fewer")
	}
}

// PublishWithin is Publish, but while too many wait it waits for ctx.
func (c *Conn) PublishWithin(ctx context.Context, i Item) error {
	if err := i.check(); err != nil {
		return err
	}
	select {
	case c.items <- i:
		return nil
	case <-ctx.Done():
		return wire.Refuse(wire.Overload, "bus: sealed sessions that wait", mostWaiting, "fewer")
	}
}

// Subscribe calls f with every item that a manager pushes, the unit's own
// included, from one goroutine for each manager. The item's bytes are valid
// during the call only.
func (c *Conn) Subscribe(f func(Item)) { c.call.Store(&f) }

// Pull asks for the stored copy of a session: sealed, or its tombstone. It asks
// one manager after the other. Its error has the reason [wire.NotFound] when
// those that respond have none, and [wire.Unavailable] when none responds.
func (c *Conn) Pull(ctx context.Context, s wire.SessionID) (Item, error) {
	err := error(wire.Refuse(wire.Unavailable, "bus: manager", "none is there", "one"))
	for _, l := range c.byTurn() {
		item, failed := l.pull(ctx, s)
		if failed == nil {
			return item, nil
		}
		if !errors.Is(err, wire.NotFound) {
			err = failed
		}
	}
	return Item{}, err
}

// byTurn are the managers that are there, the relay first.
func (c *Conn) byTurn() []*link {
	c.mu.Lock()
	defer c.mu.Unlock()
	var list []*link
	for _, l := range c.links {
		switch {
		case l == c.relay:
			list = slices.Insert(list, 0, l)
		case l.there():
			list = append(list, l)
		}
	}
	return list
}

// Range asks the relay for numbers that no other unit was given. Its error has
// the reason [wire.Unavailable] when there are none to be had.
func (c *Conn) Range(ctx context.Context) (Range, error) {
	c.mu.Lock()
	l := c.relay
	c.mu.Unlock()
	if l == nil {
		return Range{}, wire.Refuse(wire.Unavailable, "bus: manager", "none is there", "one")
	}
	return l.numbers(ctx)
}

// pushed hands an item to the subscriber.
func (c *Conn) pushed(i Item) {
	if f := c.call.Load(); f != nil {
		(*f)(i)
	}
}
