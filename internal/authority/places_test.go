package authority

import (
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"fmt"
	"math"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cohort-tee/cohort/internal/api"
	"github.com/cohort-tee/cohort/internal/testworld"
	"github.com/cohort-tee/cohort/internal/wire"
)

// id returns the applicant's unit id.
func (p *applicant) id() wire.UnitID {
	return wire.UnitIDOf(testworld.Must(x509.MarshalPKIXPublicKey(&p.signing.PublicKey)))
}

// leaving returns a good leave request of an applicant.
func (p *applicant) leaving() api.LeaveRequest {
	at, _ := p.w.clock.Read()
	l := api.LeaveRequest{Unit: p.id(), Time: at.Truncate(time.Second)}
	digest := sha256.Sum256(api.LeaveMessage(l.Unit, l.Time, p.w.root))
	l.Signature = testworld.Must(ecdsa.SignASN1(rand.Reader, p.signing, digest[:]))
	return l
}

// limited returns a world whose task scoring has n places.
func limited(t *testing.T, n int, edits ...string) *world {
	t.Helper()
	return newWorld(t, append(edits, "calls = [\"keys\"]\n", fmt.Sprintf("calls = [\"keys\"]\nunits = %d\n", n))...)
}

// TestUnits fills the places of a task. Units with a place renew. The next unit is refused; the
// refusal names them and the time when a place becomes free. It gets a place when a unit leaves
// or has not renewed.
func TestUnits(t *testing.T) {
	w := limited(t, 2)
	a := w.open()
	client, _ := w.serve(a)
	one, two, three := w.scoring(), w.scoring(), w.scoring()
	for _, p := range []*applicant{one, two, one, two} {
		testworld.Must(p.enrol(client))
	}
	testworld.Must(w.applicant("keys").enrol(client)) // of a different task
	_, err := three.enrol(client)
	testworld.Refused(t, err, wire.NoPlace)
	for _, want := range []string{one.id().String(), two.id().String(), "2026-11-22T12:46:00Z"} {
		if err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("got %q, want %q named", err, want)
		}
	}

	left := testworld.Must(client.ReleasePlace(t.Context(), one.leaving()))
	if left.Unit != one.id() {
		t.Errorf("got %v, want %v left", left.Unit, one.id())
	}
	testworld.Must(client.ReleasePlace(t.Context(), one.leaving())) // a second request changes nothing
	testworld.Must(three.enrol(client))
	_, err = one.enrol(client)
	testworld.Refused(t, err, wire.NoPlace)
	if err != nil && !strings.Contains(err.Error(), one.id().String()+", which has left") {
		t.Errorf("got %q, want that the unit has left", err)
	}

	w.clock.Advance(46*time.Minute + time.Second) // three quarters of the lifetime, a minute and a second
	four := w.scoring()
	testworld.Must(four.enrol(client))
	testworld.Must(three.enrol(client)) // it renews late, and there is a free place
	_, err = two.enrol(client)
	testworld.Refused(t, err, wire.NoPlace)
	_, err = one.enrol(client) // a unit that left gets no place again
	testworld.Refused(t, err, wire.NoPlace)
}

// TestUnitsByPolicy raises and lowers the number of places: no unit loses its certificate, and a
// lower number takes effect at once.
func TestUnitsByPolicy(t *testing.T) {
	w := limited(t, 3)
	a := w.open()
	all := []*applicant{w.scoring(), w.scoring(), w.scoring()}
	for _, p := range all {
		testworld.Must(p.enrol(direct{a}))
	}
	w.change(a, "units = 3", "units = 1")
	_, err := all[0].enrol(direct{a})
	testworld.Refused(t, err, wire.NoPlace)
	for _, p := range all[:2] {
		testworld.Must(a.leave(t.Context(), p.leaving()))
	}
	testworld.Must(all[2].enrol(direct{a}))
	testworld.Must(a.history.Propose(t.Context(), proposal(w.SignPolicy(w.NextText(a.inForce().approved, "units = 1\n", ""), "ana", "ben"))))
	w.wait(a, time.Hour+time.Minute)
	for range 4 {
		testworld.Must(w.scoring().enrol(direct{a}))
	}
}

