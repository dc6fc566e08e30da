package channelhttp

import (
	"sync"
	"time"

	"github.com/cohort-tee/cohort/internal/channel"
	"github.com/cohort-tee/cohort/internal/unitauth"
	"github.com/cohort-tee/cohort/internal/wire"
)

// defaultNotAfter is the default time from the sending of a request until a unit may begin to
// execute it.
const defaultNotAfter = 30 * time.Second

// leastSpread is the difference that is always assumed between the clocks of two units.
const leastSpread = 30 * time.Second

// times contains the known differences between the clocks of units and the client's clock. They
// affect only the NotAfter of attempts. It is safe for concurrent use.
type times struct {
	mu     sync.Mutex // guards all below
	ahead  map[wire.UnitID]time.Duration
	opener time.Duration // difference of the unit that opened the newest session
	spread time.Duration // largest deviation of a unit from opener
}

// opened records the authenticated time of the unit that opened a session, and drops all other
// times.
func (t *times) opened(unit wire.UnitID, at, now time.Time) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.opener, t.spread = at.Sub(now), 0
	t.ahead = map[wire.UnitID]time.Duration{unit: t.opener}
}

// noteTime records the time of a unit, from the unit itself or from a hint. It ignores a time
// that differs too much from the client's.
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

// notAfter returns the NotAfter of an attempt that is bound to a unit, or to none. If the
// unit's clock is known, it is the unit's time plus after. Otherwise it is the opener's time
// plus [channel.MaxAhead], less the assumed difference of clocks, but at least defaultNotAfter.
func (t *times) notAfter(unit wire.UnitID, now time.Time, after time.Duration) time.Time {
	t.mu.Lock()
	defer t.mu.Unlock()
	if ahead, known := t.ahead[unit]; known {
		return now.Add(ahead + after)
	}
	after = max(channel.MaxAhead-max(t.spread, leastSpread), defaultNotAfter)
	return now.Add(t.opener + after)
}
