package channel

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"hash"
	"io"
	"time"

	"github.com/cohort-tee/cohort/internal/bhttp"
	"github.com/cohort-tee/cohort/internal/chunk"
	"github.com/cohort-tee/cohort/internal/envelope"
	"github.com/cohort-tee/cohort/internal/unitauth"
	"github.com/cohort-tee/cohort/internal/wire"
)

// ServerRequest is a request in a session at the unit that serves it. [Host.Open] makes it,
// [ServerRequest.Authenticate] follows, then one response. Only one goroutine may use it at a time.
type ServerRequest struct {
	host        *Host
	credentials *credentials
	header      wire.Header
	raw         [wire.HeaderSize]byte
	body        io.Reader // the bytes after the header
	keys        *keys
	source      *chunk.Plaintext
	first       []byte     // plaintext of the first chunk
	head        bhttp.Head // head in first; zero if fault is set
	rest        []byte     // bytes of first after the head
	fault       error      // set if the head is malformed
	clock       func() (time.Time, error)
	at          time.Time // unit's time when the number was taken
	closed      bool      // the session is closed: the only response confirms that
	headToSend  []byte    // proved policy head to send with the response; empty: no head
	digest      hash.Hash // hash of the request's plaintext; nil when no receipt is wanted
}

// Open finds the session of a request by the request's header. It does not authenticate the
// request and does not read body. Open refuses with "misdirected" a request bound to a different
// unit, with "ticket-wanted" a session that the unit does not have, and with "rekey" a session
// that was closed, unless the request itself closes the session: see [ServerRequest.Closed].
func (h *Host) Open(header [wire.HeaderSize]byte, body io.Reader, at time.Time) (*ServerRequest, error) {
	x, err := h.findSession(header, at)
	if err != nil {
		return nil, err
	}
	x.body = body
	return x, nil
}

