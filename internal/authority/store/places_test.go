package store

import (
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cohort-tee/cohort/internal/testworld"
	"github.com/cohort-tee/cohort/internal/wire"
)

// clock is the authority's time in tests of places.
var clock = time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)

// placeOf returns the place of a unit until a time, under a limit.
func placeOf(unit string, limit int, until time.Time) Place {
	r := row(unit)
	return Place{Row: r, Task: "scoring", Now: clock, Until: until, Limit: limit, Believed: believed}
}

// takes records the n-th issuance for a unit.
func takes(s *Store, t *testing.T, n int, p Place) error {
	i := issuance(n)
	i.Place, i.Unit = p, string(p.Key)
	return s.Record(t.Context(), i)
}

// TestPlaces fills the places of a task. A unit with a place keeps it. Another unit gets one when
// a place ends or its unit leaves. A unit that left gets none.
func TestPlaces(t *testing.T) { onBoth(t, testPlaces) }

func testPlaces(t *testing.T, dsn string) {
	s := fresh(t, dsn)
	end := clock.Add(time.Hour)
	one, two, three := placeOf("one", 2, end), placeOf("two", 2, end.Add(time.Minute)), placeOf("three", 2, end)
	for n, p := range []Place{one, two, one} {
		if err := takes(s, t, n, p); err != nil {
			t.Fatal(err)
		}
	}
	err := takes(s, t, 10, three)
	testworld.Refused(t, err, wire.NoPlace)
	for _, want := range []string{"one, two", "2026-11-22T13:00:00Z", "scoring"} {
		if err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("got %q, want %q named", err, want)
		}
	}
	if got := count(t, s); got != 3 {
		t.Errorf("got %d rows in the log, want 3: a refusal writes nothing", got)
	}
	used := issuance(0)
	used.Place = three
	testworld.Refused(t, s.Record(t.Context(), used), wire.NonceUsed)
	moved := issuance(11)
	moved.Place, moved.Head = three, head(7)
	testworld.Refused(t, s.Record(t.Context(), moved), wire.Behind)

	other := three
	other.Task = "keys"
	if err := takes(s, t, 12, other); err != nil {
		t.Errorf("a unit of another task: %v", err)
	}
	testworld.Refused(t, s.ReleasePlace(t.Context(), row("nobody"), row("nobody")), wire.Behind)
	if err := s.ReleasePlace(t.Context(), two.Row, Row{Content: []byte("left"), MAC: []byte("tag left")}); err != nil {
		t.Fatal(err)
	}
	if err := takes(s, t, 13, placeOf("four", 2, end)); err != nil {
		t.Errorf("after a unit left: %v", err)
	}
	testworld.Refused(t, takes(s, t, 14, placeOf("two", 0, end)), wire.NoPlace)

	late := placeOf("five", 2, end.Add(time.Hour))
	testworld.Refused(t, takes(s, t, 15, late), wire.NoPlace)
	late.Now = end.Add(time.Second)
	if err := takes(s, t, 16, late); err != nil {
		t.Errorf("when places have ended: %v", err)
	}
	fewer := placeOf("six", 1, end)
	err = takes(s, t, 17, fewer)
	testworld.Refused(t, err, wire.NoPlace)
	if got, err := s.Place(t.Context(), "one"); err != nil || string(got.MAC) != string(one.MAC) {
		t.Errorf("got place %v, %v", got, err)
	}
	if got, err := s.Place(t.Context(), "seven"); err != nil || got.Key != nil {
		t.Errorf("got place %v, %v, want none", got, err)
	}
}

// TestPlacesForged writes forged rows to the database: they occupy no place.
func TestPlacesForged(t *testing.T) { onBoth(t, testPlacesForged) }

