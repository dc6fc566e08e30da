package authority

import (
	"encoding/binary"
	"math"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cohort-tee/cohort/attest/attesttest"
	"github.com/cohort-tee/cohort/internal/api"
	"github.com/cohort-tee/cohort/internal/authority/trustedclock"
	"github.com/cohort-tee/cohort/internal/testworld"
	"github.com/cohort-tee/cohort/internal/wire"
)

// farAhead is the time of a broken or hostile host clock.
var farAhead = time.Date(2038, 1, 20, 0, 0, 0, 0, time.UTC)

// TestClockAheadOnce runs an authority once with the host's clock far ahead. Clients and owners
// cause refusals, proposals and challenges meanwhile. None of them stops the authority from
// starting when the clock is right again.
func TestClockAheadOnce(t *testing.T) {
	w := newWorld(t)
	_, end := w.process()
	end()
	right := w.clock.Now()
	w.clock.SetWall(farAhead)
	a, end := w.process()
	stranger := w.applicant("scoring", "--model", "another.json")
	_, err := stranger.enrol(direct{a})
	testworld.Refused(t, err, wire.NotMeasured)
	if err := a.recordRefusal(t.Context(), stranger.request(nil, nil), err); err != nil {
		t.Fatal(err)
	}
	testworld.Must(a.history.Propose(t.Context(), proposal(w.SignPolicy(w.NextText(a.inForce().approved, tighter...), "eva"))))
	nonce := testworld.Must(a.challenge(api.ChallengeRequest{})).Nonce
	end()
	w.clock.SetWall(right.Add(time.Minute))
	b := w.open()
	testworld.Must(w.scoring().enrol(direct{b}))
	// A challenge of that time would be valid for years, even if the record of its use was lost.
	_, err = b.certify(t.Context(), w.scoring().request(nonce, nil), "")
	testworld.Refused(t, err, wire.NonceUsed)
}

// TestClockWayBack: after a certificate was issued, or a policy adopted, with the clock far
// ahead, the authority refuses to start and names the cause. A quorum of owners restores the root
// from its shares into a new store, which does not have that time.
func TestClockWayBack(t *testing.T) {
	w := newWorld(t)
	a, end := w.process()
	shares := w.split(a)
	end()
	right := w.clock.Now()
	w.clock.SetWall(farAhead)
	a, end = w.process()
	testworld.Must(w.scoring().enrol(direct{a}))
	w.change(a, tighter...)
	end()
	w.clock.SetWall(right.Add(time.Minute))
	_, err := Open(t.Context(), w.config("authority"))
	testworld.Refused(t, err, wire.ClockSkew)
	if err != nil && !strings.Contains(err.Error(), "2038") {
		t.Errorf("got %q, want the time that keeps it named", err)
	}

	r := w.restoration(a, "authority")
	for _, share := range shares[:2] {
		r.config.Shares = append(r.config.Shares, testworld.Must(r.unlock(a, share)))
	}
	if _, err := Restore(t.Context(), r.config); err != nil {
		t.Fatal(err)
	}
	config := w.config("authority")
	tee := r.config.Attester.(*attesttest.Device)
	config.Attester, config.Sealer, config.Genesis = tee, tee, nil
	b, err := Open(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	if got := b.inForce().document().Sequence; got != 2 {
		t.Errorf("got policy %d after the restore, want 2", got)
	}
	testworld.Must(w.scoring().enrol(direct{b}))
}

// TestBackupOfAClockAhead: a backup made while the clock was far ahead does not stop later
// backups from being recorded.
func TestBackupOfAClockAhead(t *testing.T) {
	w := newWorld(t)
	_, end := w.process()
	end()
	right := w.clock.Now()
	w.clock.SetWall(farAhead)
	a, end := w.process()
	testworld.Must(a.backupKept(t.Context(), api.BackupKept{Share: w.split(a)[0].Bytes()}))
	end()
	w.clock.SetWall(right.Add(time.Minute))
	b := w.open()
	later := w.split(b)
	if got := testworld.Must(b.backupKept(t.Context(), api.BackupKept{Share: later[0].Bytes()})); got.ID != later[0].ID {
		t.Errorf("got backup %s recorded, want the later one, %s", got.ID, later[0].ID)
	}
}

// TestClockFloors: the authority refuses a clock before the build time of the program and before
// the newest issuance, whatever the newest row of the log is.
func TestClockFloors(t *testing.T) {
	w := newWorld(t)
	c := w.config("authority")
	c.Built = noon.Add(time.Hour)
	_, err := Open(t.Context(), c)
	testworld.Refused(t, err, wire.ClockSkew)
	c.Built = noon.Add(-time.Hour)
	a, err := Open(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	w.clock.Advance(time.Hour)
	testworld.Must(w.scoring().enrol(direct{a}))
	for range 3 { // newer rows of refusals do not hide the issuance
		if err := a.recordRefusal(t.Context(), api.CertificateRequest{}, wire.Refuse(wire.NonceUsed, "", "", "")); err != nil {
			t.Fatal(err)
		}
	}
	w.clock.JumpWall(-time.Hour)
	_, err = Open(t.Context(), w.config("authority"))
	testworld.Refused(t, err, wire.ClockSkew)
}

// TestClockJumps moves the host's clock while the authority runs, once for one reading and once
// until it is moved back. The authority issues nothing meanwhile, and issues again afterwards.
func TestClockJumps(t *testing.T) {
	w := newWorld(t)
	a := w.open()
	testworld.Must(w.scoring().enrol(direct{a}))
	for _, jump := range []time.Duration{time.Hour, 25 * time.Hour, -time.Hour, farAhead.Sub(noon), time.Unix(0, 0).Sub(noon)} {
		w.clock.JumpWall(jump)
		_, err := w.scoring().enrol(direct{a})
		testworld.Refused(t, err, wire.ClockSkew)
		_ = a.history.Sync(t.Context())
		w.clock.JumpWall(-jump)
		if _, err := w.scoring().enrol(direct{a}); err != nil {
			t.Errorf("after a jump of %v and back: %v", jump, err)
		}
	}
	if now := testworld.Must(a.clock.Now()); now.After(noon.Add(time.Second)) {
		t.Errorf("got time %v, want the jumps without trace", now)
	}
}

// TestExpiriesOfNonces checks challenges with valid MACs and extreme expiries.
func TestExpiriesOfNonces(t *testing.T) {
	w := newWorld(t)
	a := w.open()
	for _, expiry := range []uint64{0, 1, 1 << 31, 1<<32 - 1, math.MaxInt64, 1 << 63, math.MaxUint64 - 1, math.MaxUint64} {
		body := append(binary.BigEndian.AppendUint64(nil, expiry), make([]byte, 16)...)
		err := a.checkNonce(slices.Concat(body, a.root.Keys.NonceMAC(body)), noon)
		if err == nil {
			t.Errorf("a challenge until %d: taken", expiry)
		}
	}
}

// TestBelievable: a document signed up to 2 minutes ahead of the wall clock is accepted, whatever
// the floor; a later one is refused.
func TestBelievable(t *testing.T) {
	clock := testworld.NewClock(noon)
	g := trustedclock.New(clock.Read)
	g.Raise(noon.Add(wire.MaxClockJump))
	if err := g.CheckSigned(noon.Add(wire.MaxClockJump)); err != nil {
		t.Error(err)
	}
	testworld.Refused(t, g.CheckSigned(noon.Add(wire.MaxClockJump+time.Second)), wire.ClockSkew)
}
