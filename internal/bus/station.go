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

// station is the manager's side of one unit's connection.
type station struct {
	server *Server
	conn   *tls.Conn
	unit   Unit
	wants  atomic.Bool // the unit receives items of other units
	out    chan []byte // queued frames
	bulk   chan []byte // sent while no frame is queued
	over   chan struct{}
	ending sync.Once
	cause  error // set before over is closed: why the manager ends the connection, or nil

	pulls chan struct{} // one value for each running pull
	beats bucket        // these two are used by the read loop alone
	takes bucket
}

func newStation(s *Server, conn *tls.Conn, unit Unit) *station {
	u := &station{
		server: s, conn: conn, unit: unit, out: make(chan []byte, mostBatches), bulk: make(chan []byte), over: make(chan struct{}),
		pulls: make(chan struct{}, mostPulls), beats: newBucket(beatsEach, beatsBurst), takes: newBucket(rangesEach, rangesBurst),
	}
	u.wants.Store(true)
	return u
}

// serve reads and writes until one of the two fails, the certificate expires or the manager
// ends the connection.
func (u *station) serve() error {
	left := u.unit.NotAfter.Sub(u.server.config.Clock())
	expiry := time.AfterFunc(left, func() {
		u.end(wire.Refuse(wire.Expired, "bus: certificate's end", u.unit.NotAfter.UTC().Format(time.RFC3339), "a later one"))
	})
	defer expiry.Stop()
	var tasks sync.WaitGroup
	defer tasks.Wait()
	tasks.Go(u.write)
	err := u.read(newFrames(u.conn, u.conn.SetReadDeadline), &tasks)
	u.end(nil)
	if u.cause != nil {
		return u.cause
	}
	return err
}

// end ends the connection, once. If there is a cause, the unit receives its reason as a hint.
func (u *station) end(cause error) {
	u.ending.Do(func() { u.cause = cause; close(u.over) })
}

// write sends queued frames. It closes the connection at its end, which ends reading too.
func (u *station) write() {
	defer u.conn.Close()
	defer u.end(nil)
	var together []byte
	for {
		var b []byte
		select {
		case b = <-u.out:
		default:
			select {
			case b = <-u.out:
			case b = <-u.bulk:
			case <-u.over:
				u.hint(wire.ReasonOf(u.cause))
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

// hint sends the unit the reason for which the connection ends. Errors are ignored.
func (u *station) hint(reason wire.Reason) {
	if reason == wire.Internal {
		return
	}
	_ = u.conn.SetWriteDeadline(time.Now().Add(hintTime))
	_, _ = u.conn.Write(appendFrame(nil, kindHint, []byte(reason)))
}

// queue queues frames for the unit, and reports whether there was room. The bytes are shared
// and never written to.
func (u *station) queue(b []byte) bool {
	select {
	case u.out <- b:
		return true
	default:
		return false
	}
}

// read handles the unit's frames until one is invalid or none arrives in time.
func (u *station) read(in *frames, tasks *sync.WaitGroup) error {
	for {
		k, body, err := in.next()
		if err == nil {
			err = u.take(k, body, tasks)
		}
		if err != nil {
			return err
		}
	}
}

// take handles one frame of the unit. An error ends the connection.
func (u *station) take(k Kind, body []byte, tasks *sync.WaitGroup) error {
	switch k {
	case kindBeat:
		b, err := ParseBeat(body)
		if err == nil && u.beats.take(time.Now()) {
			u.wants.Store(b.Relay)
			u.server.config.Duties.Beat(u.unit, b)
			u.queue(appendFrame(nil, kindBeat))
		}
		return err
	case kindRange:
		if len(body) > 0 {
			return wire.Refuse(wire.Malformed, "bus: range of a unit in bytes", len(body), 0)
		}
		u.queue(appendFrame(nil, kindRange, u.numbers()))
		return nil
	case Sealed, Tombstone:
		item, err := itemOf(k, body)
		if err == nil {
			item.Bytes = bytes.Clone(item.Bytes)
			u.server.config.Duties.Item(u.unit, item)
		}
		return err
	case kindPull:
		if len(body) != len(wire.SessionID{}) {
			return wire.Refuse(wire.Malformed, "bus: pull in bytes", len(body), len(wire.SessionID{}))
		}
		u.pull(wire.SessionID(body), tasks)
		return nil
	}
	return wire.Refuse(wire.Malformed, "bus: kind of a unit's frame", k, "heartbeat, range, push, pull or tombstone")
}

// numbers returns the body of the response to a range request: the zero range if none can be
// allocated.
func (u *station) numbers() []byte {
	var r Range
	if u.takes.take(time.Now()) {
		if given, err := u.server.config.Duties.Range(); err == nil {
			r = given
		}
	}
	return binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint64(nil, r.First), r.Count)
}

// pull responds with the copy of a session. While too many pulls of the unit are running it
// responds that there is none.
func (u *station) pull(s wire.SessionID, tasks *sync.WaitGroup) {
	select {
	case u.pulls <- struct{}{}:
	default:
		u.queue(appendFrame(nil, kindCopy, s[:]))
		return
	}
	tasks.Go(func() {
		defer func() { <-u.pulls }()
		item, found := u.server.config.Duties.Pull(u.server.ctx, u.unit, s)
		switch {
		case !found:
			u.queue(appendFrame(nil, kindCopy, s[:]))
		case item.Kind == Tombstone:
			u.queue(item.Append(nil))
		default:
			u.queue(item.append(nil, kindCopy))
		}
	})
}