// findSession implements [Host.Open] for a request without its body.
func (h *Host) findSession(raw [wire.HeaderSize]byte, at time.Time) (*ServerRequest, error) {
	header, err := wire.ParseHeader(raw[:])
	if err != nil {
		return nil, err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	at = h.advanceClock(at)
	h.table.expire(at)
	st, err := h.serving(at)
	if err != nil {
		return nil, err
	}
	if header.Target != (wire.UnitID{}) && header.Target != h.id {
		return nil, wire.Refuse(wire.Misdirected, "request: unit", header.Target, h.id)
	}
	x := &ServerRequest{host: h, credentials: st, header: header, raw: raw, at: at}
	if over, err := x.checkClosed(); over || err != nil {
		return x, err
	}
	s := h.table.byID[header.Session]
	if s == nil || s.state == dropped {
		return nil, wire.Refuse(wire.TicketWanted, "request: session", header.Session, "a session of the unit")
	}
	x.keys = newKeys(&s.secret)
	return x, nil
}

// checkClosed reports whether the session is closed and the request asks to close it. It refuses,
// with "rekey", any other request in a closed session. The caller holds the mutex of the host.
func (x *ServerRequest) checkClosed() (bool, error) {
	key, known := x.host.table.closed(x.header.Session)
	if !known {
		return false, nil
	}
	if x.header.Flags&wire.FlagClose == 0 || *key == [secretSize]byte{} {
		return false, wire.Refuse(wire.Rekey, "request: session", x.header.Session, "an open session")
	}
	x.keys, x.closed = newKeys(key), true
	return true, nil
}

// Authenticate authenticates the request by its first chunk and takes its number. clock returns
// the unit's time. newest is the newest proved policy head; the response carries it if no
// response in the session has carried it before: see [ServerRequest.HeadToSend].
//
// It refuses with "not-allowed" a request that is not safe and bound to no unit, with "expired"
// a request that is late or whose end is too far ahead, and with "replayed" a number that was
// seen before or is too old to be known. After these refusals the caller sends no authenticated
// response, because a second delivery of the same request may be executed.
func (x *ServerRequest) Authenticate(newest []byte, clock func() (time.Time, error)) error {
	x.headToSend = newest
	return x.openFirst(x.body, clock)
}

// Closed reports whether the session is closed: then [ServerRequest.ConfirmClose] is the
// only response.
func (x *ServerRequest) Closed() bool { return x.closed }

// Closes reports whether the request asks to close its session.
func (x *ServerRequest) Closes() bool { return x.header.Flags&wire.FlagClose != 0 }

// HeadToSend returns the proved policy head to send with the response, or nothing if there is
// none to send.
func (x *ServerRequest) HeadToSend() []byte { return x.headToSend }

// TakenAt returns the unit's time at which the number was taken or refused.
func (x *ServerRequest) TakenAt() time.Time { return x.at }

// Caller returns the sender of the request.
func (x *ServerRequest) Caller() Caller {
	return Caller{Unit: x.host.id, session: x.header.Session}
}

// RequestHead returns the head of the request. It refuses, with "malformed", a request whose
// first chunk contains no complete head.
func (x *ServerRequest) RequestHead() (bhttp.Head, error) { return x.head, x.fault }

// Plaintext returns the rest of the first chunk after the head, and the chunks after it.
func (x *ServerRequest) Plaintext() (rest []byte, next bhttp.Chunks) { return x.rest, x.source }

// openFirst authenticates the request by its first chunk and takes its number. clock returns
// the unit's time.
func (x *ServerRequest) openFirst(r io.Reader, clock func() (time.Time, error)) error {
	aead, err := x.keys.message(wire.LabelRequestKey, x.raw[:])
	if err != nil {
		return err
	}
	x.source = chunk.NewPlaintext(r, aead, &x.host.chunks)
	if x.header.Flags&wire.FlagReceipt != 0 {
		x.digest = sha256.New()
		x.source.Copy = x.digest
	}
	first, err := x.source.Next()
	if err != nil {
		return err
	}
	if x.Whole() {
		// Look for bytes after the final chunk now: with HTTP/1.1, net/http closes the
		// request's body when the app begins the response.
		if _, err := x.source.Next(); err != io.EOF {
			return err
		}
	}
	x.first, x.clock = first, clock
	if x.header.Flags&wire.FlagClose == 0 {
		x.head, x.rest, x.fault = bhttp.ParseRequest(first, bhttp.Whole)
	}
	return x.takeNumber()
}

// takeNumber takes the request's number and reads the time in one step under the mutex.
// Otherwise the session could leave the table between the two, and the number could be taken
// again. It refuses as [ServerRequest.Authenticate] does.
func (x *ServerRequest) takeNumber() error {
	h := x.host
	h.mu.Lock()
	defer h.mu.Unlock()
	now, err := x.clock()
	if err != nil {
		return err
	}
	x.at = h.advanceClock(now)
	h.table.expire(x.at)
	if err := h.known.cutOff(h.credentials, x.at); err != nil { // a new policy may have arrived since Open
		return err
	}
	if over, err := x.checkClosed(); over || err != nil { // a tombstone may have arrived since Open
		return err
	}
	s := h.table.byID[x.header.Session]
	if s == nil || s.state != open {
		return wire.Refuse(wire.Rekey, "request: session", x.header.Session, "one that is open")
	}
	if x.header.Target == (wire.UnitID{}) && x.fault == nil && !IsSafe(x.head.Method) {
		return wire.Refuse(wire.NotAllowed, "request: method, bound to no unit", x.head.Method, "a safe method, or a request bound to a unit")
	}
	notAfter := x.header.NotAfter.UnixMilli()
	if err := inTime(notAfter, x.at, s.expiry); err != nil {
		return err
	}
	if !s.window.takeNumber(x.header.Number) {
		return wire.Refuse(wire.Replayed, "request: number", x.header.Number, "a number not seen before")
	}
	h.table.touch(s, notAfter)
	if s.sentHead == headStart(x.headToSend) {
		x.headToSend = nil
	} else {
		s.sentHead = headStart(x.headToSend)
	}
	return nil
}

// inTime refuses, with "expired", a request that is late. It also refuses a request whose not
// after is more than 2 minutes ahead or after the session's expiry: the unit does not remember
// the request's number that long.
func inTime(notAfter int64, at time.Time, expiry uint64) error {
	latest := min(at.Add(MaxAhead).UnixMilli(), int64(expiry)*1000)
	if passed(at, notAfter) || notAfter > latest {
		return wire.Refuse(wire.Expired, "request: not after", notAfter, fmt.Sprintf("%d to %d, Unix milliseconds", at.UnixMilli(), latest))
	}
	return nil
}

// Whole reports whether the final chunk of the request was read.
func (x *ServerRequest) Whole() bool { return x.source.Done() }

// Empty reports whether the request contains nothing but padding.
func (x *ServerRequest) Empty() bool {
	return x.Whole() && len(bytes.TrimRight(x.first, "\x00")) == 0
}

// Close closes the session and returns the tombstone for all other units. It returns nil if
// another unit has already closed the session, if no other unit has it, or if its ring key is
// older than a cut-off.
func (x *ServerRequest) Close() ([]byte, error) {
	h := x.host
	h.mu.Lock()
	defer h.mu.Unlock()
	if over, err := x.checkClosed(); over || err != nil {
		return nil, err
	}
	s := h.table.byID[x.header.Session]
	if s == nil || s.state != open {
		return nil, wire.Refuse(wire.Rekey, "request: session", x.header.Session, "one that is open")
	}
	var r *ring
	var err error
	sealed := !s.alone && !h.known.old[s.ring]
	if sealed {
		if r, err = h.credentials.newerRing(s.ring); err != nil {
			return nil, err
		}
		sealed = !h.known.old[r.key.ID()]
	}
	closing := closeKey(&s.secret)
	x.keys = newKeys(&closing)
	h.table.terminate(s, h.newest.Add(MaxAhead).UnixMilli(), h.newest)
	if !sealed {
		return nil, nil
	}
	return r.sealMessage(envelope.Tombstone, r.header(s, h.id), nil)
}

// responseWriter returns the bytes before the chunks of the response, and the writer that
// encrypts the chunks.
func (x *ServerRequest) responseWriter() (prefix [responsePrefix]byte, s *chunk.Writer, err error) {
	copy(prefix[:], x.host.id[:])
	rand.Read(prefix[16:]) // never returns an error: it ends the program instead
	aead, err := x.keys.message(wire.LabelResponseKey, x.raw[:], prefix[:16], prefix[16:])
	return prefix, chunk.NewWriter(aead), err
}

// responsePrefix returns the start of a response's plaintext: its kind and the unit's time.
func (x *ServerRequest) responsePrefix(kind ResponseKind) []byte {
	return append([]byte{byte(kind)}, unitauth.TimeBytes(x.unitTime())...)
}

// unitTime returns the unit's time or, if the clock returns an error, the time at which the
// number was taken.
func (x *ServerRequest) unitTime() time.Time {
	if x.clock != nil {
		if now, err := x.clock(); err == nil {
			return now
		}
	}
	return x.at
}

// NotExecuted returns a whole response which states, with a reason, that the unit has not
// executed the request and will not execute it.
func (x *ServerRequest) NotExecuted(reason wire.Reason) ([]byte, error) {
	return x.responseWithoutContent(KindNotExecuted, reason)
}

// ConfirmClose returns a whole response which states that the session is closed at this unit.
func (x *ServerRequest) ConfirmClose() ([]byte, error) {
	return x.responseWithoutContent(KindClosed, "")
}

// responseWithoutContent returns a whole response of a kind that has no content.
func (x *ServerRequest) responseWithoutContent(kind ResponseKind, reason wire.Reason) ([]byte, error) {
	prefix, s, err := x.responseWriter()
	if err != nil {
		return nil, err
	}
	b := append(make([]byte, chunk.LengthSize), x.responsePrefix(kind)...)
	b = chunk.PadToBucket(append(b, reason...), chunk.LengthSize)
	return append(prefix[:], s.SealChunk(b, chunk.Final)...), nil
}

// Caller describes the sender of a request in a session to the app.
type Caller struct {
	Unit    wire.UnitID // unit that serves the request
	session wire.SessionID
}

// SessionTag returns a tag, 32 hexadecimal digits, that is the same for all requests of one
// session, at every unit, and differs between sessions. It is no secret: every intermediary can
// compute it.
func (c Caller) SessionTag() string {
	digest := wire.Sum(c.session[:])
	return hex.EncodeToString(digest[:16])
}
