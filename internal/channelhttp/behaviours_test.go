package channelhttp

import (
	"bytes"
	"encoding/base64"
	"encoding/binary"
	"math/rand/v2"
	"net/http"
	"sync"
	"time"

	"github.com/cohort-tee/cohort/internal/testworld"
	"github.com/cohort-tee/cohort/internal/wire"
)

// atFirst is a behaviour towards the first attempt of each call. It leaves later attempts
// alone, so calls that may be retried must succeed in the end.
func atFirst(act func(*hostile, carried) said) func(*hostile, carried) said {
	return func(m *hostile, q carried) said {
		if q.try != 1 {
			return m.route(q)
		}
		return act(m, q)
	}
}

// changed is a behaviour that delivers a changed request to a unit, which must refuse it.
func changed(change func(m *hostile, q carried) func([]byte)) func(*hostile, carried) said {
	return atFirst(func(m *hostile, q carried) said {
		return m.refusal(m.another(q), q.with(change(m, q)))
	})
}

// altered changes some bytes of the header, and delivers the request to the unit that it is
// bound to.
func altered(change func(b []byte)) func(*hostile, carried) said {
	return atFirst(func(m *hostile, q carried) said {
		m.act()
		a := m.route(q.with(change))
		if a.ok() {
			m.T.Errorf("%s: a unit answered to it", m.does.name)
		}
		return a
	})
}

