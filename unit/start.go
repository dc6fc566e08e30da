package unit

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"fmt"
	"log/slog"
	"os"

	"github.com/cohort-tee/cohort/internal/busrelay"
	"github.com/cohort-tee/cohort/internal/channel"
	"github.com/cohort-tee/cohort/internal/history"
	"github.com/cohort-tee/cohort/internal/hostclock"
	"github.com/cohort-tee/cohort/internal/limit"
	"github.com/cohort-tee/cohort/internal/wire"
)

// Start makes the unit's signing key, enrols, and starts automatic renewal. It blocks until the
// unit has a certificate. It retries until ctx is done if an authority is unreachable, busy or
// behind; any other refusal is an error that wraps the refusal. The caller closes the unit.
func Start(ctx context.Context, c Config) (*Unit, error) {
	u, err := prepare(c)
	if err != nil {
		return nil, err
	}
	renewing, stop := context.WithCancel(context.WithoutCancel(ctx))
	u.stop = stop
	u.cluster.tasks.Go(func() { u.watchHistory(renewing) })
	if err := u.obtain(ctx, isFinal); err != nil {
		u.Close()
		return nil, fmt.Errorf("enrolling: %w", err)
	}
	go u.renew(renewing)
	u.watch(renewing)
	u.startCluster(renewing)
	return u, nil
}

// watch calls Fatal if a fault occurs that only a restart of the program repairs, until ctx is
// done.
func (u *Unit) watch(ctx context.Context) {
	for _, watch := range []func(context.Context) error{u.clock.Watch, u.cluster.host.Watch} {
		u.cluster.tasks.Go(func() {
			if err := watch(ctx); err != nil {
				u.config.Fatal(fmt.Errorf("unit %s serves nothing any more and ends: %w", u.id, err))
			}
		})
	}
}

// prepare makes a unit that is not enrolled.
func prepare(c Config) (*Unit, error) {
	if err := c.validate(); err != nil {
		return nil, err
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if c.Clock == nil {
		c.Clock = hostclock.System
	}
	if c.Fatal == nil {
		c.Fatal = func(err error) {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	}
	began := hostclock.New(c.Clock)
	signing, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("making the signing key: %w", err)
	}
	spki, err := x509.MarshalPKIXPublicKey(signing.Public())
	if err != nil {
		return nil, fmt.Errorf("encoding the signing key: %w", err)
	}
	host, err := channel.NewHost(signing, channel.Limits{Sessions: c.Sessions})
	if err != nil {
		return nil, err
	}
	u := &Unit{config: c, tee: serialAttester{make(chan struct{}, 1), c.Attester}, id: wire.UnitIDOf(spki), signing: signing, clock: began, spki: spki, stop: func() {}, done: make(chan struct{})}
	u.requests = limit.NewShares(quotaRequests, maxRequests)
	u.cluster.host, u.cluster.relay, u.cluster.renewNow = host, busrelay.New(host, began.Now), make(chan struct{}, 1)
	u.seen.Store(&history.History{})
	u.steps.moved = make(chan struct{})
	u.watcher = history.Watcher{Pin: c.Genesis, Current: func() history.History { return *u.seen.Load() }, Adopt: u.adopt, Wait: u.pollTime}
	for _, address := range c.Authorities {
		p, err := u.newPeer(address)
		if err != nil {
			return nil, err
		}
		u.peers = append(u.peers, p)
		u.watcher.AddSource(p)
	}
	return u, nil
}

// Close stops renewal, waits for its end, and drops the unit's certificate: later handshakes
// fail. It releases the unit's place among the units of its task, for which it waits at most 2
// seconds. A second call has no effect.
func (u *Unit) Close() {
	started := u.enrolled.Load() != nil
	u.stop()
	if started {
		<-u.done
	}
	u.cluster.tasks.Wait()
	u.enrolled.Store(nil)
	if started {
		u.leave()
	}
	for _, p := range u.peers {
		p.Close()
	}
}
