package unit

import (
	"crypto/x509"
	"math"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/internal/channel"
	"github.com/cohort-tee/cohort/internal/history"
	"github.com/cohort-tee/cohort/internal/hostclock"
	"github.com/cohort-tee/cohort/internal/testworld"
	"github.com/cohort-tee/cohort/internal/testworld/bubble"
	"github.com/cohort-tee/cohort/internal/unitauth"
	"github.com/cohort-tee/cohort/internal/wire"
	"github.com/cohort-tee/cohort/policy"
	"github.com/cohort-tee/cohort/unit/unittest"
)

// adopted waits until a unit has adopted the newest policy of w.
func adopted(t *testing.T, w *unittest.World, u *Unit) {
	t.Helper()
	testworld.Within(t, 5*time.Second, "the step is adopted", func() bool { return u.newest().PolicyHead() == w.Policy().PolicyHead() })
}

// TestStepsConcern: all units adopt a step at once, and only those that it concerns renew.
func TestStepsConcern(t *testing.T) {
	w := unittest.New(t, "1h")
	f := w.Authority(w.AuthorityKeys)
	f.Spread = 0
	scoring, other := started(w, "scoring", f), started(w, "other", f)
	asked := f.Asked()
	release := "[task.other]\n"
	for _, c := range []struct{ name, old, new string }{
		{"another release", release, "[task.scoring.release.\"2\"]\nreference = [ { platform = \"soft\", program = \"scoring 2\" } ]\n" + release},
		{"another task", release, "[task.third]\nkey_mode = \"unit\"\nlifetime = \"1h\"\n[task.third.release.\"1\"]\nreference = [ { platform = \"soft\", program = \"third\" } ]\n" + release},
		{"a comment", release, "# nothing\n" + release},
	} {
		w = w.Edited(c.old, c.new)
		f.Step(w)
		adopted(t, w, scoring)
		adopted(t, w, other)
		time.Sleep(50 * time.Millisecond) // a renewal would have begun by now: the spread is zero
		if got := f.Asked(); got != asked {
			t.Errorf("%s: %d units renewed", c.name, got-asked)
		}
	}
	w = w.Edited(`env = { LANG = "C" }`, `env = { LANG = "D" }`)
	f.Step(w)
	testworld.Within(t, 5*time.Second, "the unit renews", func() bool { return scoring.Environment()["LANG"] == "D" })
	adopted(t, w, other)
	testworld.Within(t, time.Second, "it renews once", func() bool { return f.Asked() == asked+1 })
	if got := other.Stats().Renewals; got != 1 {
		t.Errorf("the other unit holds its certificate number %d, want 1", got)
	}
}

// TestStatementConcerns: a party's statement concerns only the units of its group.
func TestStatementConcerns(t *testing.T) {
	w := unittest.Grouped(t)
	statement := w.Steps[len(w.Steps)-1]
	w.Steps = w.Steps[:len(w.Steps)-1]
	f := w.Authority(w.AuthorityKeys)
	f.Spread = 0
	u := started(w, "other", f)
	asked := f.Asked()
	w.World = w.WithStep(statement)
	f.Step(w)
	adopted(t, w, u)
	time.Sleep(50 * time.Millisecond) // as above
	if got := f.Asked(); got != asked {
		t.Errorf("%d units outside the group renewed", got-asked)
	}
}

// TestRenewalSpread: renewals that a step makes necessary are spread over the time that the
// authority has proved.
func TestRenewalSpread(t *testing.T) {
	const spread = 8 * time.Second
	w := unittest.New(t, "1h")
	f := w.Authority(w.AuthorityKeys)
	f.Spread = spread
	judge := func(*x509.Certificate) (policy.Approved, time.Time, error) { return w.Policy(), time.Now(), nil }
	peer, err := history.NewPeer(history.Config{Address: f.URL, LeafPolicy: judge, Clock: time.Now})
	testworld.NoError(t, err)
	defer peer.Close()
	seen, err := peer.Follow(t.Context(), history.History{}, w.Genesis())
	testworld.NoError(t, err)
	bubble.Test(t, func(t *testing.T) {
		earliest, latest := time.Duration(math.MaxInt64), time.Duration(0)
		for range 200 {
			u := idle(hostclock.New(bubbleClock))
			u.seen.Store(&seen)
			after := time.Now().Add(time.Hour)
			u.enrolled.Store(&enrolment{renewAfter: after, renewBefore: after}) // facts unknown to the history: a renewal is due
			begin := time.Now()
			testworld.NoError(t, u.awaitRenewal(t.Context()))
			took := time.Since(begin)
			earliest, latest = min(earliest, took), max(latest, took)
		}
		if earliest > spread/8 || latest < spread*7/8 || latest > spread {
			t.Errorf("200 renewals fell between %v and %v, want them over %v", earliest, latest, spread)
		}
	})
}