// ofRequests are the behaviours towards requests in progress.
var ofRequests = []behaviour{
	{name: "drops requests", fails: unmarked, request: atFirst(func(m *hostile, q carried) said { m.act(); return nobody })},
	{name: "drops answers", fails: unmarked, request: atFirst(func(m *hostile, q carried) said { m.act(); m.route(q); return nobody })},
	{name: "sends every request twice", request: func(m *hostile, q carried) said {
		m.act()
		a := m.route(q)
		m.route(q)
		return a
	}},
	{name: "sends every request twice and gives the second answer", fails: unmarked, request: atFirst(func(m *hostile, q carried) said {
		m.act()
		m.route(q)
		return m.route(q)
	})},
	{name: "sends every request twice at once", fails: unmarked, request: atFirst(func(m *hostile, q carried) said {
		m.act()
		var answers [2]said
		var both sync.WaitGroup
		for i := range answers {
			both.Go(func() { answers[i] = m.route(q) })
		}
		both.Wait()
		if q.header().Target != (wire.UnitID{}) && answers[0].ok() && answers[1].ok() {
			m.T.Error("a unit answered to both copies")
		}
		return answers[0]
	})},
	{name: "reorders requests and answers", request: func(m *hostile, q carried) said {
		m.act()
		time.Sleep(time.Duration(q.header().Number*7%11) * time.Millisecond)
		a := m.route(q)
		time.Sleep(time.Duration(q.header().Number*5%13) * time.Millisecond)
		return a
	}},
	{name: "drops, doubles and reorders three of ten", fails: all, request: func(m *hostile, q carried) said {
		m.act()
		dice := rand.New(rand.NewPCG(q.header().Number, uint64(q.raw[24])))
		if dice.IntN(10) < 3 {
			time.Sleep(time.Duration(dice.IntN(50)) * time.Millisecond)
		}
		if dice.IntN(10) < 3 {
			m.route(q)
		}
		a := m.route(q)
		if dice.IntN(10) < 3 {
			return nobody
		}
		return a
	}},
	{name: "delays a request beyond its end", fails: unmarked, request: atFirst(func(m *hostile, q carried) said {
		if q.header().Target != (wire.UnitID{}) && m.first(q.from) {
			m.act()
			m.clock.Advance(defaultNotAfter + time.Second)
		}
		return m.route(q)
	})},
	{name: "gives every request to all units at once", request: func(m *hostile, q carried) said {
		m.act()
		var mu sync.Mutex
		var answer said
		var all sync.WaitGroup
		for _, u := range m.all() {
			all.Go(func() {
				a := m.deliver(u, q)
				mu.Lock()
				defer mu.Unlock()
				if answer.status == 0 || a.ok() {
					answer = a
				}
			})
		}
		all.Wait()
		return answer
	}},
	{name: "brings bound requests to the wrong unit", fails: unmarked, request: atFirst(func(m *hostile, q carried) said {
		if q.header().Target == (wire.UnitID{}) {
			return m.route(q)
		}
		return m.refusal(m.another(q), q)
	})},
	{name: "replays everything at the end", after: (*hostile).replay},
	{name: "replays everything ten minutes later", after: func(m *hostile) {
		m.clock.Advance(10 * time.Minute)
		m.replay()
	}},
	{name: "replays everything to a unit that restarted", after: func(m *hostile) {
		m.mu.Lock()
		m.units = m.units[1:]
		m.mu.Unlock()
		u := m.start()
		_, asked := m.history()
		for _, q := range asked {
			q.ticket = m.ticketOf(q.from)
			if a := m.deliver(u, q); a.ok() && q.header().Target != (wire.UnitID{}) {
				m.T.Error("a restarted unit answered to what was bound to the one before")
			}
			if q.header().Target != (wire.UnitID{}) {
				m.refusal(u, q.with(func(b []byte) { id := u.ID(); copy(b[33:], id[:]) }))
			}
		}
	}},
	{name: "sends the other user's request instead", fails: unmarked, request: atFirst(func(m *hostile, q carried) said {
		_, asked := m.history()
		for _, theirs := range asked {
			if theirs.from == other(q.from) {
				m.act()
				return m.route(theirs)
			}
		}
		return m.route(q)
	})},
	{name: "names the other user's session", fails: unmarked, request: changed(func(m *hostile, q carried) func([]byte) {
		_, asked := m.history()
		return func(b []byte) {
			clear(b[33:49])
			for _, theirs := range asked {
				if theirs.from == other(q.from) {
					copy(b[1:25], theirs.raw[1:25])
				}
			}
		}
	})},
	{name: "binds requests to another unit", fails: unmarked, request: changed(func(m *hostile, q carried) func([]byte) {
		return func(b []byte) { id := m.another(q).ID(); copy(b[33:], id[:]) }
	})},
	{name: "unbinds requests", fails: unmarked, request: atFirst(func(m *hostile, q carried) said {
		if q.header().Target == (wire.UnitID{}) {
			return m.route(q)
		}
		return m.refusal(m.another(q), q.with(func(b []byte) { clear(b[33:49]) }))
	})},
	{name: "asks to close the session in the user's name", fails: unmarked, request: altered(func(b []byte) { b[57] |= byte(wire.FlagClose) })},
	{name: "lengthens the time of requests", fails: unmarked, request: altered(func(b []byte) {
		binary.BigEndian.PutUint64(b[49:], binary.BigEndian.Uint64(b[49:])+30_000)
	})},
	{name: "gives requests a number far ahead", fails: unmarked, request: altered(func(b []byte) { b[25+4] ^= 1 })},
	{name: "cuts requests in half", fails: unmarked, request: atFirst(func(m *hostile, q carried) said {
		m.act()
		q.raw = q.raw[:len(q.raw)/2]
		return m.route(q)
	})},
	{name: "cuts the last chunk off a request", fails: unmarked, request: ofStreams(func(chunks [][]byte) [][]byte { return chunks[:len(chunks)-1] })},
	{name: "calls an inner chunk of a request the final one", fails: unmarked, request: ofStreams(func(chunks [][]byte) [][]byte {
		chunks[0][0] |= 0x80
		return chunks[:1]
	})},
	{name: "repeats a chunk of a request", fails: unmarked, request: ofStreams(func(chunks [][]byte) [][]byte {
		return append([][]byte{chunks[0], chunks[0]}, chunks[1:]...)
	})},
	{name: "adds bytes to a request", fails: unmarked, request: atFirst(func(m *hostile, q carried) said {
		m.act()
		q.raw = append(bytes.Clone(q.raw), 0, 0, 0, 0)
		return m.route(q)
	})},
	{name: "swaps tickets", fails: all, opens: many, push: drop, pull: noCopy, request: func(m *hostile, q carried) said {
		m.mu.Lock()
		theirs := m.opened[other(q.from)]
		m.mu.Unlock()
		if q.ticket != "" && len(theirs) > 0 {
			m.act()
			q.ticket = base64.RawURLEncoding.EncodeToString(testworld.Must(wire.Unframe(wire.LabelSessionResponse, theirs[0].body, 12))[10])
		}
		return m.route(q)
	}},
}

