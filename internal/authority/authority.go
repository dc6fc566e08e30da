// Package authority is the verifier (RFC 9334) and certification authority (RFC 5280) of a trust
// domain: it appraises the evidence of units, matches it with the policy, records what it issues,
// and responds with sealed certificate reports. It also keeps the policy history, and shows
// clients evidence of itself so that they can trust it.
//
// It trusts its own TEE, the owners who signed the policy, and nothing else. It checks each row
// of the store, watches the wall clock, and relies only on the fields of a request that the
// evidence is bound to. It refuses to start on a store whose root it cannot unseal, under a
// policy that names a different root, and under a policy that does not name its own measurement.
// Every refusal has a reason from the closed list, is counted, and is sent as a problem
// (RFC 9457).
//
// Package sealed makes the root, once. [Open] makes an [Authority]; [Authority.Serve] serves it
// until the context ends.
//
// Files, each using those before it: shelf.go, authority.go, places.go, nonce.go, run.go, follow.go,
// snapshot.go, polls.go, serve.go, rings.go, restore.go, certify.go, log.go, grouproots.go, warnings.go,
// backup.go, groups.go, ownevidence.go, trust.go, http.go.
package authority

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/internal/api"
	"github.com/cohort-tee/cohort/internal/authority/admission"
	"github.com/cohort-tee/cohort/internal/authority/history"
	"github.com/cohort-tee/cohort/internal/authority/metrics"
	"github.com/cohort-tee/cohort/internal/authority/records"
	"github.com/cohort-tee/cohort/internal/authority/ringkeys"
	"github.com/cohort-tee/cohort/internal/authority/sealed"
	"github.com/cohort-tee/cohort/internal/authority/store"
	"github.com/cohort-tee/cohort/internal/authority/trustedclock"
	"github.com/cohort-tee/cohort/internal/collateral"
	"github.com/cohort-tee/cohort/internal/limit"
	"github.com/cohort-tee/cohort/internal/wire"
	"github.com/cohort-tee/cohort/policy"
)

// Config has the parts that an authority runs on. All fields are required except those marked
// optional.
type Config struct {
	Store    *store.Store // the caller closes it, after the authority has ended
	Attester attest.Attester
	Sealer   attest.Sealer
	Verifier *attest.Verifier
	Clock    trustedclock.Source
	Log      *slog.Logger
	Genesis  *policy.Step     // the first policy; optional once the store has it
	Limits   admission.Limits // optional
	Built    time.Time        // build time of this program: an earlier clock is wrong; optional
	// History is a copy of the policy history that the authority applies when it starts, as it
	// applies those that units push while it runs: steps that its store lost take effect again.
	// Optional.
	History []api.HistoryEntry
	// Endorser makes the source of endorsements, which caches documents in rows of the store;
	// optional. Without it, only endorsements that came with the evidence count.
	Endorser func(kept collateral.Cache) Endorser
}

// Endorser returns the vendors' endorsements of evidence, as far as it can get them. The evidence
// is not verified yet; appraisal verifies the endorsements. An Endorser may send requests to a
// vendor: its methods block until ctx ends at the latest. They are called concurrently.
type Endorser interface {
	// Endorse returns the endorsements of the authority's own evidence.
	Endorse(ctx context.Context, e attest.Evidence) (attest.Endorsements, error)
	// EndorseFor returns the endorsements of evidence that a client sent: it screens the evidence
	// before it sends a request to a vendor, and limits such requests for each sender.
	EndorseFor(ctx context.Context, e attest.Evidence, s collateral.Stranger) (attest.Endorsements, error)
	// RecordAccepted records that evidence from an address was accepted.
	RecordAccepted(address string)
	// Stats returns the state of each cached document, for metrics.
	Stats() []collateral.Status
}

