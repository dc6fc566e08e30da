package identity

import (
	"math/bits"
	"time"

	"github.com/cohort-tee/cohort/internal/wire"
)

// lastTime bounds times so that their nanoseconds since the Unix epoch fit the
// arithmetic below.
var lastTime = time.Date(2200, 1, 1, 0, 0, 0, 0, time.UTC)

// window is one period of leaf certificates with lifetime L. Window k begins at 2kL/3 since
// the Unix epoch and is served until the next begins; its leaf is valid from 60 s before its
// begin until L after. So a unit that cannot renew for L/4 still has a valid leaf.
type window struct {
	index    uint64
	begin    time.Time
	next     time.Time // begin of window index+1
	lifetime time.Duration
}

// windowAt returns the window ⌊3t/2L⌋, the same for all callers at time t. It refuses a
// lifetime outside the limits with "policy" and a time before 1970 or after 2200 with "clock".
func windowAt(lifetime time.Duration, t time.Time) (window, error) {
	if lifetime < wire.MinLifetime || lifetime > wire.MaxLifetime {
		return window{}, wire.Refuse(wire.BadPolicy, "window: certificate lifetime", lifetime, "3s to 24h")
	}
	if t.Unix() < 0 || t.After(lastTime) {
		return window{}, wire.Refuse(wire.ClockSkew, "window: time", t.UTC(), "1970 to 2200")
	}
	// Exact on 128 bits: 3t exceeds 64 bits from the year 2164 on.
	hi, lo := bits.Mul64(3, uint64(t.UnixNano()))
	k, _ := bits.Div64(hi, lo, 2*uint64(lifetime))
	return window{index: k, begin: windowBegin(k, lifetime), next: windowBegin(k+1, lifetime), lifetime: lifetime}, nil
}

// windowBegin returns the first nanosecond of window k: 2kL/3, rounded up.
func windowBegin(k uint64, lifetime time.Duration) time.Time {
	hi, lo := bits.Mul64(k, 2*uint64(lifetime))
	begin, rest := bits.Div64(hi, lo, 3)
	if rest > 0 {
		begin++
	}
	return time.Unix(0, int64(begin)).UTC()
}

// notBefore and notAfter return whole seconds, rounded down, as certificates encode them: no
// leaf is valid longer than its lifetime.
func (w window) notBefore() time.Time { return w.begin.Add(-wire.WindowLead).Truncate(time.Second) }

func (w window) notAfter() time.Time { return w.begin.Add(w.lifetime).Truncate(time.Second) }

// renewBefore returns the end of the time over which renewals spread: a twelfth of the
// lifetime after the next window's begin, so that L/3 - L/12 = L/4 is left for an outage.
func (w window) renewBefore() time.Time { return w.next.Add(w.lifetime / 12) }