// ofStreams is a behaviour that changes the chunks of requests with several chunks.
func ofStreams(change func([][]byte) [][]byte) func(*hostile, carried) said {
	return atFirst(func(m *hostile, q carried) said {
		q.raw = bytes.Clone(q.raw)
		chunks := chunksOf(q.raw, wire.HeaderSize)
		if len(chunks) < 2 {
			return m.route(q)
		}
		m.act()
		q.raw = rechunked(q.raw, wire.HeaderSize, change(chunks)...)
		return m.route(q)
	})
}

// given is a behaviour that forwards requests and changes the responses.
func given(change func(m *hostile, q carried, a said) said) func(*hostile, carried) said {
	return atFirst(func(m *hostile, q carried) said {
		a := m.route(q)
		if !a.ok() {
			return a
		}
		m.act()
		return change(m, q, a)
	})
}

// rewritten changes the bytes of responses.
func rewritten(change func(b []byte) []byte) func(*hostile, carried) said {
	return given(func(_ *hostile, _ carried, a said) said { return a.with(change) })
}

// ofLong changes the chunks of responses with several chunks. The client has read the head
// of such a response by then, so no other attempt follows.
func ofLong(change func([][]byte) [][]byte) func(*hostile, carried) said {
	return func(m *hostile, q carried) said {
		a := m.route(q)
		if !a.ok() || len(chunksOf(a.body, answerPrefix)) < 3 {
			return a
		}
		m.act()
		return a.with(func(b []byte) []byte { return rechunked(b, answerPrefix, change(chunksOf(b, answerPrefix))...) })
	}
}

// ofAnswers are the behaviours towards responses.
var ofAnswers = []behaviour{
	{name: "gives the other user's answer", fails: unmarked, request: given(func(m *hostile, q carried, a said) said {
		m.mu.Lock()
		defer m.mu.Unlock()
		return m.last[other(q.from)]
	})},
	{name: "gives the answer before", fails: unmarked, request: given(func(m *hostile, q carried, a said) said {
		m.mu.Lock()
		defer m.mu.Unlock()
		return m.last[q.from]
	})},
	{name: "gives an answer of ten minutes ago", fails: unmarked, request: given(func(m *hostile, q carried, a said) said {
		if m.first("pass") {
			m.clock.Advance(10 * time.Minute)
		}
		m.mu.Lock()
		defer m.mu.Unlock()
		return m.last[q.from]
	})},
	{name: "gives answers twice in one", fails: all, request: rewritten(func(b []byte) []byte { return append(b, b...) })},
	{name: "gives answers without an end", fails: all, request: rewritten(func(b []byte) []byte { return b[:len(b)-1] })},
	{name: "gives nothing but the head of answers", fails: unmarked, request: rewritten(func(b []byte) []byte { return b[:answerPrefix] })},
	{name: "gives empty answers", fails: unmarked, request: rewritten(func([]byte) []byte { return nil })},
	{name: "says that another unit answered", fails: unmarked, request: given(func(m *hostile, q carried, a said) said {
		return a.with(func(b []byte) []byte {
			for _, u := range m.all() {
				if id := u.ID(); !bytes.Equal(b[:16], id[:]) {
					copy(b, id[:])
					break
				}
			}
			return b
		})
	})},
	{name: "changes the nonce of answers", fails: unmarked, request: rewritten(func(b []byte) []byte { b[16] ^= 1; return b })},
	{name: "changes the last byte of answers", fails: all, request: rewritten(func(b []byte) []byte { b[len(b)-1] ^= 1; return b })},
	{name: "answers in the clear", fails: unmarked, request: given(func(m *hostile, q carried, a said) said {
		return a.with(func([]byte) []byte { return []byte("\x00\x01\x40\xc8\x00ran what you like") })
	})},
	{name: "answers as plain HTTP", fails: unmarked, request: given(func(m *hostile, q carried, a said) said {
		a = a.with(func([]byte) []byte { return []byte("ran what you like") })
		a.fields.Set("Content-Type", "text/plain")
		return a
	})},
	{name: "sends elsewhere", fails: unmarked, request: given(func(m *hostile, q carried, a said) said {
		a.status = http.StatusTemporaryRedirect
		a.fields.Set("Location", "https://elsewhere.example/")
		return a
	})},
	{name: "breaks off between chunks", fails: all, request: ofLong(func(c [][]byte) [][]byte { return c[:len(c)-1] })},
	{name: "leaves a chunk out", fails: all, request: ofLong(func(c [][]byte) [][]byte { return append(c[:1:1], c[2:]...) })},
	{name: "swaps two chunks", fails: all, request: ofLong(func(c [][]byte) [][]byte { c[0], c[1] = c[1], c[0]; return c })},
	{name: "repeats a chunk", fails: all, request: ofLong(func(c [][]byte) [][]byte { return append([][]byte{c[0], c[1]}, c[1:]...) })},
	{name: "ends an answer with an inner chunk", fails: all, request: ofLong(func(c [][]byte) [][]byte { c[1][0] |= 0x80; return c[:2] })},
}

