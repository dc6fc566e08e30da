package identity

import (
	"testing"
	"time"

	"github.com/cohort-tee/cohort/internal/testworld"
	"github.com/cohort-tee/cohort/internal/wire"
)

func at(seconds float64) time.Time { return time.Unix(0, int64(seconds*1e9)).UTC() }

func TestWindowBoundaries(t *testing.T) {
	const ns = time.Nanosecond
	const h = 3600
	tests := []struct {
		name                        string
		life                        time.Duration
		at                          time.Time
		index                       uint64
		next                        time.Time
		notBefore, notAfter, latest time.Time
	}{
		{"5s, epoch", 5 * time.Second, at(0), 0, at(0).Add(3333333334 * ns), at(-60), at(5), at(0).Add(3750000000 * ns)},
		{"5s, last of 0", 5 * time.Second, at(0).Add(3333333333 * ns), 0, at(0).Add(3333333334 * ns), at(-60), at(5), at(0).Add(3750000000 * ns)},
		{"5s, first of 1", 5 * time.Second, at(0).Add(3333333334 * ns), 1, at(0).Add(6666666667 * ns), at(-57), at(8), at(0).Add(7083333333 * ns)},
		{"5s, last of 2", 5 * time.Second, at(10).Add(-ns), 2, at(10), at(-54), at(11), at(0).Add(10416666666 * ns)},
		{"5s, first of 3", 5 * time.Second, at(10), 3, at(0).Add(13333333334 * ns), at(-50), at(15), at(13.75)},
		{"1h, last of 0", time.Hour, at(2400).Add(-ns), 0, at(2400), at(-60), at(h), at(2700)},
		{"1h, first of 1", time.Hour, at(2400), 1, at(4800), at(2340), at(2400 + h), at(5100)},
		{"1h, today", time.Hour, noon, 748062, at(748063 * 2400), at(748062*2400 - 60), at(748062*2400 + h), at(748063*2400 + 300)},
		{"24h, last of 1", 24 * time.Hour, at(32 * h).Add(-ns), 1, at(32 * h), at(16*h - 60), at(40 * h), at(34 * h)},
		{"24h, first of 2", 24 * time.Hour, at(32 * h), 2, at(48 * h), at(32*h - 60), at(56 * h), at(50 * h)},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			w, err := windowAt(tt.life, tt.at)
			if err != nil {
				t.Fatal(err)
			}
			if w.index != tt.index {
				t.Errorf("index: got %d, want %d", w.index, tt.index)
			}
			for _, c := range []struct {
				name      string
				got, want time.Time
			}{
				{"next", w.next, tt.next}, {"not before", w.notBefore(), tt.notBefore},
				{"not after", w.notAfter(), tt.notAfter},
			} {
				if !c.got.Equal(c.want) {
					t.Errorf("%s: got %v, want %v", c.name, c.got, c.want)
				}
			}
			if d := w.renewBefore().Sub(tt.latest); d < -time.Nanosecond || d > time.Nanosecond {
				t.Errorf("renew before: got %v, want %v", w.renewBefore(), tt.latest)
			}
		})
	}
}

// TestWindowsTile checks window ends for many lifetimes: the last nanosecond belongs to a window,
// the next one to its successor, and a unit that renews in time always has a valid leaf.
func TestWindowsTile(t *testing.T) {
	for _, life := range []time.Duration{3 * time.Second, 5 * time.Second, 7*time.Second + 1, time.Hour, 24*time.Hour - 1, 24 * time.Hour} {
		now := noon
		for range 50 {
			w := testworld.Must(windowAt(life, now))
			if w.begin.After(now) || !w.next.After(now) {
				t.Fatalf("life %v at %v: got window %v to %v, want it to hold that time", life, now, w.begin, w.next)
			}
			last, first := testworld.Must(windowAt(life, w.next.Add(-1))), testworld.Must(windowAt(life, w.next))
			if last.index != w.index || first.index != w.index+1 || !first.begin.Equal(w.next) {
				t.Fatalf("life %v: got windows %d and %d at the end of %d", life, last.index, first.index, w.index)
			}
			if left := w.notAfter().Sub(w.renewBefore()); left <= life/4-time.Second {
				t.Fatalf("life %v: got %v left for an outage, want %v", life, left, life/4)
			}
			if got := w.notAfter().Sub(w.begin); got > life {
				t.Fatalf("life %v: got a leaf that lives %v", life, got)
			}
			now = w.next
		}
	}
}

func TestWindowRefusals(t *testing.T) {
	tests := []struct {
		name string
		life time.Duration
		at   time.Time
		want wire.Reason
	}{
		{"no life", 0, noon, wire.BadPolicy},
		{"life below", wire.MinLifetime - 1, noon, wire.BadPolicy},
		{"life above", wire.MaxLifetime + 1, noon, wire.BadPolicy},
		{"before 1970", time.Hour, at(-1), wire.ClockSkew},
		{"no time", time.Hour, time.Time{}, wire.ClockSkew},
		{"after 2200", time.Hour, lastTime.Add(1), wire.ClockSkew},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := windowAt(tt.life, tt.at)
			testworld.Refused(t, err, tt.want)
		})
	}
	testworld.Must(windowAt(wire.MaxLifetime, lastTime))
}
