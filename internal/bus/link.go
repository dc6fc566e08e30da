package bus

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/binary"
	"fmt"
	"net"
	"net/url"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cohort-tee/cohort/internal/wire"
)

// link is a unit's connection to one manager.
type link struct {
	conn         *Conn
	address      string
	config       *tls.Config
	alive        atomic.Bool
	heartbeatNow chan struct{} // a value requests an immediate heartbeat
	frames       chan []byte   // queued requests

	mu      sync.Mutex
	pulls   map[wire.SessionID][]chan<- Item // guarded by mu: waiting calls; an Item without bytes: no copy
	ranges  []chan<- Range                   // guarded by mu: waiting calls; the zero Range: none allocated
	pulling int                              // guarded by mu: number of calls that wait for copies
}

func newLink(c *Conn, manager *url.URL, config *tls.Config) *link {
	config = config.Clone()
	config.MinVersion, config.ServerName, config.NextProtos = tls.VersionTLS13, manager.Hostname(), []string{Protocol}
	config.ClientSessionCache = nil
	return &link{
		conn: c, address: manager.Host, config: config, heartbeatNow: make(chan struct{}, 1), frames: make(chan []byte, mostRequests),
		pulls: make(map[wire.SessionID][]chan<- Item),
	}
}

func (l *link) isConnected() bool { return l.alive.Load() }

func (l *link) requestHeartbeat() {
	select {
	case l.heartbeatNow <- struct{}{}:
	default:
	}
}

// keepConnected connects, and reconnects with back-off, until ctx ends or the Conn is closed.
func (l *link) keepConnected(ctx context.Context) {
	for attempt := 1; ; attempt++ {
		begun := time.Now()
		err := l.connectOnce(ctx)
		if ctx.Err() != nil || l.conn.closed() {
			return
		}
		if l.conn.ended != nil {
			l.conn.ended("tls://"+l.address, err)
		}
		if time.Since(begun) > stableAfter {
			attempt = 1
		}
		timer := time.NewTimer(connectBackoff.Wait(attempt))
		select {
		case <-timer.C:
		case <-l.conn.closing:
		case <-ctx.Done():
		}
		timer.Stop()
	}
}

func (c *Conn) closed() bool {
	select {
	case <-c.closing:
		return true
	default:
		return false
	}
}

// connectOnce makes one connection and serves it until it ends. It always returns an error.
func (l *link) connectOnce(ctx context.Context) error {
	conn, err := l.connect(ctx)
	if err != nil {
		return fmt.Errorf("connecting to the manager: %w", err)
	}
	l.alive.Store(true)
	l.conn.updateRelay(l, true)
	l.requestHeartbeat()
	over := make(chan struct{})
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	var writing sync.WaitGroup
	writing.Go(func() {
		defer conn.Close() // ends reading
		l.writeLoop(conn, over)
	})
	err = l.readLoop(newFrames(conn, conn.SetReadDeadline))
	close(over)
	conn.Close()
	writing.Wait()
	l.alive.Store(false)
	l.conn.updateRelay(l, false)
	l.releaseWaiters()
	return err
}

// connect makes the TLS connection, and requires Protocol in ALPN.
func (l *link) connect(ctx context.Context) (*tls.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, dialTime)
	defer cancel()
	raw, err := (&net.Dialer{}).DialContext(ctx, "tcp", l.address)
	if err != nil {
		return nil, err
	}
	conn := tls.Client(raw, l.config)
	if err := conn.HandshakeContext(ctx); err != nil {
		raw.Close()
		return nil, err
	}
	if got := conn.ConnectionState().NegotiatedProtocol; got != Protocol {
		conn.Close()
		return nil, wire.Refuse(wire.BadRequest, "bus: protocol of the manager", got, Protocol)
	}
	return conn, nil
}

// writeLoop sends heartbeats, requests and, if the manager is the relay, items. It ends when
// over is closed, a write fails or the Conn is closed.
func (l *link) writeLoop(conn *tls.Conn, over <-chan struct{}) {
	ticker := time.NewTicker(HeartbeatInterval)
	defer ticker.Stop()
	var out []byte
	for {
		var items <-chan Item // nil: the manager is not the relay
		if l.conn.isRelay(l) {
			items = l.conn.items
		}
		out = out[:0]
		select {
		case <-over:
			return
		case <-ticker.C:
			out = appendFrame(out, kindHeartbeat, l.conn.heartbeatBody(l))
		case <-l.heartbeatNow:
			ticker.Reset(HeartbeatInterval)
			out = appendFrame(out, kindHeartbeat, l.conn.heartbeatBody(l))
		case f := <-l.frames:
			out = append(out, f...)
		case i := <-items:
			out = i.Append(out)
		case <-l.conn.closing:
			l.flushAndClose(conn, items, over)
			return
		}
		if !l.writeBytes(conn, appendPending(out, items)) {
			return
		}
	}
}