// forged is a behaviour that responds by itself, without authentication by any unit.
func forged(status int) func(*hostile, carried) said {
	return func(m *hostile, q carried) said {
		m.act()
		if q.try > 1+maxOthers {
			m.T.Errorf("attempt %d of one call", q.try)
		}
		return problemOf(status)
	}
}

// ofHints are false statements of a manager that a client cannot check.
var ofHints = []behaviour{
	{name: "forges rekey", fails: unmarked, opens: many, request: atFirst(forged(http.StatusGone))},
	{name: "forges rekey, always", fails: all, opens: many, request: forged(http.StatusGone)},
	{name: "forges misdirected", fails: unmarked, request: atFirst(forged(http.StatusMisdirectedRequest))},
	{name: "forges misdirected, always", fails: all, request: forged(http.StatusMisdirectedRequest)},
	{name: "forges ticket wanted", fails: unmarked, request: atFirst(forged(http.StatusPreconditionRequired))},
	{name: "forges ticket wanted, always", fails: all, opens: many, request: forged(http.StatusPreconditionRequired)},
	{name: "forges replayed", fails: unmarked, request: atFirst(forged(http.StatusConflict))},
	{name: "forges overload", fails: unmarked, request: atFirst(forged(http.StatusServiceUnavailable))},
	{name: "forges overload, always", fails: all, request: forged(http.StatusServiceUnavailable)},
	{name: "executes, and says that nobody did", fails: unmarked, request: atFirst(func(m *hostile, q carried) said {
		m.route(q)
		return forged(http.StatusServiceUnavailable)(m, q)
	})},
	{name: "executes, and says that it was the wrong unit", fails: unmarked, request: atFirst(func(m *hostile, q carried) said {
		m.route(q)
		return forged(http.StatusMisdirectedRequest)(m, q)
	})},
	{name: "names units that do not exist", fails: unmarked, request: func(m *hostile, q carried) said {
		m.act()
		a := m.route(q)
		a.fields.Set(wire.FieldUnits, "0123456789abcdef0123456789abcdef, nonsense, ,00")
		return a
	}},
	{name: "names one unit only", request: func(m *hostile, q carried) said {
		m.act()
		return m.route(q).naming(m.all()[:1])
	}},
	{name: "names nobody", request: func(m *hostile, q carried) said {
		m.act()
		a := m.route(q)
		a.fields.Del(wire.FieldUnits)
		return a
	}},
}
