package channelhttp

import (
	"bytes"
	"encoding/binary"
	"net/http"
	"slices"
	"time"

	"github.com/cohort-tee/cohort/identity"
	"github.com/cohort-tee/cohort/internal/channel"
	"github.com/cohort-tee/cohort/internal/envelope"
	"github.com/cohort-tee/cohort/internal/testworld"
	"github.com/cohort-tee/cohort/internal/unitauth"
	"github.com/cohort-tee/cohort/internal/wire"
)

func drop(*hostile, pushed) {}

func noCopy(m *hostile, _ wire.SessionID) []byte { m.act(); return nil }

// copyOf returns the pushed copy of a session.
func (m *hostile) copyOf(is func(wire.SessionID) bool) []byte {
	pushes, _ := m.history()
	for _, p := range pushes {
		if u, err := envelope.ParseSealed(envelope.Session, p.sealed); err == nil && is(u.Session) {
			return p.sealed
		}
	}
	return nil
}

// copied is a behaviour that pushes nothing and returns a changed copy to each unit that
// requests one. The ticket replaces it.
func copied(change func(sealed []byte) []byte) behaviour {
	return behaviour{push: drop, pull: func(m *hostile, id wire.SessionID) []byte {
		m.act()
		sealed := change(bytes.Clone(m.copyOf(func(s wire.SessionID) bool { return s == id })))
		if _, err := m.all()[2].ImportSession(sealed, m.clock.Now()); err == nil {
			m.T.Errorf("%s: a unit took it", m.does.name)
		}
		return sealed
	}}
}

func named(name string, b behaviour) behaviour { b.name = name; return b }

// carol opens a session, sends one call, and closes the session.
func (m *hostile) carol() Closed {
	m.honest.Store(true)
	carol := m.user("carol", 0)
	m.mustCall("carol", "bound", "carol's bound call")
	m.honest.Store(false)
	return carol.Close(m.T.Context())
}

// newest returns the newest push of one kind.
func (m *hostile) newest(kind envelope.Kind) []byte {
	pushes, _ := m.history()
	for _, p := range slices.Backward(pushes) {
		if p.kind == kind {
			return p.sealed
		}
	}
	m.T.Fatal("nothing was pushed")
	return nil
}

// sessionOf returns the id of a user's session.
func (m *hostile) sessionOf(user string) wire.SessionID {
	return testworld.Must(m.users[user].Session(m.T.Context())).ID()
}

