package ranges

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/cohort-tee/cohort/internal/bus"
)

// TestRangesAreDisjoint: no number is allocated twice, whatever the file contains at a restart.
func TestRangesAreDisjoint(t *testing.T) {
	dir := t.TempDir()
	taken := map[uint64]bool{}
	take := func(when string, r *Ranges, n int) {
		t.Helper()
		for range n {
			got, err := r.Allocate()
			if err != nil {
				t.Fatal(err)
			}
			if got.Count != rangeSize || got.First == 0 || got.First+got.Count < got.First {
				t.Fatalf("%s: got %v", when, got)
			}
			for _, edge := range []uint64{got.First, got.First + got.Count - 1} {
				for first := range taken {
					if edge >= first && edge-first < rangeSize {
						t.Fatalf("%s: number %d was given twice", when, edge)
					}
				}
			}
			taken[got.First] = true
		}
	}
	open := func() *Ranges {
		t.Helper()
		r, err := OpenDir(dir)
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	r := open()
	take("first", r, 20)
	for range 5 {
		take("after a restart", open(), 20)
	}
	r = open()
	r.next = r.reserved // all reserved numbers are allocated
	take("past the mark", r, 3)
	take("after a restart past the mark", open(), 3)
	for _, content := range []string{"", "short", "longer than 8 bytes", "\x00\x00\x00\x00\x00\x00\x00\x00", "\xff\xff\xff\xff\xff\xff\xff\xff"} {
		if err := os.WriteFile(r.path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		take(fmt.Sprintf("over %q", content), open(), 3)
	}
	os.Remove(r.path)
	take("after a wipe", open(), 20)
}

// TestRangesAreOnDiskFirst: no number is allocated before the reservation is on disk, so a
// restart allocates no number twice.
func TestRangesAreOnDiskFirst(t *testing.T) {
	r, err := OpenDir(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	r.next = r.reserved
	if err := os.RemoveAll(filepath.Dir(r.path)); err != nil {
		t.Fatal(err)
	}
	if got, err := r.Allocate(); err == nil {
		t.Errorf("without a disk: got %v", got)
	}
	if err := os.Mkdir(filepath.Dir(r.path), 0o700); err != nil {
		t.Fatal(err)
	}
	if _, err := r.Allocate(); err != nil {
		t.Errorf("with the disk back: %v", err)
	}
}

// TestRangesMove: a claim of other numbers changes nothing. A claim of the same numbers moves the
// range elsewhere, durably, and only once per interval.
func TestRangesMove(t *testing.T) {
	r, err := OpenDir(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	now, before := time.Now(), r.Unallocated()
	for _, c := range []struct {
		name  string
		other bus.Range
		at    time.Time
		moves bool
	}{
		{"just below", bus.Range{First: before.First - 1, Count: 1}, now, false},
		{"just above", bus.Range{First: before.First + before.Count, Count: 1}, now, false},
		{"the first number", bus.Range{First: before.First - 1, Count: 2}, now, true},
		{"everything, too soon", bus.Range{First: 1, Count: 1<<64 - 2}, now.Add(moveInterval - 1), false},
		{"everything", bus.Range{First: 1, Count: 1<<64 - 2}, now.Add(moveInterval), true},
	} {
		was := r.Unallocated()
		if err := r.AvoidClaim(c.other, c.at); err != nil {
			t.Fatal(err)
		}
		if got := r.Unallocated() != was; got != c.moves {
			t.Errorf("%s: moved: got %v, want %v", c.name, got, c.moves)
		}
	}
	if again, err := OpenDir(filepath.Dir(r.path)); err != nil || again.next != r.reserved {
		t.Errorf("after a restart: got %d (%v), want %d", again.next, err, r.reserved)
	}
}