func (c Config) validate() error {
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

// At most maxTrusts pieces of evidence for clients are made at once: the TEE makes them one after
// the other anyway. At most waitingTrusts more requests wait; addresses take turns.
const (
	maxTrusts     = 8
	waitingTrusts = 64
)

// Authority issues certificates. It is safe for concurrent use. Several authorities may share a
// store.
type Authority struct {
	store    *store.Store
	attester attest.Attester
	sealer   attest.Sealer
	verifier *attest.Verifier
	endorser Endorser // nil when there is none
	log      *slog.Logger
	clock    *trustedclock.Clock
	records  *records.Records
	root     sealed.Root
	limits   admission.Limits
	metrics  *metrics.Metrics
	limiter  *admission.Limiter
	nonces   *admission.Nonces
	requests *limit.Shares // one place for each request being served
	polls    *admission.Polls
	clients  *limit.Connections
	trusts   *limit.Turns // turns to make the authority's own evidence
	holder   string       // random name of this start of the authority
	rings    *ringkeys.Keyring
	damage   records.Damage
	groups   *sealed.Groups

	history *history.History
}

// Open unseals the root, then replays and checks the history in the store, or adopts the genesis
// policy when the store has no history yet. It demands that the policy in force names this root
// and this measurement. It re-seals the root when the policy in force names other authority
// reference values than those the root was sealed to.
func Open(ctx context.Context, c Config) (*Authority, error) {
	if err := c.validate(); err != nil {
		return nil, err
	}
	limits := c.Limits.OrDefault()
	a := &Authority{
		store: c.Store, attester: c.Attester, sealer: c.Sealer, verifier: c.Verifier, log: c.Log, clock: trustedclock.New(c.Clock),
		limits: limits, metrics: metrics.New(), limiter: admission.NewLimiter(limits), nonces: admission.NewNonces(limits.Total),
		polls: admission.NewPolls(limits), clients: limit.NewConnections(limits.Connections),
		requests: limit.NewShares(admission.QuotaRequests, limits.Requests), trusts: limit.NewTurns(admission.QuotaTrusts, maxTrusts, waitingTrusts), holder: rand.Text(),
	}
	a.damage.Rows = a.metrics.Damaged
	a.clock.Raise(c.Built)
	var err error
	if a.root, err = sealed.UnsealRoot(ctx, a.store, a.sealer); err != nil {
		return nil, err
	}
	a.records = records.New(a.root.Keys)
	a.groups = &sealed.Groups{Store: a.store, Sealer: a.sealer, Verifier: a.verifier, Records: a.records, Damage: &a.damage, Log: a.log}
	if c.Endorser != nil { // the store key authenticates its rows, so it comes after records
		a.endorser = c.Endorser(documentCache{a})
		a.metrics.Registry.MustRegister(metrics.Documents{Stats: a.endorser.Stats, Clock: c.Clock})
	}
	a.rings = ringkeys.New(ringkeys.Config{
		Store: a.store, Records: a.records, Damage: &a.damage, Clock: a.clock, Log: a.log, Holder: a.holder, Leased: a.metrics.Lease,
	})
	a.history = a.newHistory(history.Metrics{
		Sequence: a.metrics.Sequence, Forks: a.metrics.Forks, Behind: a.metrics.Behind, Recovered: a.metrics.Recovered,
	})
	if err := a.history.Begin(ctx, c.Genesis); err != nil {
		return nil, err
	}
	if err := a.applyShownHistory(ctx, c.History); err != nil {
		return nil, err
	}
	if err := a.checkReady(ctx); err != nil {
		return nil, err
	}
	if err := a.rings.ReadLease(ctx); err != nil {
		return nil, err
	}
	return a, nil
}

// RootDigest returns the digest of the authority root, which the policy names.
func (a *Authority) RootDigest() wire.Digest { return a.root.Digest }

// Genesis returns the digest of the first policy, the one value that units and clients pin.
func (a *Authority) Genesis() wire.Digest { return a.inForce().approved.Genesis() }

// TrustDomain returns the trust domain of the policy in force.
func (a *Authority) TrustDomain() string { return a.inForce().document().TrustDomain }

// applyShownHistory applies the history that the authority was given for its start. It returns an
// error for a history with a different genesis. It only logs a history that forks from this
// authority's own or does not verify: such a history does not stop the start.
func (a *Authority) applyShownHistory(ctx context.Context, entries []api.HistoryEntry) error {
	_, err := a.history.Push(ctx, api.History{Entries: entries})
	if errors.Is(err, wire.WrongSequence) {
		a.log.Error("the history that was shown is another than this authority's", "error", err)
		return nil
	}
	if err != nil {
		return fmt.Errorf("taking the history that was shown: %w", err)
	}
	return nil
}

// checkReady demands a policy that names this authority, and seals the root to it. An authority
// that is behind starts all the same, so that it can receive newer policy, and does not re-seal
// the root.
func (a *Authority) checkReady(ctx context.Context) error {
	snap := a.inForce()
	if behind := a.history.Behind(); behind != nil {
		a.log.Error("this authority issues nothing until it is shown newer policy", "cause", behind)
		return nil
	}
	if snap.unnamed != nil {
		return snap.unnamed
	}
	return a.reseal(ctx, snap.approved)
}

// reseal seals the root to the authority reference values of a policy.
func (a *Authority) reseal(ctx context.Context, approved policy.Approved) error {
	changed, err := a.root.Reseal(ctx, a.store, a.sealer, approved)
	if changed {
		a.log.Info("root sealed anew", "policy", approved.Document().Sequence)
	}
	return err
}
