package unit

import (
	"context"
	"time"

	"github.com/cohort-tee/cohort/internal/history"
	"github.com/cohort-tee/cohort/internal/wire"
)

// adopt makes a history the newest that is seen, unless another goroutine has adopted a
// newer one meanwhile. All checks of peers count by it from then on, and connections end
// that it does not let the unit have.
func (u *Unit) adopt(h history.History) {
	u.steps.mu.Lock()
	defer u.steps.mu.Unlock()
	known := u.seen.Load()
	before, now := known.Policy(), h.Policy()
	if before.Genuine() && !now.Knows(before.PolicyHead()) || now.PolicyHead() == before.PolicyHead() && h.Proved().SignedAt().Before(known.Proved().SignedAt()) {
		return
	}
	u.seen.Store(&h)
	if now.PolicyHead() == before.PolicyHead() {
		return
	}
	u.config.Log.Debug("policy step adopted", "unit", u.id, "head", now.PolicyHead(), "steps", len(now.Heads()))
	u.cluster.host.Follow(now)
	u.closeRevoked()
	close(u.steps.moved)
	u.steps.moved = make(chan struct{})
}

// watchHistory keeps the history that the unit has seen current until ctx is done.
func (u *Unit) watchHistory(ctx context.Context) {
	select {
	case <-u.steps.nextStep(): // the first history comes with the first certificate
	case <-ctx.Done():
	}
	u.watcher.Run(ctx)
}

// hintHead handles a head that a client or a peer presents.
func (u *Unit) hintHead(unverified []byte) {
	u.watcher.HintHead(unverified, u.authorityRoot(), u.currentTime())
}

// watchedAt reports whether the history is kept current by a poll at an authority, so that
// a renewal there need not ask for it.
func (u *Unit) watchedAt(p *peer) bool {
	proved, e := u.seen.Load().Proved(), u.enrolled.Load()
	return u.watcher.CurrentSource() == history.Source(p) && e != nil && u.currentTime().Add(-e.offset).Sub(proved.SignedAt()) < u.pollTime()+attemptTime
}

// mustRenew reports whether a step that was adopted since a certificate was issued makes
// the unit renew at once: one about its task or group, its platform, the tasks it calls or
// the authority. Any other it adopts, and goes on.
func (u *Unit) mustRenew(e *enrolment) bool {
	newest := u.newest()
	return e != nil && newest.Genuine() && newest.Concerns(e.facts.Head, e.facts)
}

// checkNotCutOff refuses what the newest policy cuts off, with the reason that any peer has for it,
// and a unit in a group without a recent head of the authority.
func (u *Unit) checkNotCutOff(e *enrolment, at time.Time) error {
	newest := u.newest()
	v := u.cutOff.Load()
	if v == nil || v.of != e || v.head != newest.PolicyHead() {
		v = &cutOffResult{e, newest.PolicyHead(), newest.CutOff(e.facts, at)}
		u.cutOff.Store(v)
	}
	if v.err != nil {
		return v.err
	}
	return u.checkSilence(e, at)
}

// checkSilence refuses, with "expired", a unit in a group whose newest proved head is older
// than policy lets it be: of the parties' approvals it knows nothing newer, and a withdrawal
// may have been kept from it. The head's age is counted by the authority's clock, as it was
// when the report came.
func (u *Unit) checkSilence(e *enrolment, at time.Time) error {
	newest := u.seen.Load()
	pact := newest.Policy().GroupByName(u.config.Group)
	if u.config.Group == "" || pact == nil {
		return nil
	}
	proved := newest.Proved()
	if proved.SignedAt().Before(e.proved.SignedAt()) {
		proved = e.proved
	}
	// Times of heads are rounded down to a second.
	age, most := at.Add(-e.offset).Sub(proved.SignedAt())-time.Second, newest.Policy().Document().Silence(pact.Group)
	if age >= most {
		return wire.Refuse(wire.Expired, "unit: newest proved policy head", age.String()+" old", "younger than "+most.String()+" (max_silence)")
	}
	return nil
}

// currentEnrolment returns the enrolment that handshakes are served from.
func (u *Unit) currentEnrolment() (*enrolment, error) {
	e := u.enrolled.Load()
	if e == nil {
		return nil, wire.Refuse(wire.NotEnrolled, "unit: certificate", "no certificate", "an enrolled unit")
	}
	now, err := u.clock.CheckedTime()
	if err != nil {
		return nil, err
	}
	if !now.Before(e.notAfter) {
		return nil, wire.Refuse(wire.CertExpired, "unit: time", now.UTC().Format(time.RFC3339), "before "+e.notAfter.UTC().Format(time.RFC3339))
	}
	if err := u.checkNotCutOff(e, now); err != nil {
		return nil, err
	}
	return e, nil
}

// Ready reports whether the unit can serve: nil, or a refusal with the reason
// "certificate-expired" when no authority renewed in time, "clock" while the wall
// clock is more than 2 minutes from the unit's time, "cut-off" or "withdrawn" when the
// newest policy cuts the unit off, or "not-enrolled" after Close.
func (u *Unit) Ready() error {
	_, err := u.currentEnrolment()
	return err
}

// closeRevoked ends the connections that the newest policy does not let the unit have: those
// with a peer that it cuts off, and all of a unit that it cuts off. A unit that needs no
// more than a newer certificate keeps its own.
func (u *Unit) closeRevoked() {
	own := false
	if e := u.enrolled.Load(); e != nil {
		renewed := e.facts
		renewed.Head = u.newest().PolicyHead()
		own = u.newest().CutOff(renewed, u.currentTime()) != nil
	}
	for _, c := range u.conns.snapshot() {
		if own || c.checkStillAllowed() != nil {
			c.closeNow()
		}
	}
}
