// Package authority is the trusted certificate generator: it appraises the
// evidence of units, matches it with policy, records what it issues, and answers
// with sealed certificate reports. It also keeps the policy history and gives
// clients what they need to trust it.
//
// It trusts its own TEE, the owners who signed the policy, and nothing else. The
// store is checked row by row, the wall clock is watched, and of a request only
// what the evidence is bound to counts. It refuses to start on a store whose
// root it cannot unseal, under a policy that names another root, and under a
// policy that does not name its own measurement. Every refusal has a reason of
// the closed list, is counted, and is answered as a problem (RFC 9457).
//
// [Init] makes the root, once. [Open] makes an [Authority], [Authority.Serve]
// serves it until its context ends.
package authority

import (
	"context"
	"errors"
	"log/slog"
	"sync/atomic"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/identity"
	"github.com/cohort-tee/cohort/internal/authority/store"
	"github.com/cohort-tee/cohort/internal/collateral"
	"github.com/cohort-tee/cohort/internal/wire"
	"github.com/cohort-tee/cohort/policy"
)

// Config is what an authority runs on. All fields are required but those that
// say otherwise.
type Config struct {
	Store    *store.Store // stays the caller's to close, after the authority is done
	Attester attest.Attester
	Sealer   attest.Sealer
	Verifier *attest.Verifier
	Clock    Clock
	Log      *slog.Logger
	Genesis  *policy.Step // the first policy; optional once the store has it
	Limits   Limits       // optional
	Endorser Endorser     // optional; without one only endorsements that came with evidence count
}

// Endorser gives what vendors say beside evidence, as far as it knows it. The
// evidence is unchecked, and what is given is checked by appraisal. It may ask
// the vendor and so blocks until ctx ends at the latest; it is called
// concurrently.
type Endorser interface {
	Endorse(ctx context.Context, e attest.Evidence) (attest.Endorsements, error)
	// Stats is the state of each document at hand, for metrics.
	Stats() []collateral.Status
}

func (c Config) check() error {
	var faults []error
	missing := func(name string, there bool) {
		if !there {
			faults = append(faults, wire.Refuse(wire.BadRequest, "authority: configuration", "no "+name, "a "+name))
		}
	}
	missing("store", c.Store != nil)
	missing("attester", c.Attester != nil)
	missing("sealer", c.Sealer != nil)
	missing("verifier", c.Verifier != nil)
	missing("clock", c.Clock != nil)
	missing("log", c.Log != nil)
	return errors.Join(faults...)
}

// Authority issues certificates. It is safe for concurrent use; several may
// share a store.
type Authority struct {
	store    *store.Store
	attester attest.Attester
	sealer   attest.Sealer
	verifier *attest.Verifier
	endorser Endorser // nil when there is none
	log      *slog.Logger
	guard    *guard
	keys     *identity.Keys
	root     wire.Digest
	limits   Limits
	metrics  *metrics
	limiter  *limiter
	trusts   chan struct{} // one place for each own evidence under way
	rings    rings
	lease    lease

	secret  identity.Secret
	current atomic.Pointer[snapshot]
}

// Open unseals the root, replays and checks the history of the store, or adopts
// the genesis policy when there is none yet, and makes sure that the policy in
// force names this root and this measurement. It re-seals the root when the
// policy in force names other authority reference values than it was sealed to.
func Open(ctx context.Context, c Config) (*Authority, error) {
	if err := c.check(); err != nil {
		return nil, err
	}
	limits := c.Limits.orDefault()
	a := &Authority{
		store: c.Store, attester: c.Attester, sealer: c.Sealer, verifier: c.Verifier, endorser: c.Endorser, log: c.Log, guard: newGuard(c.Clock),
		limits: limits, metrics: newMetrics(), limiter: newLimiter(limits), trusts: make(chan struct{}, maxTrusts), lease: newLease(),
	}
	if c.Endorser != nil {
		a.metrics.registry.MustRegister(documents{c.Endorser, c.Clock})
	}
	if err := a.unseal(ctx); err != nil {
		return nil, err
	}
	if err := a.begin(ctx, c.Genesis); err != nil {
		return nil, err
	}
	snap := a.current.Load()
	if snap.unnamed != nil {
		return nil, snap.unnamed
	}
	if err := a.reseal(ctx, snap.approved); err != nil {
		return nil, err
	}
	if _, err := a.seeLease(ctx, a.guard.sinceStart()); err != nil {
		return nil, err
	}
	return a, nil
}

// Root is the authority root: the digest that policy names.
func (a *Authority) Root() wire.Digest { return a.root }

// Genesis is the digest of the first policy: the one value that units and
// clients are given.
func (a *Authority) Genesis() wire.Digest { return a.current.Load().approved.Genesis() }

// TrustDomain is the trust domain of the policy in force.
func (a *Authority) TrustDomain() string { return a.current.Load().doc().TrustDomain }

// begin finds the policy in force: that of the store, or the genesis.
func (a *Authority) begin(ctx context.Context, genesis *policy.Step) error {
	approved, entries, err := a.load(ctx)
	if err != nil {
		return err
	}
	if !approved.OK() {
		approved, entries, err = a.found(ctx, genesis)
		if err != nil {
			return err
		}
	}
	if pin := approved.Genesis(); genesis != nil && wire.Sum(genesis.Policy) != pin {
		return wire.Refuse(wire.WrongGenesis, "authority: genesis policy", wire.Sum(genesis.Policy), pin)
	}
	if err := a.raiseFloor(ctx, approved); err != nil {
		return err
	}
	snap, err := a.snapshot(ctx, approved, entries)
	if err != nil {
		return err
	}
	a.current.Store(snap)
	a.metrics.sequence.Set(float64(snap.doc().Sequence))
	return nil
}

// raiseFloor keeps time from going below the policy in force and the newest
// record.
func (a *Authority) raiseFloor(ctx context.Context, approved policy.Approved) error {
	a.guard.raise(approved.Document().Created)
	newest, err := a.page(ctx, store.Query{Limit: 1})
	if err != nil {
		return err
	}
	for _, entry := range newest.Entries {
		a.guard.raise(entry.Time)
	}
	return nil
}