// TestUnitsInAGroup: the units of a task count together, whether they enrol in a group or not.
func TestUnitsInAGroup(t *testing.T) {
	w := grouped(t, "names = [\"keys.clinic.example\"]\n", "names = [\"keys.clinic.example\"]\nunits = 1\n")
	a := w.open()
	testworld.Must(w.say(a, "north", nil))
	testworld.Must(w.say(a, "south", nil))
	member := w.holder()
	testworld.Must(member.enrol(direct{a}))
	_, err := w.applicant("keys").enrol(direct{a})
	testworld.Refused(t, err, wire.NoPlace)
	testworld.Must(a.leave(t.Context(), member.leaving()))
	testworld.Must(w.applicant("keys").enrol(direct{a}))
	_, err = w.holder().enrol(direct{a})
	testworld.Refused(t, err, wire.NoPlace)
}

// TestUnitsAtOnce: more units than places enrol at once. No more units than places get one.
func TestUnitsAtOnce(t *testing.T) {
	w := limited(t, 3)
	a := w.open()
	errs := make(chan error, 12)
	var asking sync.WaitGroup
	for range cap(errs) {
		p := w.scoring()
		asking.Go(func() {
			_, err := p.enrol(direct{a})
			errs <- err
		})
	}
	asking.Wait()
	close(errs)
	got := 0
	for err := range errs {
		if err == nil {
			got++
		} else {
			testworld.Refused(t, err, wire.NoPlace)
		}
	}
	if got != 3 || issued(t, a) != 3 {
		t.Errorf("got %d reports and %d rows, want 3", got, issued(t, a))
	}
}

// TestUnitsForged: rows that no authority wrote occupy no place.
func TestUnitsForged(t *testing.T) {
	w := limited(t, 1)
	a := w.open()
	testworld.Must(w.scoring().enrol(direct{a}))
	exec(t, w.dsn, `UPDATE places SET unit = 'somebody'`)
	testworld.Must(w.scoring().enrol(direct{a}))
}

// TestLeaveRefusals changes the least thing in a good leave request. Each change is refused.
func TestLeaveRefusals(t *testing.T) {
	w := limited(t, 1)
	a := w.open()
	p, stranger := w.scoring(), w.scoring()
	testworld.Must(p.enrol(direct{a}))
	for name, row := range map[string]struct {
		change func(*api.LeaveRequest)
		want   wire.Reason
	}{
		"a unit that was never issued to": {func(l *api.LeaveRequest) { *l = stranger.leaving() }, wire.NotFound},
		"signed by another unit":          {func(l *api.LeaveRequest) { l.Signature = stranger.leaving().Signature }, wire.BadSignature},
		"no signature":                    {func(l *api.LeaveRequest) { l.Signature = nil }, wire.BadSignature},
		"another second":                  {func(l *api.LeaveRequest) { l.Time = l.Time.Add(time.Second) }, wire.BadSignature},
		"six minutes ago":                 {func(l *api.LeaveRequest) { l.Time = l.Time.Add(-6 * time.Minute) }, wire.ClockSkew},
		"the beginning of time":           {func(l *api.LeaveRequest) { l.Time = time.Time{} }, wire.ClockSkew},
		"the end of time":                 {func(l *api.LeaveRequest) { l.Time = time.Unix(math.MaxInt64, 0) }, wire.ClockSkew},
		"before all time":                 {func(l *api.LeaveRequest) { l.Time = time.Unix(math.MinInt64, 0) }, wire.ClockSkew},
	} {
		t.Run(name, func(t *testing.T) {
			l := p.leaving()
			row.change(&l)
			_, err := a.leave(t.Context(), l)
			testworld.Refused(t, err, row.want)
		})
	}
	_, err := w.scoring().enrol(direct{a})
	testworld.Refused(t, err, wire.NoPlace)
	testworld.Must(p.enrol(direct{a}))
}
