// Package busrelay sends and fetches the sealed sessions of a unit over the bus.
//
// A [Relay] publishes the sessions that the unit seals, fetches sessions that the unit does not
// have, and numbers new sessions from ranges that the manager allocates. The manager is
// untrusted: it receives only sealed bytes. If no manager is connected, or the manager withholds
// sessions, units share sessions only through clients' tickets.
package busrelay

import (
	"context"
	"errors"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cohort-tee/cohort/internal/bus"
	"github.com/cohort-tee/cohort/internal/channel"
	"github.com/cohort-tee/cohort/internal/envelope"
	"github.com/cohort-tee/cohort/internal/wire"
)

const (
	pullTimeout  = 250 * time.Millisecond // a client's request waits during this time
	rangeTimeout = 500 * time.Millisecond
	lowRange     = 1 << 12 // with fewer remaining numbers, Refill allocates a new range
)

// Relay connects the channel of a unit with the bus. Without a connection it does nothing. It
// is safe for concurrent use.
type Relay struct {
	host  *channel.Host
	clock func() time.Time
	conn  atomic.Pointer[bus.Conn] // nil without a connection

	mu      sync.Mutex
	numbers bus.Range // guarded by mu: remaining numbers
}

// New makes the relay of a host, without a connection.
func New(host *channel.Host, clock func() time.Time) *Relay { return &Relay{host: host, clock: clock} }

// SetConn replaces the connection; nil removes it. The caller closes it.
func (r *Relay) SetConn(conn *bus.Conn) { r.conn.Store(conn) }

// Connected reports whether at least one manager is connected.
func (r *Relay) Connected() bool {
	conn := r.conn.Load()
	return conn != nil && conn.Connected()
}

// Number returns the next number of the allocated range. If no range is left it returns a random
// number from 2^63 on, which managers never allocate.
func (r *Relay) Number() uint64 {
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

// Refill requests a new range of numbers if few remain. If that fails, the next call tries
// again.
func (r *Relay) Refill(ctx context.Context) {
	r.mu.Lock()
	low := r.numbers.Count < lowRange
	r.mu.Unlock()
	conn := r.conn.Load()
	if !low || conn == nil {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, rangeTimeout)
	defer cancel()
	if numbers, err := conn.AllocateRange(ctx); err == nil {
		r.setRange(numbers)
	}
}

func (r *Relay) setRange(numbers bus.Range) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.numbers = numbers
}

// Push publishes a sealed session or a tombstone for all other units. If the queue is full it
// drops the message: a unit that lacks the session pulls it.
func (r *Relay) Push(kind envelope.Kind, sealed []byte) {
	item, err := itemOf(kind, sealed)
	if conn := r.conn.Load(); err == nil && conn != nil {
		_ = conn.Publish(item) // an error means that the item is dropped
	}
}

// PushWithin publishes a sealed session, and waits for room in the queue until ctx is done. If a
// session is not published in time, its client's ticket replaces it.
func (r *Relay) PushWithin(ctx context.Context, sealed []byte) {
	item, err := itemOf(envelope.Session, sealed)
	if conn := r.conn.Load(); err == nil && conn != nil {
		_ = conn.PublishWithin(ctx, item) // an error means that the item is dropped
	}
}

// itemOf returns the item for a sealed message, with the unencrypted fields of its header.
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

// RequestCopy fetches the manager's copy of a session. If the copy is a tombstone, RequestCopy
// terminates the session in this unit, so that no ticket can open it again.
func (r *Relay) RequestCopy(ctx context.Context, id wire.SessionID) ([]byte, error) {
	conn := r.conn.Load()
	if conn == nil || !conn.Connected() {
		return nil, wire.Refuse(wire.NotFound, "unit: manager", "no connection", "a manager that keeps copies")
	}
	ctx, cancel := context.WithTimeout(ctx, pullTimeout)
	defer cancel()
	item, err := conn.FetchCopy(ctx, id)
	if err != nil {
		return nil, err
	}
	if item.Kind == bus.Tombstone {
		_, err := r.host.Terminate(item.Bytes, r.clock()) // has no effect unless the tombstone verifies
		return nil, errors.Join(wire.Refuse(wire.SessionOver, "session "+id.String(), "a tombstone", "a sealed session"), err)
	}
	return item.Bytes, nil
}
