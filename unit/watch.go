package unit

import (
	"context"
	"time"

	"github.com/cohort-tee/cohort/internal/history"
	"github.com/cohort-tee/cohort/internal/wire"
)

// adopt makes h the unit's newest history, unless the unit already has a newer one. From then
// on, checks of peers use it, and adopt closes connections that its policy refuses.
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

// watchHistory keeps the unit's history up to date until ctx is done.
func (u *Unit) watchHistory(ctx context.Context) {
	select {
	case <-u.steps.nextStep(): // the first enrolment fetches the first history
	case <-ctx.Done():
	}
	u.watcher.Run(ctx)
}

// hintHead handles an unverified policy head that a client or a peer presents.
func (u *Unit) hintHead(unverified []byte) {
	u.watcher.HintHead(unverified, u.authorityRoot(), u.currentTime())
}

// watchedAt reports whether the watcher's polls of authority p keep the history up to date, so
// that a renewal at p need not request it.
func (u *Unit) watchedAt(p *peer) bool {
	proved, e := u.seen.Load().Proved(), u.enrolled.Load()
	return u.watcher.CurrentSource() == history.Source(p) && e != nil && u.currentTime().Add(-e.offset).Sub(proved.SignedAt()) < u.pollTime()+attemptTime
}

// mustRenew reports whether a step that was adopted since the certificate of e was issued
// requires a renewal at once: a step about the unit's task or group, its platform, the tasks it
// calls, or the authority. Other steps need no renewal.
func (u *Unit) mustRenew(e *enrolment) bool {
	newest := u.newest()
	return e != nil && newest.Genuine() && newest.Concerns(e.facts.Head, e.facts)
}

// checkNotCutOff returns an error if the newest policy cuts off the unit, with the same reason
// as a peer's check, or if a unit in a group has no recent head of the authority.
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

// checkSilence returns an error with the reason "expired" for a unit in a group whose newest
// proved head is older than policy permits: the network may withhold a party's withdrawal from
// it. The age of the head is measured by the authority's clock, using the offset at the time of
// the report.
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
	// Times of heads are rounded down to whole seconds.
	age, most := at.Add(-e.offset).Sub(proved.SignedAt())-time.Second, newest.Policy().Document().Silence(pact.Group)
	if age >= most {
		return wire.Refuse(wire.Expired, "unit: newest proved policy head", age.String()+" old", "younger than "+most.String()+" (max_silence)")
	}
	return nil
}

// currentEnrolment returns the newest enrolment for handshakes, or a refusal if the unit cannot
// serve.
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

// Ready returns nil if the unit can serve. Otherwise it returns a refusal with the reason
// "certificate-expired" if no authority renewed the certificate in time, "clock" while the wall
// clock differs from the unit's time by more than 2 minutes, "cut-off" or "withdrawn" if the
// newest policy cuts off the unit, "expired" if a unit in a group has no recent policy head, or
// "not-enrolled" after Close.
func (u *Unit) Ready() error {
	_, err := u.currentEnrolment()
	return err
}

// closeRevoked closes the connections that the newest policy refuses: those with a peer that is
// cut off, and all connections if the unit itself is cut off. If the unit only needs a newer
// certificate, its connections stay open.
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