// TestApprovalEndsTheWait: a unit waits for a step. When the step comes, the unit enrols
// without waiting for the end of its back-off.
func TestApprovalEndsTheWait(t *testing.T) {
	w := unittest.New(t, "1h")
	f := w.Authority(w.AuthorityKeys)
	f.Faults.Refusal = wire.Refuse(wire.NoQuorum, "group", "1 of 2", "2")
	started := make(chan error, 1)
	go func() {
		u, err := Start(t.Context(), configOf(w, "scoring", f))
		if err == nil {
			u.Close()
		}
		started <- err
	}()
	testworld.Within(t, 20*time.Second, "the back-off is over a second", func() bool { return f.Asked() >= 7 })
	begin := time.Now()
	w = w.Edited(`env = { LANG = "C" }`, `env = { LANG = "D" }`)
	f.Set(func(f *unittest.Authority) { f.Steps, f.Faults.Refusal = w.Entries(), nil })
	testworld.NoError(t, <-started)
	if took := time.Since(begin); took > 500*time.Millisecond {
		t.Errorf("enrolled %v after the step", took)
	}
}

// TestCutUnitStops: a unit that the newest policy cuts off serves nothing from the moment
// at which it learns of it, whatever its certificate's validity.
func TestCutUnitStops(t *testing.T) {
	w := unittest.New(t, "1h")
	f := w.Authority(w.AuthorityKeys)
	cut, left := started(w, "scoring", f), started(w, "scoring", f)
	f.Set(func(f *unittest.Authority) { f.Faults.Refusal = wire.Refuse(wire.Unavailable, "authority", "", "") }) // renewal fails
	w = w.Edited("[task.scoring]\n", "[task.scoring]\ncut_units = [\""+cut.ID().String()+"\"]\n")
	f.Step(w)
	testworld.Within(t, 5*time.Second, "it is refused", func() bool { return wire.ReasonOf(cut.Ready()) == wire.CutOff })
	adopted(t, w, left)
	testworld.NoError(t, left.Ready())
	if _, err := cut.ServerTLS().GetCertificate(nil); wire.ReasonOf(err) != wire.CutOff {
		t.Errorf("a handshake: got %v", err)
	}
	open := func(u *Unit) (sealed []byte, err error) {
		o, err := channel.NewClientHandshake(unitauth.Pin{Genesis: u.config.Genesis, Task: "scoring"}, 0)
		testworld.NoError(t, err)
		a, err := u.cluster.host.Accept(channel.OpenRequest{Body: o.Request(), Number: 1}, u.currentTime())
		if err == nil {
			_, sealed, err = a.Finish(attest.Evidence{}, u.currentTime())
		}
		return sealed, err
	}
	if _, err := open(cut); wire.ReasonOf(err) != wire.CutOff {
		t.Errorf("a session: got %v", err)
	}
	if sealed, err := open(left); err != nil || sealed != nil {
		t.Errorf("a session with the other unit: got %d sealed bytes, %v, want one that stays with it", len(sealed), err)
	}
}

// TestSilence: a unit in a group that gets no proved head for the time that the policy
// permits serves nothing, and continues when it gets one. A unit outside of groups is
// unaffected. The unit's clock may differ from the authority's.
func TestSilence(t *testing.T) {
	w := unittest.Grouped(t, "development  = true\n", "development  = true\nmax_silence = \"10m\"\n")
	f := w.Authority(w.AuthorityKeys)
	var skew atomic.Int64
	skew.Store(int64(4 * time.Minute))
	clock := func() (time.Time, time.Duration) {
		wall, elapsed := hostclock.System()
		return wall.Add(time.Duration(skew.Load())), elapsed + time.Duration(skew.Load())
	}
	config := member(w, "holder", "keys", f)
	config.Clock = clock
	member, err := Start(t.Context(), config)
	testworld.NoError(t, err)
	t.Cleanup(member.Close)
	alone := configOf(w, "other", f)
	alone.Clock = clock
	u, err := Start(t.Context(), alone)
	testworld.NoError(t, err)
	t.Cleanup(u.Close)
	testworld.NoError(t, member.Ready())

	f.Set(func(f *unittest.Authority) { f.Faults.Serve = unittest.Unavailable{} })
	skew.Add(int64(9 * time.Minute))
	testworld.NoError(t, member.Ready())
	skew.Add(int64(2 * time.Minute))
	testworld.Refused(t, member.Ready(), wire.Expired)
	if err := member.Ready(); !strings.Contains(err.Error(), "max_silence") {
		t.Errorf("got %v, want it to name max_silence", err)
	}
	testworld.NoError(t, u.Ready())
	f.Set(func(f *unittest.Authority) {
		f.Faults.Serve = nil
		f.Clock = func() time.Time { return time.Now().Add(11 * time.Minute) } // the same time has passed at the authority
	})
	testworld.Within(t, 10*time.Second, "it goes on", func() bool { return member.Ready() == nil })
}
