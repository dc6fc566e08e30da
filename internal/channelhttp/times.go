package channelhttp

import (
	"sync"
	"time"

	"github.com/cohort-tee/cohort/internal/channel"
	"github.com/cohort-tee/cohort/internal/unitauth"
	"github.com/cohort-tee/cohort/internal/wire"
)

// defaultNotAfter is how long after its sending a unit may begin to execute a request,
// where the client sets nothing.
const defaultNotAfter = 30 * time.Second

// leastSpread is the least assumed difference between the clocks of two units.
const leastSpread = 30 * time.Second

// times are the differences of the clocks of units from the client's, as far as it knows
// them. They select the `not after` of attempts and nothing else. It is safe for
// concurrent use.
type times struct {
	mu     sync.Mutex // guards all below
	ahead  map[wire.UnitID]time.Duration
	opener time.Duration // of the unit that opened the newest session
	spread time.Duration // largest difference from that seen
}

// opened notes the authenticated time of a unit that opened a session.
func (t *times) opened(unit wire.UnitID, at, now time.Time) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.opener, t.spread = at.Sub(now), 0
	t.ahead = map[wire.UnitID]time.Duration{unit: t.opener}
}

// noteTime notes the time of a unit, from the unit itself or from a hint. A time that is
// too far off is not used.
func (t *times) noteTime(unit wire.UnitID, at, now time.Time) {
	if unitauth.CheckSkew(at, now) != nil {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if _, known := t.ahead[unit]; !known && len(t.ahead) >= maxUnits {
		return
	}
	if t.ahead == nil {
		t.ahead = map[wire.UnitID]time.Duration{}
	}
	t.ahead[unit] = at.Sub(now)
	t.spread = max(t.spread, (t.ahead[unit] - t.opener).Abs())
}

// notAfter returns the end of an attempt that is bound to a unit, or to none, and may
// take until after that unit's present.
func (t *times) notAfter(unit wire.UnitID, now time.Time, after time.Duration) time.Time {
	t.mu.Lock()
	defer t.mu.Unlock()
	if ahead, known := t.ahead[unit]; known {
		return now.Add(ahead + after)
	}
	after = max(channel.MaxAhead-max(t.spread, leastSpread), defaultNotAfter)
	return now.Add(t.opener + after)
}