// ofSessions are the behaviours towards sealed sessions, tombstones and numbers.
var ofSessions = []behaviour{
	{name: "pushes nothing to one unit", push: func(m *hostile, p pushed) {
		m.act()
		others := slices.DeleteFunc(slices.Clone(m.all()), func(u *unit) bool { return u == p.from })
		for _, u := range others[1:] {
			_ = u.take(p, m)
		}
	}, pull: noCopy},
	{name: "pushes nothing and keeps copies", push: drop, pull: func(m *hostile, id wire.SessionID) []byte {
		m.act()
		return m.copyOf(func(s wire.SessionID) bool { return s == id })
	}},
	{name: "pushes nothing and keeps nothing", push: drop, pull: noCopy},
	{name: "pushes everything twice, to all", push: func(m *hostile, p pushed) {
		m.act()
		for range 2 {
			for _, u := range m.all() {
				if err := u.take(p, m); err != nil {
					m.T.Errorf("got %v", err)
				}
			}
		}
	}},
	{name: "pushes late and in another order", push: drop, pull: noCopy, after: func(m *hostile) {
		pushes, _ := m.history()
		for _, p := range slices.Backward(pushes) {
			m.relay(p)
		}
	}},
	named("gives changed copies", copied(func(b []byte) []byte { b[len(b)-1] ^= 1; return b })),
	named("gives copies with a later end", copied(func(b []byte) []byte {
		return inAD(b, 4, func(f []byte) []byte { return wire.Uint64(binary.BigEndian.Uint64(f) + 60) })
	})),
	named("gives copies of another unit", copied(func(b []byte) []byte { return inAD(b, 5, flip) })),
	named("gives copies under another ring", copied(func(b []byte) []byte { return inAD(b, 2, flip) })),
	{name: "gives copies of the other user's session", push: drop, pull: func(m *hostile, id wire.SessionID) []byte {
		m.act()
		return m.copyOf(func(s wire.SessionID) bool { return s != id })
	}},
	{name: "gives a session the id of the other user's", after: func(m *hostile) {
		alice, bob := m.sessionOf("alice"), m.sessionOf("bob")
		sealed := m.copyOf(func(s wire.SessionID) bool { return s == bob })
		m.refuse(m.all()[0], envelope.Session, inAD(sealed, 3, func([]byte) []byte { return alice[:] }), wire.BadSignature)
	}},
	{name: "gives one number to all units", number: func(m *hostile) uint64 { m.act(); return 7 }, after: func(m *hostile) {
		if m.sessionOf("alice") == m.sessionOf("bob") {
			m.T.Error("two sessions with one id")
		}
	}, open: (*hostile).route},
	{name: "gives the numbers at the ends", number: func(m *hostile) uint64 { return -(uint64(m.acts.Add(1)) & 1) }, open: (*hostile).route},
	{name: "relays what the units of another cluster sealed", after: func(m *hostile) {
		foreign := m.foreign()
		for _, p := range foreign.pushes {
			m.refuse(m.all()[0], envelope.Session, p.sealed, wire.UnknownRing)
		}
		pushes, _ := m.history()
		for _, p := range pushes {
			m.refuse(foreign.units[0], envelope.Session, p.sealed, wire.UnknownRing)
		}
	}},
	{name: "brings requests to another cluster", fails: unmarked, opens: many, request: atFirst(func(m *hostile, q carried) said {
		foreign := m.foreign()
		for _, u := range foreign.units {
			q.ticket = m.ticketOf(q.from)
			m.refusal(u, q)
			m.refusal(u, q.with(func(b []byte) { clear(b[33:49]) }))
		}
		return m.refusal(foreign.units[0], q).naming(foreign.units)
	})},
	{name: "keeps sessions beyond their end", opens: 2, after: func(m *hostile) {
		m.clock.Advance(61 * time.Minute)
		for _, u := range m.all() {
			testworld.Must(0, u.Update(m.standing(m.keyOf(u.Host), "1")))
		}
		pushes, asked := m.history()
		for _, u := range m.all() {
			for _, p := range pushes {
				m.refuse(u, p.kind, p.sealed, wire.SessionOver)
			}
			for _, q := range asked {
				m.refusal(u, q)
			}
		}
	}},
	{name: "keeps sessions of an erased ring", opens: 2, after: func(m *hostile) {
		m.ring = identity.Ring{Strict: identity.NewRingKeys(m.clock.Now(), time.Hour), Follow: identity.NewRingKeys(m.clock.Now(), time.Hour)}
		for _, u := range m.all() {
			testworld.Must(0, u.Update(m.standing(m.keyOf(u.Host), "1")))
		}
		pushes, asked := m.history()
		for _, u := range m.all() {
			for _, p := range pushes {
				m.refuse(u, p.kind, p.sealed, wire.UnknownRing)
			}
			for _, q := range asked {
				m.refusal(u, q)
			}
		}
	}},
	{name: "suppresses tombstones", push: func(m *hostile, p pushed) { m.act() }, after: func(m *hostile) {
		closed := m.carol()
		if len(closed.Confirmed) != 3 {
			m.T.Errorf("got %d units that confirmed, want 3", len(closed.Confirmed))
		}
		m.replay()
	}},
	{name: "suppresses the closing of a session", request: func(m *hostile, q carried) said {
		if q.header().Flags&wire.FlagClose == 0 {
			return m.route(q)
		}
		m.act()
		return nobody
	}, after: func(m *hostile) {
		closed := m.carol()
		if len(closed.Confirmed) != 0 || !closed.Others.After(m.clock.Now()) {
			m.T.Errorf("got %+v, want nobody's confirmation", closed)
		}
		m.replay()
	}},
	{name: "gives one unit's confirmation for all", request: func(m *hostile, q carried) said {
		if q.header().Flags&wire.FlagClose == 0 {
			return m.route(q)
		}
		m.act()
		id := m.all()[0].ID()
		return m.deliver(m.all()[0], q.with(func(b []byte) { copy(b[33:], id[:]) }))
	}, after: func(m *hostile) {
		if closed := m.carol(); len(closed.Confirmed) > 1 {
			m.T.Errorf("got %d units that confirmed, want at most the one that did", len(closed.Confirmed))
		}
	}},
	{name: "says in the clear that a session is closed", request: func(m *hostile, q carried) said {
		if q.header().Flags&wire.FlagClose == 0 {
			return m.route(q)
		}
		m.act()
		a := problemOf(http.StatusOK)
		a.fields.Set("Content-Type", wire.TypeResponse)
		a.body = append(bytes.Clone(q.raw[33:49]), make([]byte, 64)...)
		return a
	}, after: func(m *hostile) {
		if closed := m.carol(); len(closed.Confirmed) > 0 {
			m.T.Errorf("got %d units that confirmed, want none", len(closed.Confirmed))
		}
	}},
	{name: "opens again what was closed", after: func(m *hostile) {
		m.carol()
		id := testworld.Must(envelope.ParseSealed(envelope.Tombstone, m.newest(envelope.Tombstone))).Session
		sealed := m.copyOf(func(s wire.SessionID) bool { return s == id })
		_, asked := m.history()
		for _, u := range m.all() {
			m.refuse(u, envelope.Session, sealed, wire.SessionOver)
			for _, q := range asked {
				if q.header().Session == id && q.header().Flags&wire.FlagClose == 0 {
					m.refusal(u, q)
				}
			}
		}
	}},
	{name: "replays a tombstone", after: func(m *hostile) {
		m.carol()
		tombstone := m.newest(envelope.Tombstone)
		for _, u := range append(m.all(), m.start()) {
			m.act()
			if err := u.take(pushed{kind: envelope.Tombstone, sealed: tombstone}, m); err != nil {
				m.T.Errorf("got %v", err)
			}
		}
	}},
	{name: "makes a tombstone one of another session", after: func(m *hostile) {
		m.carol()
		for _, user := range []string{"alice", "bob"} {
			id := m.sessionOf(user)
			b := bytes.Clone(m.newest(envelope.Tombstone))
			closed := testworld.Must(envelope.ParseSealed(envelope.Tombstone, b)).Session
			at := bytes.Index(b, closed[:])
			copy(b[at:], id[:])
			m.refuse(m.all()[0], envelope.Tombstone, b, wire.BadSignature)
		}
	}},
	{name: "makes a tombstone of a sealed session", after: func(m *hostile) {
		sealed := m.newest(envelope.Session)
		m.refuse(m.all()[0], envelope.Tombstone, sealed, wire.Malformed)
		u := testworld.Must(envelope.ParseSealed(envelope.Session, sealed))
		m.refuse(m.all()[0], envelope.Tombstone, envelope.Sealed{AD: u.Header.Encode(envelope.Tombstone), Nonce: u.Nonce, Ciphertext: u.Ciphertext}.Encode(envelope.Tombstone), wire.BadSignature)
		m.refuse(m.all()[0], envelope.Tombstone, envelope.Sealed{AD: u.Header.Encode(envelope.Tombstone), Nonce: u.Nonce, Ciphertext: u.Ciphertext[:16]}.Encode(envelope.Tombstone), wire.BadSignature)
	}},
	{name: "makes a session of a tombstone", after: func(m *hostile) {
		m.carol()
		m.refuse(m.all()[0], envelope.Session, m.newest(envelope.Tombstone), wire.Malformed)
	}},
}

