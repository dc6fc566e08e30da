package channel

import (
	"crypto/rand"
	"crypto/sha256"
	"hash"
	"io"
	"time"

	"github.com/cohort-tee/cohort/internal/wire"
)

// inbound is one request as a unit serves it.
type inbound struct {
	host     *Host
	standing *standing
	header   wire.Header
	raw      [wire.HeaderSize]byte
	keys     *keys
	source   *source
	first    []byte    // plaintext of the first chunk
	closed   bool      // the session was, and that is all there is to say
	said     hash.Hash // of the request's plaintext; nil when no receipt is wanted
}

// begin finds the session of a request. Nothing of the request is authenticated
// yet. It refuses with "misdirected" a request bound to another unit, with
// "ticket-wanted" a session that the unit does not hold, and with "rekey" one
// that was closed. Whoever asks to close that may be told that it is.
func (h *Host) begin(raw [wire.HeaderSize]byte, at time.Time) (*inbound, error) {
	header, err := wire.ParseHeader(raw[:])
	if err != nil {
		return nil, err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	at = h.at(at)
	h.expire(at)
	st, err := h.serving(at)
	if err != nil {
		return nil, err
	}
	if header.Target != (wire.UnitID{}) && header.Target != h.id {
		return nil, wire.Refuse(wire.Misdirected, "request: unit", header.Target, h.id)
	}
	s := h.table.byID[header.Session]
	switch {
	case s == nil, s.state == dropped:
		return nil, wire.Refuse(wire.TicketWanted, "request: session", header.Session, "one that the unit holds")
	case s.confirms(header):
		return &inbound{host: h, standing: st, header: header, raw: raw, keys: newKeys(&s.secret), closed: true}, nil
	case s.state == closed:
		return nil, wire.Refuse(wire.Rekey, "request: session", header.Session, "one that is open")
	}
	return &inbound{host: h, standing: st, header: header, raw: raw, keys: newKeys(&s.secret)}, nil
}

// open authenticates the request by its first chunk and takes its number. It
// refuses with "replayed" a number seen before, or too old to tell; nothing
// authenticated is answered to that, since the first copy may be executed.
func (x *inbound) open(r io.Reader) error {
	aead, err := x.keys.message(wire.LabelRequestKey, x.raw[:])
	if err != nil {
		return err
	}
	x.source = newSource(r, aead, &x.host.chunks)
	if x.header.Flags&wire.FlagReceipt != 0 {
		x.said = sha256.New()
		x.source.copy = x.said
	}
	first, err := x.source.next()
	if err != nil {
		return err
	}
	if x.whole() {
		// HTTP/1.1 closes a request's body when its answer begins, so what
		// follows the final chunk is looked for before the app can begin one.
		if _, _, err := x.source.opener.next(); err != io.EOF {
			return err
		}
	}
	x.first = first
	h := x.host
	h.mu.Lock()
	defer h.mu.Unlock()
	s := h.table.byID[x.header.Session]
	if s.confirms(x.header) { // another unit's tombstone came while the request was read
		x.keys, x.closed = newKeys(&s.secret), true
		return nil
	}
	if s == nil || s.state != open {
		return wire.Refuse(wire.Rekey, "request: session", x.header.Session, "one that is open")
	}
	if !s.window.take(x.header.Number) {
		return wire.Refuse(wire.Replayed, "request: number", x.header.Number, "one not seen before")
	}
	return nil
}

// whole reports whether the final chunk of the request was read.
func (x *inbound) whole() bool { return x.source.opener.done() }

// late reports whether the request must not be executed any more.
func (x *inbound) late(at time.Time) bool {
	x.host.mu.Lock()
	defer x.host.mu.Unlock()
	return x.host.at(at).After(x.header.NotAfter)
}

// close ends the session and gives the tombstone for all other units; none where
// another unit has ended it.
func (x *inbound) close() ([]byte, error) {
	h := x.host
	h.mu.Lock()
	defer h.mu.Unlock()
	s := h.table.byID[x.header.Session]
	if s.confirms(x.header) {
		x.keys = newKeys(&s.secret)
		return nil, nil
	}
	if s == nil || s.state != open {
		return nil, wire.Refuse(wire.Rekey, "request: session", x.header.Session, "one that is open")
	}
	r := h.standing.newer(s.ring)
	b := bound{identity: h.standing.Identity, ring: r.key.ID(), session: s.id, expiry: s.expiry, sealer: h.id}
	s.close()
	x.keys = newKeys(&s.secret)
	return r.seal(sealedTombstone, b, nil)
}

// answerSealer gives what stands before the chunks of the answer, and what
// encrypts them.
func (x *inbound) answerSealer() (prefix [answerPrefix]byte, s *sealer, err error) {
	copy(prefix[:], x.host.id[:])
	rand.Read(prefix[16:]) // never returns an error: it ends the program instead
	aead, err := x.keys.message(wire.LabelAnswerKey, x.raw[:], prefix[:16], prefix[16:])
	return prefix, &sealer{aead: aead}, err
}

// plain is a whole answer without content: not executed with a reason, or
// closed.
func (x *inbound) plain(kind byte, reason wire.Reason) ([]byte, error) {
	prefix, s, err := x.answerSealer()
	if err != nil {
		return nil, err
	}
	b := append(make([]byte, lengthSize), kind)
	b = pad(append(b, reason...), lengthSize)
	return append(prefix[:], s.seal(b, final)...), nil
}
