package channelhttp

import (
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cohort-tee/cohort/internal/envelope"
	"github.com/cohort-tee/cohort/internal/testworld"
	"github.com/cohort-tee/cohort/internal/testworld/bubble"
	"github.com/cohort-tee/cohort/internal/wire"
)

// TestUnitKilledUnderWay: one of three units is killed while 1,000 requests are in
// progress; it has already executed half of its own. Calls that may be retried succeed at
// other units, and all others end with an unknown outcome; none is lost silently.
func TestUnitKilledUnderWay(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		const under = 1000
		var arrived sync.WaitGroup
		arrived.Add(under)
		var victim *unit
		m := newHostile(t, behaviour{name: "kills a unit", request: atFirst(func(m *hostile, q carried) said {
			arrived.Done()
			arrived.Wait()
			h := q.header()
			if h.Target != victim.ID() && (h.Target != (wire.UnitID{}) || h.Number%3 != 0) {
				return m.route(q)
			}
			if m.act(); h.Number%2 == 0 {
				m.deliver(victim, q)
			}
			return nobody
		})}, 3)
		m.user("alice", 0)
		m.honest.Store(true)
		for range 3 { // until the client knows all units
			m.mustCall("alice", "safe", "alice begins")
		}
		m.honest.Store(false)
		victim = m.units[0]
		units := m.units[1:]
		m.units = units

		errs, took := make([]error, under), make([]time.Duration, under)
		var all sync.WaitGroup
		for i := range under {
			all.Go(func() {
				begin := time.Now()
				kind := []string{"safe", "marked", "bound"}[i%3]
				errs[i] = m.call("alice", kind, fmt.Sprintf("alice %s %d", kind, i))
				took[i] = time.Since(begin)
			})
		}
		all.Wait()
		unknown := 0
		for i, err := range errs {
			switch {
			case err == nil:
			case i%3 == 2 && errors.Is(err, ErrOutcomeUnknown):
				unknown++
			default:
				t.Errorf("call %d: %v", i, err)
			}
		}
		if unknown < 50 || unknown > under/3 {
			t.Errorf("got %d calls of unknown outcome, want about a third of a third", unknown)
		}
		slices.Sort(took)
		if p99 := took[under*99/100]; p99 > 500*time.Millisecond {
			t.Errorf("got p99 %v, want at most 500ms", p99)
		}
		m.honest.Store(true)
		m.recover("alice")
		m.settle()
	})
}

// roll gives every unit the next ring key, one after another, and relays the sessions that
// they reseal.
func (m *hostile) roll() {
	m.ring.Strict, m.ring.Follow = m.ring.Strict.Rotate(m.clock.Now(), time.Hour), m.ring.Follow.Rotate(m.clock.Now(), time.Hour)
	for _, u := range m.all() {
		testworld.Must(0, u.Update(m.standing(m.keyOf(u.Host), "1")))
		sealed, left, err := u.Reseal(1000, m.clock.Now())
		if err != nil || left > 0 {
			m.T.Errorf("sealing anew: %d left, %v", left, err)
		}
		for _, s := range sealed {
			m.relay(pushed{from: u, kind: envelope.Session, sealed: s})
		}
	}
}

// perRound is the number of calls that a worker of twoAtOnce makes. It is below the width
// of the replay window, so that a worker that is not scheduled for a while does not return
// with a number that a unit refuses as too old.
const perRound = 250

// twoAtOnce makes calls of every kind on one session from two goroutines.
func (m *hostile) twoAtOnce(name string, round int) {
	var both sync.WaitGroup
	for worker := range 2 {
		both.Go(func() {
			for i := range perRound {
				kind := kinds[i%len(kinds)]
				m.mustCall(name, kind, fmt.Sprintf("%s %s %d-%d-%d", name, kind, worker, round, i))
			}
		})
	}
	both.Wait()
}

// TestRingsRollUnderLoad: the ring rolls 100 times under open sessions and new ones. No
// call fails, no session is lost, and no unit opens a session sealed under an erased key.
func TestRingsRollUnderLoad(t *testing.T) {
	rolls := 100
	if testing.Short() {
		rolls = 10
	}
	m := newHostile(t, behaviour{}, 3)
	users := []string{"alice", "bob"}
	for i := range rolls {
		m.user(fmt.Sprint("new", i), 0)
	}
	for _, name := range users {
		m.user(name, 0)
		m.mustCall(name, "safe", name+" begins")
	}
	first, _ := m.history()
	var over atomic.Bool
	var count atomic.Int64
	var load sync.WaitGroup
	for _, name := range users {
		load.Go(func() {
			for round := 0; !over.Load(); round++ {
				m.twoAtOnce(name, round)
				count.Add(2 * perRound)
			}
		})
	}
	for i := range rolls {
		m.roll()
		name := fmt.Sprint("new", i)
		m.mustCall(name, "bound", name+" bound")
	}
	over.Store(true)
	load.Wait()
	for _, name := range users {
		if got := m.users[name].Opens(); got != 1 {
			t.Errorf("%s: got %d sessions, want 1", name, got)
		}
	}
	for _, u := range m.all() {
		m.refuse(u, envelope.Session, first[0].sealed, wire.UnknownRing)
		if got := u.Stats(noon); got.Rings != 6 {
			t.Errorf("got %d ring keys, want previous, current and next of each kind", got.Rings)
		}
	}
	if n := count.Load(); n < int64(rolls) {
		t.Errorf("got %d calls under %d rolls, want load", n, rolls)
	}
	m.settle()
}