func testPlacesForged(t *testing.T, dsn string) {
	s := fresh(t, dsn)
	for n := range 3 {
		if err := takes(s, t, n, placeOf(fmt.Sprint("forged ", n), 0, clock.Add(time.Hour))); err != nil {
			t.Fatal(err)
		}
	}
	edit(t, dsn, `UPDATE places SET task = 'other' WHERE unit = 'forged 0'`)
	p := placeOf("one", 2, clock.Add(time.Hour))
	p.Believed = func(r Row) bool { return !strings.HasPrefix(string(r.Key), "forged") }
	if err := takes(s, t, 4, p); err != nil {
		t.Errorf("beside rows that nobody believes: %v", err)
	}
}

// TestPlacesAtOnce: units of two processes compete for the last places. No more units than places
// get one.
func TestPlacesAtOnce(t *testing.T) { onBoth(t, testPlacesAtOnce) }

func testPlacesAtOnce(t *testing.T, dsn string) {
	const limit, asking = 5, 20
	stores := []*Store{fresh(t, dsn), reopen(t, dsn)}
	results := make(chan error, asking)
	var all sync.WaitGroup
	for n := range asking {
		all.Go(func() {
			results <- takes(stores[n%2], t, n, placeOf(fmt.Sprint("unit ", n), limit, clock.Add(time.Hour)))
		})
	}
	all.Wait()
	close(results)
	got := 0
	for err := range results {
		if err == nil {
			got++
		} else if wire.ReasonOf(err) != wire.NoPlace {
			t.Error(err)
		}
	}
	if got != limit {
		t.Errorf("got %d places taken, want %d", got, limit)
	}
}

// TestMend replaces a damaged step by a good one, and refuses when the rows have changed since
// they were read.
func TestMend(t *testing.T) { onBoth(t, testMend) }

func testMend(t *testing.T, dsn string) {
	s := fresh(t, dsn)
	for n := 1; n < 4; n++ {
		if err := s.Append(t.Context(), head(n), step(n+1)); err != nil {
			t.Fatal(err)
		}
	}
	damaged := step(2)
	damaged.MAC = damaged.Content
	edit(t, dsn, `UPDATE history SET mac = content WHERE step = 2`)
	testworld.Refused(t, s.ReplaceSteps(t.Context(), head(1), []Row{step(2), step(3), step(4)}, nil), wire.Behind)
	testworld.Refused(t, s.ReplaceSteps(t.Context(), head(9), []Row{damaged, step(3), step(4)}, nil), wire.Behind)
	if err := s.ReplaceSteps(t.Context(), head(1), []Row{damaged, step(3), step(4)}, []Row{step(2), step(3), step(4)}); err != nil {
		t.Fatal(err)
	}
	steps, err := s.Steps(t.Context())
	if err != nil || len(steps) != 4 {
		t.Fatalf("got %d steps, %v, want 4", len(steps), err)
	}
	for n, got := range steps {
		check(t, fmt.Sprint("step ", n+1), nil, got, step(n+1))
	}
	if err := s.ReplaceSteps(t.Context(), wire.Digest{}, steps, []Row{step(1)}); err != nil {
		t.Fatal(err)
	}
	if got, err := s.HistoryHead(t.Context()); err != nil || got != head(1) {
		t.Errorf("got head %v, %v, want %v", got, err, head(1))
	}
}

// TestForks: the newest content of each contradiction is kept, and only the first maxForks.
func TestForks(t *testing.T) { onBoth(t, testForks) }

func testForks(t *testing.T, dsn string) {
	s := fresh(t, dsn)
	for n := range maxForks + 3 {
		if err := s.PutFork(t.Context(), row(fmt.Sprintf("fork %03d", n))); err != nil {
			t.Fatal(err)
		}
	}
	changed := row("fork 000")
	changed.MAC = []byte("tag changed")
	if err := s.PutFork(t.Context(), changed); err != nil {
		t.Fatal(err)
	}
	all, err := s.Forks(t.Context())
	if err != nil || len(all) != maxForks {
		t.Fatalf("got %d contradictions, %v, want %d", len(all), err, maxForks)
	}
	check(t, "the first", nil, all[0], changed)
}
