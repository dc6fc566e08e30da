package unit

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/identity"
	"github.com/cohort-tee/cohort/internal/channel"
	"github.com/cohort-tee/cohort/internal/channelhttp"
	"github.com/cohort-tee/cohort/internal/envelope"
	"github.com/cohort-tee/cohort/internal/retry"
	"github.com/cohort-tee/cohort/internal/wire"
)

// Times of a unit's part in its cluster.
const (
	hastenInterval     = 30 * time.Second // renewals ahead of time, at most one
	hastenSpread       = time.Second      // so that units do not all renew at once
	maxResealDelay     = 5 * time.Second  // after a renewal, at most
	resealPause        = 20 * time.Millisecond
	lateResealInterval = 200 * time.Millisecond // sessions that came under older keys, about so often
)

// maxReseal bounds the sessions that are sealed again at a time.
const maxReseal = 256

// startCluster begins the unit's part in its cluster, until ctx is done.
func (u *Unit) startCluster(ctx context.Context) {
	u.cluster.tasks.Go(func() { u.reseal(ctx) })
	if u.config.Manager.URL != "" {
		u.cluster.tasks.Go(func() { u.runBus(ctx) })
	}
}

// applyCredentials gives the channel the credentials of an enrolment. The goroutine that
// enrols calls it before the enrolment is current.
func (u *Unit) applyCredentials(e *enrolment) error {
	unit, err := x509.ParseCertificate(e.unit)
	if err != nil {
		return fmt.Errorf("reading the unit certificate: %w", err)
	}
	if before := u.enrolled.Load(); before != nil && before.identity.ID == e.identity.ID {
		now := u.currentTime()
		again := func(of identity.RingHolders, was, is identity.RingKeys) identity.RingKeys {
			if identity.RingCutSince(e.policy, of, before.policy.PolicyHead()) {
				return is
			}
			return withOldKeys(was, is, now)
		}
		id := e.identity.ID
		e.ring.Strict = again(identity.RingHolders{Identity: id, Role: e.identity.Role}, before.ring.Strict, e.ring.Strict)
		e.ring.Follow = again(identity.RingHolders{Identity: id, Follow: true}, before.ring.Follow, e.ring.Follow)
		if from := &e.ring.Inherited; !from.Identity.IsZero() && from.Identity == before.ring.Inherited.Identity {
			from.Keys = again(identity.RingHolders{Identity: from.Identity, Follow: true}, before.ring.Inherited.Keys, from.Keys)
		}
	}
	oneOff := false
	if task := e.policy.Document().Tasks[e.identity.Task]; task != nil && e.identity.Group == "" {
		oneOff = task.Releases[e.identity.Release].OneOff
	}
	return u.cluster.host.Update(channel.UnitCredentials{
		Task: e.identity.Task, Group: e.identity.Group, Role: e.identity.Role, Identity: e.identity.ID, Genesis: u.config.Genesis,
		Root: wire.Sum(e.root.RawSubjectPublicKeyInfo), Head: e.policy.PolicyHead(),
		Unit: e.unit, Cross: e.identity.Signing(e.unit)[1], NotAfter: unit.NotAfter, OneOff: oneOff, Facts: e.facts, Ring: e.ring,
	})
}

// withOldKeys returns next with the newest key of before, if an authority that restarted
// does not know that key: sessions under it remain valid until its end. No unit may have
// been cut off in between.
func withOldKeys(before, next identity.RingKeys, now time.Time) identity.RingKeys {
	for _, old := range []*identity.RingKey{before.Current, before.Previous} {
		if next.Previous == nil && old != nil && old.ID() != next.Current.ID() && now.Before(old.Expires()) {
			next.Previous = old.Until(old.Expires()) // a copy, because the host erases its former keys
		}
	}
	return next
}

// reseal seals sessions again after each renewal, because the ring may have
// rolled. Units wait for a random while first, so that mostly one does it. From
// then on it seals those again that come under older keys, such as those of the
// release that this one continues: a successor opens only what is sealed here.
func (u *Unit) reseal(ctx context.Context) {
	for ctx.Err() == nil {
		e := u.enrolled.Load()
		for replaced := false; !replaced && ctx.Err() == nil; {
			u.resealAll(ctx)
			replaced, _ = pauseUntil(ctx, lateResealInterval/2+rand.N(lateResealInterval), e.replaced) // the loop sees ctx
		}
		wait := min(maxResealDelay, e.renewBefore.Sub(e.renewAfter))
		_ = retry.Sleep(ctx, rand.N(wait+1)) // the loop sees ctx
	}
}

// resealAll seals and publishes again what is not under a current ring key, a part at a time.
func (u *Unit) resealAll(ctx context.Context) {
	for {
		sealed, left := u.resealSome()
		for _, s := range sealed {
			u.cluster.relay.Push(envelope.Session, s)
		}
		if left == 0 || retry.Sleep(ctx, resealPause) != nil {
			return
		}
	}
}

