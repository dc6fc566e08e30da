package unit

import (
	"context"
	"sync"
	"time"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/internal/api"
	"github.com/cohort-tee/cohort/internal/history"
	"github.com/cohort-tee/cohort/internal/wire"
	"github.com/cohort-tee/cohort/policy"
)

// stepNotifier announces steps that a unit adopts.
type stepNotifier struct {
	mu    sync.Mutex
	moved chan struct{} // guarded by mu: closed when a step is adopted
}

// nextStep returns a channel that is closed when the next step is adopted.
func (s *stepNotifier) nextStep() <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.moved
}

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

// provedHead is the newest proved head, to be shown to clients.
func (u *Unit) provedHead() []byte { return u.seen.Load().Proved().Bytes() }

// pollTime is how long one poll waits: in a group a third of the time that it goes on
// without a proved head, at most.
func (u *Unit) pollTime() time.Duration {
	p := u.newest()
	if pact := p.GroupByName(u.config.Group); u.config.Group != "" && pact != nil {
		return min(api.MaxPoll, p.Document().Silence(pact.Group)/3)
	}
	return api.MaxPoll
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

// spread is how long renewals that one step makes necessary are spread, as the authority
// has it.
func (u *Unit) spread() time.Duration { return u.seen.Load().Proved().Spread() }

// cutOffResult is what the newest policy says of an enrolment. It is kept until one of the two
// changes, because it is asked for at every request.
type cutOffResult struct {
	of   *enrolment
	head attest.Digest
	err  error
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

// newest is the newest policy that the unit has seen.
func (u *Unit) newest() policy.Approved { return u.seen.Load().Policy() }