// appendPending appends queued items to out, up to the size of a batch.
func appendPending(out []byte, items <-chan Item) []byte {
	for len(out) < MaxBatch-MaxFrame {
		select {
		case i := <-items:
			out = i.Append(out)
		default:
			return out
		}
	}
	return out
}

// flushAndClose sends the last heartbeat and the queued items, then waits until the manager has
// read them and closes the connection. If the unit closed it while bytes from the manager were
// unread, TCP would reset the connection and lose bytes in transit. [Conn.Close] limits the
// wait.
func (l *link) flushAndClose(conn *tls.Conn, items <-chan Item, over <-chan struct{}) {
	out := appendFrame(nil, kindHeartbeat, l.conn.heartbeatBody(l))
	for {
		before := len(out)
		if out = appendPending(out, items); !l.writeBytes(conn, out) {
			return
		}
		if len(out) == before {
			break
		}
		out = out[:0]
	}
	if conn.CloseWrite() == nil {
		<-over
	}
}

func (l *link) writeBytes(conn *tls.Conn, b []byte) bool {
	if len(b) == 0 {
		return true
	}
	_ = conn.SetWriteDeadline(time.Now().Add(writeTime))
	_, err := conn.Write(b)
	return err == nil
}

// readLoop handles the manager's frames until one is invalid or none arrives in time.
func (l *link) readLoop(in *frames) error {
	for {
		k, body, err := in.readFrame()
		if err == nil {
			err = l.handleFrame(k, body)
		}
		if err != nil {
			return err
		}
	}
}

// handleFrame handles one frame from the manager. An error ends the connection.
func (l *link) handleFrame(k Kind, body []byte) error {
	switch k {
	case kindHeartbeat:
		if len(body) > 0 {
			return wire.Refuse(wire.Malformed, "bus: heartbeat of a manager in bytes", len(body), 0)
		}
		return nil
	case kindRange:
		r, err := parseRange(body)
		if err == nil {
			l.deliverRange(r)
		}
		return err
	case Sealed, Tombstone:
		item, err := parseItem(k, body)
		if err != nil {
			return err
		}
		if k == Tombstone {
			l.deliverCopy(item)
		}
		l.conn.deliver(item)
		return nil
	case kindCopy:
		item, err := parseCopy(body)
		if err == nil {
			l.deliverCopy(item)
		}
		return err
	case kindHint:
		return parseHint(body)
	}
	return wire.Refuse(wire.Malformed, "bus: kind of a manager's frame", k, "heartbeat, range, push, copy, tombstone or hint")
}

// parseRange parses the body of a manager's range. The zero Range means that none is available.
func parseRange(body []byte) (Range, error) {
	if len(body) != 16 {
		return Range{}, wire.Refuse(wire.Malformed, "bus: range in bytes", len(body), 16)
	}
	r := Range{First: binary.BigEndian.Uint64(body), Count: binary.BigEndian.Uint64(body[8:])}
	if r != (Range{}) && !r.isValid() {
		return Range{}, wire.Refuse(wire.Malformed, "bus: range", r, "numbers below 2^63")
	}
	return r, nil
}

// parseCopy parses the body of a copy frame. If there is no copy it returns an item without
// bytes.
func parseCopy(body []byte) (Item, error) {
	if len(body) == len(wire.SessionID{}) {
		return Item{Session: wire.SessionID(body)}, nil
	}
	return parseItem(Sealed, body)
}

// parseHint returns an error with the hint's reason for the end of the connection.
func parseHint(body []byte) error {
	strange := func(r rune) bool { return r != '-' && (r < 'a' || r > 'z') }
	if len(body) == 0 || len(body) > maxHintedCause || bytes.IndexFunc(body, strange) >= 0 {
		return wire.Refuse(wire.Malformed, "bus: hint", fmt.Sprintf("%.40q", body), "1 to 32 of a to z and -")
	}
	return wire.Refuse(wire.Unavailable, "bus: connection", "ended by the manager: "+string(body), "a lasting connection")
}

