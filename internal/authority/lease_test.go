package authority

import (
	"context"
	"net"
	"testing"
	"time"

	"github.com/cohort-tee/cohort/identity"
	"github.com/cohort-tee/cohort/internal/api"
	"github.com/cohort-tee/cohort/internal/authority/ringkeys"
	"github.com/cohort-tee/cohort/internal/testworld"
	"github.com/cohort-tee/cohort/internal/wire"
)

// asks enrols a unit with an authority and returns its ring keys.
func (w *world) asks(a *Authority) ([][]byte, error) {
	p := w.scoring()
	r := p.request(testworld.Must(a.challenge(api.ChallengeRequest{})).Nonce, nil)
	sealed, err := a.certify(w.T.Context(), r, "")
	if err != nil {
		return nil, err
	}
	report := testworld.Must(p.openReport(r, sealed))
	return keysOf(report.Rings.Strict, report.Rings.Follow), nil
}

// TestLease moves the lease from one authority to another and back. Only the holder issues, and
// no holder issues keys of an earlier one.
func TestLease(t *testing.T) {
	w := newWorld(t)
	a, b := w.open(), w.open()
	elsewhere := func(a *Authority) {
		t.Helper()
		_, err := w.asks(a)
		testworld.Refused(t, err, wire.RingElsewhere)
	}
	first := testworld.Must(w.asks(a))
	for range 3 { // for longer than the term
		elsewhere(b)
		w.clock.Advance(ringkeys.Term - time.Second)
		a.keepRings(t.Context())
	}
	elsewhere(b)
	if got := shared(first, testworld.Must(w.asks(a))); got != 4 {
		t.Errorf("got %d keys of before from the holder, want 4", got)
	}
	w.clock.Advance(ringkeys.Term) // a does not renew
	second := testworld.Must(w.asks(b))
	if got := shared(first, second); got != 0 {
		t.Errorf("got %d keys of the former holder from the next, want none", got)
	}
	elsewhere(a)
	if strict, _ := a.rings.KeysOf(testworld.Must(identity.ReleaseID(a.inForce().approved, "scoring", "2026.11"))); strict.Current != nil {
		t.Error("the former holder kept its keys")
	}
	if err := b.rings.ReleaseLease(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := shared(append(first, second...), testworld.Must(w.asks(a))); got != 0 {
		t.Errorf("got %d keys of before from who took the lease again, want none", got)
	}
	if got := issued(t, a); got != 4 {
		t.Errorf("got %d issuances, want 4: none was recorded where the lease was not held", got)
	}
}

// TestLeaseThroughOutage locks the store for longer than the term. No other authority can have
// issued keys meanwhile, so the keys stay.
func TestLeaseThroughOutage(t *testing.T) {
	w := newWorld(t)
	a := w.open()
	first := testworld.Must(w.asks(a))
	restore := lockStore(t, w.dsn)
	w.clock.Advance(ringkeys.Term + time.Second)
	_, err := w.asks(a)
	testworld.Refused(t, err, wire.StoreFailed)
	restore()
	if got := shared(first, testworld.Must(w.asks(a))); got != 4 {
		t.Errorf("got %d keys of before the outage, want 4", got)
	}
}

// TestLeaseGivenBack: an authority that ends releases the lease; another need not wait for the
// term.
func TestLeaseGivenBack(t *testing.T) {
	w := newWorld(t)
	a, b := w.open(), w.open()
	testworld.Must(w.asks(a))
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	stop()
	if err := a.Serve(ctx, listener); err != nil {
		t.Fatal(err)
	}
	testworld.Must(w.asks(b))
}

// TestLeaseOfTheUnnamed: the policy drops the build that has the lease. That build releases it to
// a build that may issue.
func TestLeaseOfTheUnnamed(t *testing.T) {
	w := newWorld(t)
	a, b := w.open(), w.open()
	testworld.Must(w.asks(a))
	a.inForce().unnamed = wire.Refuse(wire.NotMeasured, "test", "", "")
	a.keepRings(t.Context())
	testworld.Must(w.asks(b))
}

// TestLeaseChanged damages the row of the lease. It counts as leased until it is unchanged for the
// term.
func TestLeaseChanged(t *testing.T) {
	w := newWorld(t)
	testworld.Must(w.asks(w.open()))
	exec(t, w.dsn, `UPDATE lease SET mac = zeroblob(32)`)
	b := w.open()
	_, err := w.asks(b)
	testworld.Refused(t, err, wire.RingElsewhere)
	w.clock.Advance(ringkeys.Term)
	testworld.Must(w.asks(b))
}
