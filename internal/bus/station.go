package bus

import (
	"bytes"
	"crypto/tls"
	"encoding/binary"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cohort-tee/cohort/internal/wire"
)

// unitConn is the manager's side of one unit's connection.
type unitConn struct {
	server     *Server
	conn       *tls.Conn
	unit       Unit
	wantsItems atomic.Bool // whether the unit receives items of other units
	out        chan []byte // queued frames
	bulk       chan []byte // batches that are sent only while out is empty
	done       chan struct{}
	ending     sync.Once
	cause      error // set before done is closed: the refusal for which the manager ends the connection, or nil

	pulls         chan struct{} // one value for each running pull
	heartbeats    bucket        // these two are used only by the read loop
	rangeRequests bucket
}

func newUnitConn(s *Server, conn *tls.Conn, unit Unit) *unitConn {
	u := &unitConn{
		server: s, conn: conn, unit: unit, out: make(chan []byte, mostBatches), bulk: make(chan []byte), done: make(chan struct{}),
		pulls: make(chan struct{}, mostPulls), heartbeats: newBucket(heartbeatsEach, heartbeatsBurst), rangeRequests: newBucket(rangesEach, rangesBurst),
	}
	u.wantsItems.Store(true)
	return u
}

// serve runs the connection until a read or write fails, the certificate expires or the manager
// ends the connection.
func (u *unitConn) serve() error {
	left := u.unit.NotAfter.Sub(u.server.config.Clock())
	expiry := time.AfterFunc(left, func() {
		u.terminate(wire.Refuse(wire.Expired, "bus: certificate's end", u.unit.NotAfter.UTC().Format(time.RFC3339), "a later one"))
	})
	defer expiry.Stop()
	var tasks sync.WaitGroup
	defer tasks.Wait()
	tasks.Go(u.writeLoop)
	err := u.readLoop(newFrames(u.conn, u.conn.SetReadDeadline), &tasks)
	u.terminate(nil)
	if u.cause != nil {
		return u.cause
	}
	return err
}

// terminate ends the connection. Only the first call has an effect. If cause is not nil, the
// unit receives its reason as a hint.
func (u *unitConn) terminate(cause error) {
	u.ending.Do(func() { u.cause = cause; close(u.done) })
}

// writeLoop sends queued frames. When it ends it closes the connection, which ends readLoop.
func (u *unitConn) writeLoop() {
	defer u.conn.Close()
	defer u.terminate(nil)
	var together []byte
	for {
		var b []byte
		select {
		case b = <-u.out:
		default:
			select {
			case b = <-u.out:
			case b = <-u.bulk:
			case <-u.done:
				u.sendHint(wire.ReasonOf(u.cause))
				return
			}
		}
		for together = append(together[:0], b...); len(u.out) > 0 && len(together) < MaxBatch/2; {
			together = append(together, <-u.out...)
		}
		_ = u.conn.SetWriteDeadline(time.Now().Add(writeTime))
		if _, err := u.conn.Write(together); err != nil {
			return
		}
	}
}

// sendHint sends the unit a hint with the reason for the end of the connection. It ignores
// errors.
func (u *unitConn) sendHint(reason wire.Reason) {
	if reason == wire.Internal {
		return
	}
	_ = u.conn.SetWriteDeadline(time.Now().Add(hintTime))
	_, _ = u.conn.Write(appendFrame(nil, kindHint, []byte(reason)))
}

// enqueue queues frames for the unit, and reports whether there was room. Queues of several
// units may share b: it must not be modified.
func (u *unitConn) enqueue(b []byte) bool {
	select {
	case u.out <- b:
		return true
	default:
		return false
	}
}

// readLoop handles the unit's frames until one is invalid or none arrives in time.
func (u *unitConn) readLoop(in *frames, tasks *sync.WaitGroup) error {
	for {
		k, body, err := in.readFrame()
		if err == nil {
			err = u.handleFrame(k, body, tasks)
		}
		if err != nil {
			return err
		}
	}
}

// handleFrame handles one frame from the unit. An error ends the connection.
func (u *unitConn) handleFrame(k Kind, body []byte, tasks *sync.WaitGroup) error {
	switch k {
	case kindHeartbeat:
		b, err := ParseHeartbeat(body)
		if err == nil && u.heartbeats.tryTake(time.Now()) {
			u.wantsItems.Store(b.Relay)
			u.server.config.Handlers.Heartbeat(u.unit, b)
			u.enqueue(appendFrame(nil, kindHeartbeat))
		}
		return err
	case kindRange:
		if len(body) > 0 {
			return wire.Refuse(wire.Malformed, "bus: range of a unit in bytes", len(body), 0)
		}
		u.enqueue(appendFrame(nil, kindRange, u.allocateRange()))
		return nil
	case Sealed, Tombstone:
		item, err := parseItem(k, body)
		if err == nil {
			item.Bytes = bytes.Clone(item.Bytes)
			u.server.config.Handlers.Item(u.unit, item)
		}
		return err
	case kindPull:
		if len(body) != len(wire.SessionID{}) {
			return wire.Refuse(wire.Malformed, "bus: pull in bytes", len(body), len(wire.SessionID{}))
		}
		u.sendCopy(wire.SessionID(body), tasks)
		return nil
	}
	return wire.Refuse(wire.Malformed, "bus: kind of a unit's frame", k, "heartbeat, range, push, pull or tombstone")
}

// allocateRange returns the body of the response to a range request. If no range can be
// allocated it is the zero range.
func (u *unitConn) allocateRange() []byte {
	var r Range
	if u.rangeRequests.tryTake(time.Now()) {
		if given, err := u.server.config.Handlers.Range(); err == nil {
			r = given
		}
	}
	return binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint64(nil, r.First), r.Count)
}

// sendCopy responds to a pull with the copy of a session. While mostPulls pulls of the unit are
// running, it responds that there is no copy.
func (u *unitConn) sendCopy(s wire.SessionID, tasks *sync.WaitGroup) {
	select {
	case u.pulls <- struct{}{}:
	default:
		u.enqueue(appendFrame(nil, kindCopy, s[:]))
		return
	}
	tasks.Go(func() {
		defer func() { <-u.pulls }()
		item, found := u.server.config.Handlers.Pull(u.server.ctx, u.unit, s)
		switch {
		case !found:
			u.enqueue(appendFrame(nil, kindCopy, s[:]))
		case item.Kind == Tombstone:
			u.enqueue(item.Append(nil))
		default:
			u.enqueue(item.appendAs(nil, kindCopy))
		}
	})
}
