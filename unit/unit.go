// Package unit is the SDK for computing units: programs that run inside a TEE
// with their task's attested identity.
//
// [Start] proves the program to an authority and returns a [Unit] that has a
// certificate, serves TLS with it, and renews it automatically, with fresh evidence
// each time, until [Unit.Close]. There is no half-ready Unit.
//
// It trusts the TEE it runs in and one digest, that of the genesis policy. The
// policy history authenticates itself by its owners' signatures back to that
// digest; the authority must have the root which the newest policy names; the
// certificate report must be signed by that authority and respond to this
// unit's own request. It refuses everything else, a history older than one it
// has seen, and certificates that are not valid at its own time. The host, which
// also provides addresses, is trusted for availability only.
//
// `cohort unit` does the same for a program that knows nothing of Cohort.
//
// Private keys live in memory only. Go copies memory freely, so erasing them is
// best effort unless the program is built with GOEXPERIMENT=runtimesecret.
//
// Files, each using those before it: health.go, history.go, enrol.go, renew.go, bus.go, channel.go, watch.go,
// opened.go, unit.go, credentials.go, peer.go, serve.go, tls.go.
package unit

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/url"
	"os"
	"sync/atomic"
	"time"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/identity"
	"github.com/cohort-tee/cohort/internal/bus"
	"github.com/cohort-tee/cohort/internal/busrelay"
	"github.com/cohort-tee/cohort/internal/channel"
	"github.com/cohort-tee/cohort/internal/history"
	"github.com/cohort-tee/cohort/internal/hostclock"
	"github.com/cohort-tee/cohort/internal/limit"
	"github.com/cohort-tee/cohort/internal/wire"
)

// Config is the identity of a unit, and what it trusts.
type Config struct {
	// Authorities are the https URLs of the authority's replicas. They are
	// tried in order, the one that responded last first. They are
	// untrusted.
	Authorities []string
	// Genesis is the digest of the first policy, the one value that all
	// trust follows from.
	Genesis attest.Digest
	// Task is the task whose code this program is. Either it is given, or
	// Group and Role.
	Task string
	// Group and Role are the group that the unit works in, and as what. Its
	// program is then a member of that role.
	Group, Role string
	// PartyKeys are the digests (policy.KeyDigest) of the SSH keys of the unit's own
	// party, required with Group: its key, or its old and its new key. The unit is
	// admitted only under rosters that name exactly this party for its program in
	// its role, and that this party approves; the unit checks both at each renewal.
	// Evidence is bound to the keys, but no measurement covers them: they protect the
	// data of those who configure the unit.
	PartyKeys []attest.Digest
	// Roster is the one roster under which the unit works. Zero is any roster that
	// its party approves.
	Roster attest.Digest
	// PeerParties are, by role, the digests of the SSH keys of the parties whose
	// programs the unit accepts in that role, as caller and as server. Programs of
	// a role that is left out are accepted from each party of the roster.
	PeerParties map[string][]attest.Digest
	// Attester is the TEE the program runs in. It is called from one
	// goroutine at a time.
	Attester attest.Attester
	// Manager is the cluster manager that relays sessions between the units
	// and whose gateway users come through. It is optional.
	Manager Manager
	// Address is the host:port at which the manager's gateway reaches
	// [Unit.Serve]. Empty is the address of its listener.
	Address string
	// Sessions is how many open sessions the unit keeps, those that others
	// opened included, at up to 640 bytes each. It opens a quarter of them
	// at most. Zero is 131,072. Above that, sessions are evicted that were not used yet,
	// or not for 2 minutes; the client's ticket restores them.
	Sessions int
	// Log receives one warning for each step of back-off. Nil discards them.
	Log *slog.Logger
	// Clock reads the machine's wall clock, which its host sets, and the time since
	// some fixed moment, suspended time included. The unit's own time is the wall
	// clock at its start plus what passed since. Nil is the machine's clocks, the
	// latter CLOCK_BOOTTIME.
	Clock func() (wall time.Time, elapsed time.Duration)
	// Fatal ends the program. It is called with a fault that only another
	// start repairs: the wall clock was set more than 2 minutes off and stayed so
	// for 10 seconds ("clock"), or a call locks the unit's sessions and does not
	// end ("internal"). The unit serves nothing then, and Close would wait for
	// Fatal. Nil prints the fault on the standard error and exits with status 1.
	Fatal func(error)
}

// Unit is one start of one program with its certificate. It is safe for
// concurrent use. The TLS configurations and handlers that it returns are
// live: they use the newest certificate and the newest policy at each handshake.
type Unit struct {
	config   Config
	tee      serialAttester
	id       wire.UnitID
	signing  *ecdsa.PrivateKey
	clock    *hostclock.Clock
	spki     []byte  // of signing
	peers    []*peer // ordered by the goroutine that enrols
	cluster  clusterState
	requests *limit.Shares // in flight, and connections that are forwarded as TCP

	seen     atomic.Pointer[history.History] // the newest; written by adopt
	steps    stepNotifier
	watcher  history.Watcher
	conns    connSet
	cutOff   atomic.Pointer[cutOffResult] // of the newest policy on held; nil before the first
	enrolled atomic.Pointer[enrolment]    // nil before the first and after Close
	counters counters

	stop context.CancelFunc
	done chan struct{} // closed when the renewal goroutine has ended
}

// Start makes the unit's signing key, enrols, and begins to renew. It blocks
// until the unit has a certificate, retrying an authority that is unreachable,
// busy or behind until ctx is done; any other refusal ends it, with an error
// that wraps the refusal. The caller closes the unit.
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

