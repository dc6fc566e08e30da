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

// Times of a unit in its cluster.
const (
	hastenInterval     = 30 * time.Second // at most one early renewal in this time
	hastenSpread       = time.Second      // random delay, so that units do not all renew at once
	maxResealDelay     = 5 * time.Second  // maximum delay after a renewal
	resealPause        = 20 * time.Millisecond
	lateResealInterval = 200 * time.Millisecond // about the interval at which sessions that arrived under older keys are sealed again
)

// maxReseal is the maximum number of sessions that one call seals again.
const maxReseal = 256

// startCluster starts the goroutines that share sessions with the other units, until ctx is
// done.
func (u *Unit) startCluster(ctx context.Context) {
	u.cluster.tasks.Go(func() { u.reseal(ctx) })
	if u.config.Manager.URL != "" {
		u.cluster.tasks.Go(func() { u.runBus(ctx) })
	}
}

// applyCredentials passes the credentials of an enrolment to the channel. The goroutine that
// enrols calls it before the enrolment becomes current.
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

// withOldKeys returns next with the newest key of before as its previous key, for an authority
// that restarted and no longer knows that key. Sessions under the key stay valid until it
// expires. The caller ensures that no unit was cut off in between.
func withOldKeys(before, next identity.RingKeys, now time.Time) identity.RingKeys {
	for _, old := range []*identity.RingKey{before.Current, before.Previous} {
		if next.Previous == nil && old != nil && old.ID() != next.Current.ID() && now.Before(old.Expires()) {
			next.Previous = old.Until(old.Expires()) // a copy, because the host erases its former keys
		}
	}
	return next
}

// reseal seals sessions again after each renewal, because the current ring key may have changed.
// Each unit first waits for a random time, so that usually only one unit does it. In between,
// reseal seals sessions again that arrive under older keys, such as those of the release that
// this one continues: a successor can open only sessions under this release's keys.
func (u *Unit) reseal(ctx context.Context) {
	for ctx.Err() == nil {
		e := u.enrolled.Load()
		for replaced := false; !replaced && ctx.Err() == nil; {
			u.resealAll(ctx)
			replaced, _ = pauseUntil(ctx, lateResealInterval/2+rand.N(lateResealInterval), e.replaced) // the loop checks ctx
		}
		wait := min(maxResealDelay, e.renewBefore.Sub(e.renewAfter))
		_ = retry.Sleep(ctx, rand.N(wait+1)) // the loop checks ctx
	}
}

// resealAll seals and publishes again all sessions that are not under a current ring key,
// maxReseal at a time.
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

// resealSome seals at most maxReseal sessions again, and returns the number of those left.
func (u *Unit) resealSome() (sealed [][]byte, left int) {
	sealed, left, err := u.cluster.host.Reseal(maxReseal, u.currentTime())
	if err != nil && !errors.Is(err, wire.CutOff) { // a unit that is cut off seals no sessions
		u.config.Log.Warn("sessions are not sealed again", "unit", u.id, "reason", wire.ReasonOf(err), "cause", err)
	}
	return sealed, left
}

// renewSoon requests an early renewal, because a session arrived under a ring key that the unit
// does not have, or a peer under a policy that the unit may not have seen. Any client can invent
// such a session, so only one call in hastenInterval has an effect.
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

// awaitStep blocks for the time d, or until an early renewal is requested or a policy step
// concerns the unit. It returns soon = true in the latter cases.
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

// withChannel returns a handler that serves the trusted channel, and passes requests of sessions
// and all others to h.
func (u *Unit) withChannel(h http.Handler) (http.Handler, error) {
	server, err := channelhttp.NewServer(channelhttp.ServerConfig{
		Host: u.cluster.host, App: h, Relay: u.cluster.relay, Attester: u.forClients(),
		Serves:      func(a string) bool { return u.newest().Document().Serves(u.config.Task, u.config.Group, a) },
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

// announceAddress reports the unit's address to the managers until leave is called.
func (u *Unit) announceAddress(listening net.Addr) (leave func()) {
	address := u.config.Address
	if address == "" {
		address = listening.String()
	}
	u.cluster.address.Store(&address)
	u.cluster.serving.Add(1)
	return sync.OnceFunc(func() { u.cluster.serving.Add(-1) })
}

// forClients returns an attester for clients' sessions. It supports credentials if the unit's
// TEE does.
func (u *Unit) forClients() attest.Attester {
	if tee, ok := u.tee.Attester.(attest.CredentialAttester); ok {
		return challengedAttester{staplingAttester{u}, tee}
	}
	return staplingAttester{u}
}

// staplingAttester adds the endorsements from the newest certificate report to the unit's
// evidence.
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

// challengedAttester is a staplingAttester that implements [attest.CredentialAttester].
type challengedAttester struct {
	staplingAttester
	tee attest.CredentialAttester
}

func (c challengedAttester) TPMKeys() attest.TPMKeys { return c.tee.TPMKeys() }

func (c challengedAttester) AttestFor(ctx context.Context, data attest.ReportData, credential []byte) (attest.Evidence, error) {
	return c.attest(ctx, data, credential)
}

// Caller identifies the sender of a request through the trusted channel to a handler, by a tag
// that is the same for all requests of one session.
type Caller = channel.Caller

// CallerOf returns the caller of a request; ok is false if the request did not arrive through
// the trusted channel.
func CallerOf(ctx context.Context) (c Caller, ok bool) { return channelhttp.CallerOf(ctx) }