// fetchCopy is [Conn.FetchCopy] for one manager.
func (l *link) fetchCopy(ctx context.Context, s wire.SessionID) (Item, error) {
	waiter := make(chan Item, 1)
	l.mu.Lock()
	full := l.pulling >= mostPulls
	if !full {
		l.pulls[s] = append(l.pulls[s], waiter)
		l.pulling++
	}
	l.mu.Unlock()
	if full || !l.enqueue(kindPull, s[:]) {
		l.removeWaiter(s, waiter)
		return Item{}, wire.Refuse(wire.Unavailable, "bus: pulls under way", mostPulls, "fewer")
	}
	select {
	case item, ok := <-waiter:
		switch {
		case !ok:
			return Item{}, wire.Refuse(wire.Unavailable, "bus: manager", "disconnected before its response", "a response")
		case item.Bytes == nil:
			return Item{}, wire.Refuse(wire.NotFound, "bus: stored copy of session", s.String()+", which the manager does not have", "a stored session")
		}
		return item, nil
	case <-ctx.Done():
		l.removeWaiter(s, waiter)
		return Item{}, wire.Refuse(wire.Unavailable, "bus: response of the manager", "timed out", "a response in time")
	}
}

// removeWaiter removes a call that no longer waits for a copy.
func (l *link) removeWaiter(s wire.SessionID, waiter chan<- Item) {
	l.mu.Lock()
	defer l.mu.Unlock()
	before := len(l.pulls[s])
	l.pulls[s] = slices.DeleteFunc(l.pulls[s], func(w chan<- Item) bool { return w == waiter })
	l.pulling -= before - len(l.pulls[s])
	if len(l.pulls[s]) == 0 {
		delete(l.pulls, s)
	}
}

// deliverCopy sends a copy to the calls that wait for it.
func (l *link) deliverCopy(i Item) {
	l.mu.Lock()
	defer l.mu.Unlock()
	waiting := l.pulls[i.Session]
	if len(waiting) == 0 {
		return
	}
	i.Bytes = bytes.Clone(i.Bytes)
	for _, w := range waiting {
		w <- i // does not block: the channel has a buffer for one value
	}
	l.pulling -= len(waiting)
	delete(l.pulls, i.Session)
}

// fetchRange is [Conn.AllocateRange] for one manager.
func (l *link) fetchRange(ctx context.Context) (Range, error) {
	given := make(chan Range, 1)
	waiter := (chan<- Range)(given)
	l.mu.Lock()
	full := len(l.ranges) >= mostPulls
	if !full {
		l.ranges = append(l.ranges, waiter)
	}
	l.mu.Unlock()
	if full || !l.enqueue(kindRange, nil) {
		return Range{}, wire.Refuse(wire.Unavailable, "bus: requests for ranges under way", mostPulls, "fewer")
	}
	select {
	case r := <-given: // the zero Range if the manager disconnected
		if r.Count == 0 {
			return Range{}, wire.Refuse(wire.Unavailable, "bus: session numbers in the range", 0, "at least one")
		}
		return r, nil
	case <-ctx.Done():
		l.mu.Lock()
		defer l.mu.Unlock()
		l.ranges = slices.DeleteFunc(l.ranges, func(w chan<- Range) bool { return w == waiter })
		return Range{}, wire.Refuse(wire.Unavailable, "bus: response of the manager", "timed out", "a response in time")
	}
}

// deliverRange sends a range to the longest-waiting call.
func (l *link) deliverRange(r Range) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.ranges) > 0 {
		l.ranges[0] <- r // does not block: the channel has a buffer for one value
		l.ranges = l.ranges[1:]
	}
}

// enqueue queues a request, and reports whether there was room.
func (l *link) enqueue(k Kind, body []byte) bool {
	if !l.isConnected() {
		return false
	}
	select {
	case l.frames <- appendFrame(nil, k, body):
		return true
	default:
		return false
	}
}

// releaseWaiters ends all waiting calls, since the manager disconnected.
func (l *link) releaseWaiters() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for s, waiting := range l.pulls {
		for _, w := range waiting {
			close(w)
		}
		delete(l.pulls, s)
	}
	for _, w := range l.ranges {
		close(w)
	}
	l.pulling, l.ranges = 0, nil
	for len(l.frames) > 0 {
		<-l.frames
	}
}
