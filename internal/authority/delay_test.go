package authority

import (
	"os"
	"testing"
	"time"

	"github.com/cohort-tee/cohort/internal/authority/history"
	"github.com/cohort-tee/cohort/internal/authority/store"
	"github.com/cohort-tee/cohort/internal/testworld"
	"github.com/cohort-tee/cohort/internal/wire"
)

// process starts an authority on the world's store, and returns a function that ends it.
func (w *world) process() (*Authority, func()) {
	w.T.Helper()
	db := testworld.Must(store.Open(w.T.Context(), w.dsn))
	a, err := Open(w.T.Context(), w.configOn(db, "authority"))
	if err != nil {
		w.T.Fatal(err)
	}
	return a, func() { db.Close() }
}

// waiting proposes a policy that loosens, with its quorum.
func (w *world) waiting(a *Authority) wire.Digest {
	w.T.Helper()
	return testworld.Must(a.history.Propose(w.T.Context(), proposal(w.SignPolicy(w.NextText(a.inForce().approved, looser...), "ana", "ben")))).Digest
}

// waited returns how much of its delay a proposal has waited.
func (w *world) waited(a *Authority, digest wire.Digest) time.Duration {
	w.T.Helper()
	return time.Duration(testworld.Must(a.history.ShowProposal(w.T.Context(), digest)).Waited) * time.Second
}

// TestDelayAcrossRestarts sets the clock while the authority does not run: forward by more than
// the whole delay, and back. None of that counts as waiting.
func TestDelayAcrossRestarts(t *testing.T) {
	w := newWorld(t)
	a, end := w.process()
	digest := w.waiting(a)
	end()
	w.clock.JumpWall(61 * time.Minute)
	a, end = w.process()
	for range 3 {
		if err := a.history.Sync(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if got := a.inForce().document().Sequence; got != 1 {
		t.Fatalf("got policy %d in force, want 1: seconds have passed", got)
	}
	if got := w.waited(a, digest); got != 0 {
		t.Errorf("got %v waited, want nothing", got)
	}
	w.wait(a, 30*time.Minute)
	end()
	w.clock.Advance(5 * time.Hour) // time while no authority runs does not count
	a, end = w.process()
	defer end()
	if got := w.waited(a, digest); got < 28*time.Minute || got > 30*time.Minute {
		t.Errorf("got %v waited after half an hour with an authority, want about that", got)
	}
	w.wait(a, 25*time.Minute)
	if got := a.inForce().document().Sequence; got != 1 {
		t.Errorf("got policy %d in force after 55 minutes, want 1", got)
	}
	w.wait(a, 8*time.Minute) // includes the time that the restarts cost
	if got := a.inForce().document().Sequence; got != 2 {
		t.Errorf("got policy %d in force after the delay, want 2", got)
	}
}

// TestDelayOfAStoppedProcess: a process that is stopped for the whole delay, as by SIGSTOP,
// counts one minute of it.
func TestDelayOfAStoppedProcess(t *testing.T) {
	w := newWorld(t)
	a := w.open()
	digest := w.waiting(a)
	w.clock.Advance(2 * time.Hour)
	if err := a.history.Sync(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := w.waited(a, digest); got > history.MaxCount {
		t.Errorf("got %v waited for one look in two hours, want at most %v", got, history.MaxCount)
	}
}

// TestDelayCountedOnce: several authorities of a store run at once. An hour of delay still takes
// an hour, and another authority continues when the one that counts has ended.
func TestDelayCountedOnce(t *testing.T) {
	w := newWorld(t)
	all := []*Authority{w.open(), w.open(), w.open()}
	digest := w.waiting(all[0])
	pass := func(d time.Duration, running ...*Authority) {
		for ; d > 0; d -= time.Second {
			w.clock.Advance(time.Second)
			for _, a := range running {
				if err := a.history.Sync(t.Context()); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	pass(3*time.Minute, all...)
	if got := w.waited(all[1], digest); got < 2*time.Minute || got > 3*time.Minute {
		t.Errorf("got %v waited in 3 minutes of three authorities, want no more", got)
	}
	pass(2*time.Minute, all[1:]...)
	if got := w.waited(all[1], digest); got < 4*time.Minute || got > 5*time.Minute {
		t.Errorf("got %v waited in 5 minutes, the last two without the one that counted", got)
	}
}

// TestDelayOfMovedRows copies rows between two copies of the store while the same time passes at
// both. An authority starts counting again at a row that it did not write.
func TestDelayOfMovedRows(t *testing.T) {
	if os.Getenv(onServer) != "" {
		t.Skip("one dialect is enough")
	}
	w := newWorld(t)
	a := w.open()
	digest := w.waiting(a)
	copied := copyStore(t, w.dsn)
	first := w.dsn
	w.dsn = copied
	b := w.open()
	move := func(from *Authority, dsn string) {
		row := testworld.Must(from.store.Proposals(t.Context()))[0]
		exec(t, dsn, `UPDATE proposals SET content = ?, mac = ?`, row.Content, row.MAC)
	}
	start, _ := w.clock.Read()
	for range 20 {
		for range 20 {
			w.clock.Advance(time.Second)
			for _, x := range []*Authority{a, b} {
				if err := x.history.Sync(t.Context()); err != nil {
					t.Fatal(err)
				}
			}
		}
		move(a, copied)
		a, b, first, copied = b, a, copied, first
	}
	now, _ := w.clock.Read()
	if got, passed := max(w.waited(a, digest), w.waited(b, digest)), now.Sub(start); got > passed {
		t.Errorf("got %v waited while %v passed", got, passed)
	}
}

// TestSigningGoesOnCounting: an owner's signature during the delay does not lengthen the delay.
func TestSigningGoesOnCounting(t *testing.T) {
	w := newWorld(t)
	a := w.open()
	digest := w.waiting(a)
	w.wait(a, 10*time.Minute)
	before := w.waited(a, digest)
	testworld.Must(a.history.Propose(t.Context(), proposal(w.SignPolicy(w.NextText(a.inForce().approved, looser...), "eva"))))
	w.wait(a, 50*time.Second)
	if got := w.waited(a, digest) - before; got != 50*time.Second {
		t.Errorf("got %v more after 50 s with a signature in between, want 50s", got)
	}
}

// TestAdoptionRaisesTheFloor: the row of the history has the time of adoption, so the next start
// detects a clock that was set back since.
func TestAdoptionRaisesTheFloor(t *testing.T) {
	w := newWorld(t)
	a, end := w.process()
	w.clock.Advance(2 * time.Hour)
	w.change(a, tighter...)
	at := testworld.Must(a.clock.Now())
	if got := a.history.Current().Entries[1].AdoptedAt; !got.Equal(at) {
		t.Errorf("got adoption at %v in the history, want %v", got, at)
	}
	end()
	w.clock.JumpWall(-61 * time.Minute)
	_, err := Open(t.Context(), w.config("authority"))
	testworld.Refused(t, err, wire.ClockSkew)
	w.clock.JumpWall(61 * time.Minute)
	if b := w.open(); !b.history.Current().Entries[1].AdoptedAt.Equal(at) {
		t.Error("another time of adoption after a restart")
	}
}
