package ringkeys

import (
	"bytes"
	"slices"
	"testing"
	"time"

	"github.com/cohort-tee/cohort/identity"
)

var noon = time.Date(2026, 11, 1, 12, 0, 0, 0, time.UTC)

// TestRolled rolls keys with a lifetime of one hour to a time, under a lifetime that the policy
// may have changed. Times are in minutes since the keys were drawn.
func TestRolled(t *testing.T) {
	minutes := func(n int) time.Time { return noon.Add(time.Duration(n) * time.Minute) }
	for _, row := range []struct {
		name          string
		at            int
		life          time.Duration
		current, next string    // which keys they were at first: "current", "next", or "" for new
		ends          [3]int    // previous (0 for none), current, next
		alive         [2]string // of the first current and next key, those that are still in use
	}{
		{"before the end of its life", 59, time.Hour, "current", "next", [3]int{0, 120, 180}, [2]string{"current", "next"}},
		{"at the end of its life", 60, time.Hour, "next", "", [3]int{120, 180, 240}, [2]string{"current", "next"}},
		{"before the previous ended", 119, time.Hour, "next", "", [3]int{120, 180, 240}, [2]string{"current", "next"}},
		{"two lives later", 120, time.Hour, "", "", [3]int{180, 240, 300}, [2]string{"", "next"}},
		{"when all have ended", 180, time.Hour, "", "", [3]int{0, 300, 360}, [2]string{"", ""}},
		{"a year later", 525600, time.Hour, "", "", [3]int{0, 525720, 525780}, [2]string{"", ""}},
		{"at once when life grew", 1, 2 * time.Hour, "next", "", [3]int{120, 240, 360}, [2]string{"current", "next"}},
		{"kept when life shrank", 99, 20 * time.Minute, "current", "next", [3]int{0, 120, 180}, [2]string{"current", "next"}},
		{"sessions outlive a shorter life", 100, 20 * time.Minute, "next", "", [3]int{120, 140, 160}, [2]string{"current", "next"}},
		{"a clock that went back", -30, time.Hour, "current", "next", [3]int{0, 120, 180}, [2]string{"current", "next"}},
	} {
		t.Run(row.name, func(t *testing.T) {
			old := identity.NewRingKeys(noon, time.Hour)
			names := map[identity.RingID]string{old.Current.ID(): "current", old.Next.ID(): "next"}
			got := rolled(old, minutes(row.at), row.life)
			if a, b := names[got.Current.ID()], names[got.Next.ID()]; a != row.current || b != row.next {
				t.Errorf("got current %q and next %q, want %q and %q", a, b, row.current, row.next)
			}
			for i, key := range []*identity.RingKey{got.Previous, got.Current, got.Next} {
				switch {
				case (key == nil) != (row.ends[i] == 0):
					t.Errorf("key %d: got %v, want one that ends at minute %d", i, key, row.ends[i])
				case key != nil && !key.Expires().Equal(minutes(row.ends[i])):
					t.Errorf("key %d: got the end %v, want minute %d", i, key.Expires(), row.ends[i])
				}
			}
			var alive [2]string
			for _, key := range got.Keys() {
				if i := slices.Index([]string{"current", "next"}, names[key.ID()]); i >= 0 {
					alive[i] = names[key.ID()]
				}
			}
			if alive != row.alive {
				t.Errorf("got alive %q, want %q", alive, row.alive)
			}
			for _, key := range got.Keys() {
				if bytes.Equal(key.Expose(), make([]byte, 32)) {
					t.Error("a key that is given out is erased")
				}
			}
			for _, key := range old.Keys() {
				held := slices.Contains(got.Keys(), key)
				if erased := bytes.Equal(key.Expose(), make([]byte, 32)); erased == held {
					t.Errorf("old key: held %v, erased %v; want one of them", held, erased)
				}
			}
		})
	}
}