// foreign returns a cluster of the same program under another authority, with a session of
// its own.
func (m *hostile) foreign() *hostile {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.elsewhere == nil {
		f := newHostile(m.T, behaviour{}, 2)
		f.user("dave", 0)
		f.mustCall("dave", "bound", "dave's bound call")
		m.elsewhere = f
	}
	return m.elsewhere
}

// atOnce is a behaviour towards the first open request of each user.
func atOnce(act func(*hostile, carried) said) func(*hostile, carried) said {
	return func(m *hostile, q carried) said {
		if !m.first("open of " + q.from) {
			return m.route(q)
		}
		m.act()
		return act(m, q)
	}
}

// openAnswer changes one field of the first open response to each user.
func openAnswer(field int, change func(m *hostile, q carried, f []byte) []byte) func(*hostile, carried) said {
	return func(m *hostile, q carried) said {
		a := m.route(q)
		if !a.ok() || !m.first("open of "+q.from) {
			return a
		}
		m.act()
		return a.with(func(b []byte) []byte {
			f := testworld.Must(wire.Unframe(wire.LabelSessionResponse, b, 12))
			f[field] = change(m, q, bytes.Clone(f[field]))
			return wire.Frame(wire.LabelSessionResponse, f...)
		})
	}
}

// openRequest changes one field of the first open request of each user.
func openRequest(field int, change func(f []byte) []byte) func(*hostile, carried) said {
	return atOnce(func(m *hostile, q carried) said {
		f := testworld.Must(wire.Unframe(wire.LabelSessionOpen, q.raw, 6))
		f[field] = change(bytes.Clone(f[field]))
		q.raw = wire.Frame(wire.LabelSessionOpen, f...)
		return m.route(q)
	})
}