// resealSome seals some sessions again, and returns how many are left.
func (u *Unit) resealSome() (sealed [][]byte, left int) {
	sealed, left, err := u.cluster.host.Reseal(maxReseal, u.currentTime())
	if err != nil && !errors.Is(err, wire.CutOff) { // a unit that is cut off seals nothing
		u.config.Log.Warn("sessions are not sealed again", "unit", u.id, "reason", wire.ReasonOf(err), "cause", err)
	}
	return sealed, left
}

// renewSoon asks for a renewal ahead of time, because a session came under a ring
// key that the unit does not have. Any client can invent such a session, so the
// rate is limited to once in hastenInterval.
func (u *Unit) renewSoon() {
	now, last := u.currentTime().UnixNano(), u.cluster.lastHastened.Load()
	if now-last < int64(hastenInterval) || !u.cluster.lastHastened.CompareAndSwap(last, now) {
		return
	}
	select {
	case u.cluster.renewNow <- struct{}{}:
	default:
	}
}

// awaitStep blocks for d, or until a renewal is asked for ahead of time or a step concerns
// the unit, and reports whether it was one of these.
func (u *Unit) awaitStep(ctx context.Context, d time.Duration) (soon bool, err error) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	for {
		moved := u.steps.nextStep()
		if u.mustRenew(u.enrolled.Load()) {
			return true, retry.Sleep(ctx, rand.N(u.spread()+1))
		}
		select {
		case <-moved:
		case <-u.cluster.renewNow:
			return true, retry.Sleep(ctx, rand.N(hastenSpread))
		case <-ctx.Done():
			return false, ctx.Err()
		case <-timer.C:
			return false, ctx.Err()
		}
	}
}

// withChannel returns h behind the trusted channel: requests of sessions
// reach h like any others.
func (u *Unit) withChannel(h http.Handler) (http.Handler, error) {
	server, err := channelhttp.NewServer(channelhttp.ServerConfig{
		Host: u.cluster.host, App: h, Relay: u.cluster.relay, Attester: u.forClients(),
		RingUnknown: u.renewSoon, Heads: channelhttp.Heads{Newest: u.provedHead, Received: u.hintHead}, Crowded: u.counters.quotas.Count, Clock: u.clock.CheckedTime, Log: u.config.Log,
	})
	if err != nil {
		return nil, fmt.Errorf("serving the channel: %w", err)
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		u.cluster.inFlight.Add(1)
		defer u.cluster.inFlight.Add(-1)
		server.ServeHTTP(w, r)
	}), nil
}

// announceAddress reports to the manager where the unit serves, until leave is called.
func (u *Unit) announceAddress(listening net.Addr) (leave func()) {
	address := u.config.Address
	if address == "" {
		address = listening.String()
	}
	u.cluster.address.Store(&address)
	u.cluster.serving.Add(1)
	return sync.OnceFunc(func() { u.cluster.serving.Add(-1) })
}

// forClients returns the unit's attester for clients, who can challenge it if its
// platform supports challenges.
func (u *Unit) forClients() attest.Attester {
	if tee, ok := u.tee.Attester.(attest.CredentialAttester); ok {
		return challengedAttester{staplingAttester{u}, tee}
	}
	return staplingAttester{u}
}

// staplingAttester is the unit's attester that adds the endorsements of the newest report to
// the evidence.
type staplingAttester struct{ u *Unit }

// Attest implements [attest.Attester].
func (s staplingAttester) Attest(ctx context.Context, data attest.ReportData) (attest.Evidence, error) {
	return s.attest(ctx, data, nil)
}

func (s staplingAttester) attest(ctx context.Context, data attest.ReportData, credential []byte) (attest.Evidence, error) {
	evidence, err := s.u.tee.attest(ctx, data, credential)
	if e := s.u.enrolled.Load(); err == nil && e != nil {
		evidence = evidence.WithEach(e.endorsed)
	}
	return evidence, err
}

// challengedAttester is a stapling attester that introduces itself.
type challengedAttester struct {
	staplingAttester
	tee attest.CredentialAttester
}

func (c challengedAttester) TPMKeys() attest.TPMKeys { return c.tee.TPMKeys() }

func (c challengedAttester) AttestFor(ctx context.Context, data attest.ReportData, credential []byte) (attest.Evidence, error) {
	return c.attest(ctx, data, credential)
}

// Caller is who sent a request through the trusted channel, as a handler may
// know it: a tag that is the same for all requests of one session.
type Caller = channel.Caller

// CallerOf returns the caller of a request; ok is false when it did not come
// through the trusted channel.
func CallerOf(ctx context.Context) (c Caller, ok bool) { return channelhttp.CallerOf(ctx) }