// watch calls Fatal, until ctx is done, when only another start of the program helps.
func (u *Unit) watch(ctx context.Context) {
	for _, watch := range []func(context.Context) error{u.clock.Watch, u.cluster.host.Watch} {
		u.cluster.tasks.Go(func() {
			if err := watch(ctx); err != nil {
				u.config.Fatal(fmt.Errorf("unit %s serves nothing any more and ends: %w", u.id, err))
			}
		})
	}
}

// currentTime returns the unit's time.
func (u *Unit) currentTime() time.Time { return u.clock.Now() }

// prepare makes a unit that has not enrolled.
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

// validate returns every fault of a configuration.
func (c Config) validate() error {
	var faults []error
	fault := func(rule string, got, want any) {
		faults = append(faults, wire.Refuse(wire.BadRequest, "unit configuration: "+rule, got, want))
	}
	if len(c.Authorities) == 0 {
		fault("authorities", "no URL", "at least one URL")
	}
	for _, address := range c.Authorities {
		if u, err := url.Parse(address); err != nil || u.Scheme != "https" || u.Host == "" || u.User != nil {
			fault("authority", address, "an https URL")
		}
	}
	if c.Genesis.IsZero() {
		fault("genesis", "no digest", "the digest of the first policy")
	}
	if c.Group == "" && c.Role == "" && !wire.ValidName(c.Task) {
		fault("task", c.Task, "the name of a task")
	}
	if c.Group+c.Role != "" && (c.Task != "" || !wire.ValidName(c.Group) || !wire.ValidName(c.Role)) {
		fault("group and role", c.Group+" "+c.Role, "both, and no task")
	}
	c.checkParties(fault)
	if c.Manager.URL != "" && !bus.ValidURLs(c.Manager.URL) {
		fault("manager", c.Manager.URL, "tls://host:port")
	}
	if !addressOK(c.Address) {
		fault("address", c.Address, "host:port")
	}
	if c.Sessions < 0 {
		fault("sessions", c.Sessions, "a number, or 0 for the default")
	}
	if c.Attester == nil {
		fault("attester", "no attester", "the TEE the program runs in")
	}
	return errors.Join(faults...)
}

// Close ends renewal, waits for it, and drops the unit's certificate: handshakes
// fail from then on. It releases the unit's place among those of its task, and waits
// at most 2 seconds for that. Closing again does nothing.
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

// ID returns the name of this start of this unit.
func (u *Unit) ID() wire.UnitID { return u.id }

// Identity returns the identity of the unit, zero after Close.
func (u *Unit) Identity() identity.Identity {
	if e := u.enrolled.Load(); e != nil {
		return e.identity
	}
	return identity.Identity{}
}

// PolicyHead returns the head of the newest policy that the unit has adopted: peers are checked
// against it, and connections that it refuses have ended.
func (u *Unit) PolicyHead() attest.Digest {
	u.steps.mu.Lock()
	defer u.steps.mu.Unlock()
	return u.newest().PolicyHead()
}

// Environment returns the environment variables that policy sets for the program.
func (u *Unit) Environment() map[string]string {
	if e := u.enrolled.Load(); e != nil {
		return maps.Clone(e.env)
	}
	return nil
}

// Ready reports whether the unit can serve: nil, or a refusal with the reason
// "certificate-expired" when no authority renewed in time, "clock" while the wall
// clock is more than 2 minutes from the unit's time, "cut-off" or "withdrawn" when the
// newest policy cuts the unit off, or "not-enrolled" after Close.
func (u *Unit) Ready() error {
	_, err := u.currentEnrolment()
	return err
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

// Stats are counters since Start, and the state of the certificate.
type Stats struct {
	Renewals    uint64      `json:"renewals"`               // certificates obtained, the first included
	Failures    uint64      `json:"failures"`               // attempts without a certificate
	Handshakes  uint64      `json:"handshakes"`             // TLS handshakes a certificate was served to
	LastFailure wire.Reason `json:"last_failure,omitempty"` // of the newest failed attempt
	NotAfter    time.Time   `json:"not_after,omitzero"`     // end of the current certificate
	Sessions    int         `json:"sessions"`               // of the trusted channel, known here
	Manager     bool        `json:"manager"`                // connected to it
	// Refused are requests by the quota that refused them, which its refusal names.
	Refused map[string]uint64 `json:"refused,omitempty"`
}

type counters struct {
	quotas                         limit.Refusals
	renewals, failures, handshakes atomic.Uint64
	lastFailure                    atomic.Pointer[wire.Reason]
}

// failed counts an attempt that obtained no certificate.
func (c *counters) failed(err error) {
	reason := wire.ReasonOf(err)
	c.lastFailure.Store(&reason)
	c.failures.Add(1)
}

// Stats returns a copy of the unit's counters.
func (u *Unit) Stats() Stats {
	s := Stats{
		Renewals:   u.counters.renewals.Load(),
		Failures:   u.counters.failures.Load(),
		Handshakes: u.counters.handshakes.Load(),
		Sessions:   u.cluster.host.Stats(u.currentTime()).Sessions,
		Manager:    u.cluster.relay.Connected(),
		Refused:    u.counters.quotas.Counts(),
	}
	if reason := u.counters.lastFailure.Load(); reason != nil {
		s.LastFailure = *reason
	}
	if e := u.enrolled.Load(); e != nil {
		s.NotAfter = e.notAfter
	}
	return s
}