// ofOpens are the behaviours towards open requests and their responses.
var ofOpens = []behaviour{
	{name: "drops open requests", open: atOnce(func(*hostile, carried) said { return nobody })},
	{name: "drops open answers", open: atOnce(func(m *hostile, q carried) said { m.route(q); return nobody })},
	{name: "sends open requests twice", open: func(m *hostile, q carried) said { m.act(); m.route(q); return m.route(q) }},
	{name: "forges overload at opening", open: atOnce(func(*hostile, carried) said { return problemOf(http.StatusServiceUnavailable) })},
	{name: "forges cookies, always", fails: all, open: func(m *hostile, q carried) said {
		m.act()
		a := problemOf(http.StatusPreconditionRequired)
		a.fields.Set(wire.FieldCookie, "bm90aGluZw")
		return a
	}},
	{name: "swaps open answers", fails: all, open: func(m *hostile, q carried) said {
		a := m.route(q)
		m.mu.Lock()
		theirs := m.opened[other(q.from)]
		m.mu.Unlock()
		if len(theirs) == 0 || !m.first("open of "+q.from) {
			return a
		}
		m.act()
		return theirs[0]
	}},
	{name: "gives the open answer before", fails: all, opens: many, request: atFirst(forged(http.StatusGone)), open: func(m *hostile, q carried) said {
		m.mu.Lock()
		before := m.opened[q.from]
		m.mu.Unlock()
		if len(before) == 0 {
			return m.route(q)
		}
		m.act()
		return before[0]
	}},
	{name: "lets another cluster answer open requests", fails: all, open: atOnce(func(m *hostile, q carried) said {
		f := m.foreign()
		return f.deliver(f.units[0], q.with(func(b []byte) {
			ours, theirs := m.byTask().Genesis, f.byTask().Genesis
			copy(b[bytes.Index(b, ours[:]):], theirs[:])
		}))
	})},
	{name: "puts its own KEM key into open requests", fails: all, open: openRequest(1, func([]byte) []byte {
		return testworld.Must(wire.Unframe(wire.LabelSessionOpen, testworld.Must(channel.NewClientHandshake(unitauth.Pin{Genesis: wire.Sum(nil), Task: "scoring"}, 0)).Request(), 6))[1]
	})},
	{name: "puts its own nonce into open requests", fails: all, open: openRequest(2, flip)},
	{name: "asks for a receipt in the user's name", fails: all, open: openRequest(4, func([]byte) []byte { return []byte{byte(channel.WantReceipts)} })},
	{name: "asks for no evidence in the user's name", wants: channel.WantEvidence, fails: all, open: openRequest(4, func([]byte) []byte { return []byte{0} })},
	{name: "takes the evidence out of open answers", wants: channel.WantEvidence, fails: all, open: openAnswer(9, func(*hostile, carried, []byte) []byte { return nil })},
	{name: "changes the ticket in open answers", fails: all, open: openAnswer(10, func(_ *hostile, _ carried, f []byte) []byte { return flip(f) })},
	{name: "changes the expiry in open answers", fails: all, open: openAnswer(6, func(_ *hostile, _ carried, f []byte) []byte { return wire.Uint64(binary.BigEndian.Uint64(f) - 60) })},
	{name: "changes the session id in open answers", fails: all, open: openAnswer(1, func(_ *hostile, _ carried, f []byte) []byte { f[0] ^= 1; return f })},
	{name: "names another unit in open answers", fails: all, open: openAnswer(2, func(m *hostile, _ carried, f []byte) []byte {
		for _, u := range m.all() {
			if id := u.ID(); !bytes.Equal(id[:], f) {
				return id[:]
			}
		}
		return f
	})},
	{name: "answers with another unit's chain", fails: all, open: openAnswer(7, func(m *hostile, _ carried, f []byte) []byte {
		for _, u := range m.all() {
			if chain := m.chainOf(u.Host); !bytes.Equal(chain, f) {
				return chain
			}
		}
		return f
	})},
}
