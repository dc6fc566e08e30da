package bus

import (
	"context"
	"crypto/tls"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/cohort-tee/cohort/internal/wire"
	"github.com/nats-io/nats.go"
)

// Times of a unit's connection.
const (
	dialTime      = 5 * time.Second
	closeTime     = 200 * time.Millisecond
	pingEvery     = 5 * time.Second // two unanswered pings end a connection
	reconnectMost = 2 * time.Second // between two attempts
)

// Config is what a unit connects with.
type Config struct {
	URL     string // tls://host:port of the manager, or of several with commas between
	Cluster Cluster
	Unit    wire.UnitID

	// TLS says how the manager's certificate is checked, and presents, at every
	// handshake, the unit's signing certificate and its cross-certificate.
	TLS *tls.Config
}

// Conn is a unit's connection to the manager. It connects again for ever, with
// jitter, so its methods fail only for the moment. It is safe for concurrent
// use.
type Conn struct {
	nc      *nats.Conn
	cluster string
	unit    string
}

// Connect begins to connect and does not wait for the manager to be there: its
// errors are about the configuration. The caller ends it with [Conn.Close].
func Connect(c Config) (*Conn, error) {
	if c.TLS == nil {
		return nil, wire.Refuse(wire.BadRequest, "bus: TLS", "none", "a configuration with the unit's certificate")
	}
	nc, err := nats.Connect(c.URL,
		nats.Secure(c.TLS), nats.TLSHandshakeFirst(), nats.Timeout(dialTime), nats.PingInterval(pingEvery), nats.MaxPingsOutstanding(2),
		nats.CustomInboxPrefix(inbox(c.Cluster, c.Unit)),
		nats.RetryOnFailedConnect(true), nats.MaxReconnects(-1), nats.IgnoreAuthErrorAbort(), nats.CustomReconnectDelay(reconnectDelay),
		nats.IgnoreDiscoveredServers(), nats.ReconnectBufSize(1<<20), nats.ErrorHandler(func(*nats.Conn, *nats.Subscription, error) {}),
	)
	if err != nil {
		return nil, fmt.Errorf("connecting to the manager: %w", err)
	}
	return &Conn{nc: nc, cluster: c.Cluster.String(), unit: c.Unit.String()}, nil
}

// reconnectDelay doubles from 50 ms, with half of it jitter, so that units do
// not all come back at once.
func reconnectDelay(attempts int) time.Duration {
	d := min(reconnectMost, 50*time.Millisecond<<min(attempts, 6))
	return d/2 + rand.N(d/2)
}

// Close ends the connection. What was published before reaches a manager that
// is there.
func (c *Conn) Close() {
	if c.nc.IsConnected() {
		_ = c.nc.FlushTimeout(closeTime) // all of it were hints
	}
	c.nc.Close()
}

// Connected reports whether the manager is there now.
func (c *Conn) Connected() bool { return c.nc.IsConnected() }

// Beat publishes a heartbeat.
func (c *Conn) Beat(b Beat) error {
	text, err := json.Marshal(b)
	if err != nil {
		return fmt.Errorf("encoding beat: %w", err)
	}
	if len(text) > MaxBeat {
		return wire.Refuse(wire.TooLarge, "beat: size in bytes", len(text), MaxBeat)
	}
	return c.nc.Publish(subjectBeat+c.cluster+"."+c.unit, text)
}

// Publish gives an item to the manager, for all units of the cluster.
func (c *Conn) Publish(i Item) error {
	return c.nc.Publish(subjectSeal+c.cluster, i.Append(make([]byte, 0, i.Size())))
}

// Subscribe calls f, from one goroutine, with every item the manager pushes,
// the unit's own included. The item's bytes are shared with others of its
// batch: f copies what it keeps.
func (c *Conn) Subscribe(f func(Item)) error {
	_, err := c.nc.Subscribe(subjectPush+c.cluster, func(m *nats.Msg) {
		for rest := m.Data; len(rest) > 0; {
			var item Item
			var err error
			if item, rest, err = NextItem(rest); err != nil {
				return // a hint that cannot be read is no hint
			}
			f(item)
		}
	})
	return err
}

// Pull asks for the stored copy of a session: sealed, or its tombstone. Its
// error has the reason [wire.NotFound] when the manager has none, and
// [wire.Unavailable] when it does not answer.
func (c *Conn) Pull(ctx context.Context, s wire.SessionID) (Item, error) {
	answer, err := c.ask(ctx, subjectPull, s[:])
	if err != nil {
		return Item{}, err
	}
	if len(answer) == 0 {
		return Item{}, wire.Refuse(wire.NotFound, "bus: session", "no stored copy", "one")
	}
	item, err := oneItem(answer)
	if err == nil && item.Session != s {
		return Item{}, wire.Refuse(wire.Malformed, "bus: pulled session", "another", "the one asked for")
	}
	return item, err
}

// Range asks for numbers that no other unit was given.
func (c *Conn) Range(ctx context.Context) (Range, error) {
	answer, err := c.ask(ctx, subjectRange, nil)
	if err != nil {
		return Range{}, err
	}
	if len(answer) != 16 {
		return Range{}, wire.Refuse(wire.Unavailable, "bus: range in bytes", len(answer), 16)
	}
	r := Range{First: binary.BigEndian.Uint64(answer), Count: binary.BigEndian.Uint64(answer[8:])}
	if r.Count == 0 || r.First+r.Count < r.First {
		return Range{}, wire.Refuse(wire.Malformed, "bus: range", r, "numbers below 2^64")
	}
	return r, nil
}

// ask sends a request, which ctx bounds.
func (c *Conn) ask(ctx context.Context, subject string, body []byte) ([]byte, error) {
	m, err := c.nc.RequestWithContext(ctx, subject+c.cluster, body)
	if err != nil {
		return nil, errors.Join(wire.Refuse(wire.Unavailable, "bus: answer", "none", "one"), err)
	}
	return m.Data, nil
}
