// Package ringkeys makes the ring keys with which the units of one identity encrypt sessions for
// each other. The keys are random and only in memory: an authority that restarts, or that takes
// over the lease, draws new ones. They are not derived from the root secret.
//
// Of the authorities of one store, one at a time makes keys: the holder of the lease, a row that
// it renews. The package trusts rows that have a MAC under the root, and the monotonic clock. It
// refuses, with "ring-elsewhere", a request for keys while another authority has the lease, and
// erases every key that it drops.
//
// [Keyring.ReadLease] starts to count the term of another authority, [Keyring.EnsureLease] takes
// or renews the lease, [Keyring.AddKeys] returns the keys for a report, and [Keyring.Apply]
// applies a policy to all rings.
package ringkeys

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/internal/authority/records"
	"github.com/cohort-tee/cohort/internal/authority/store"
	"github.com/cohort-tee/cohort/internal/authority/trustedclock"
	"github.com/cohort-tee/cohort/internal/wire"
	"github.com/prometheus/client_golang/prometheus"
)

// Config is what a keyring runs on. All fields are required.
type Config struct {
	Store   *store.Store
	Records *records.Records
	Damage  *records.Damage
	Clock   *trustedclock.Clock
	Log     *slog.Logger
	Holder  string           // random name of this start of the authority
	Leased  prometheus.Gauge // 1 while this authority makes ring keys
}

// Keyring has the ring keys of all identities, and the lease to make them. It is safe
// for concurrent use.
type Keyring struct {
	store   *store.Store
	records *records.Records
	damage  *records.Damage
	clock   *trustedclock.Clock
	log     *slog.Logger
	leased  prometheus.Gauge
	lease

	mu    sync.Mutex
	rings map[attest.Digest]*ring // guarded by mu, by identity id
}

// New returns a keyring without keys.
func New(c Config) *Keyring {
	return &Keyring{
		store: c.Store, records: c.Records, damage: c.Damage, clock: c.Clock, log: c.Log, leased: c.Leased,
		lease: lease{holder: c.Holder, turn: make(chan struct{}, 1)}, rings: make(map[attest.Digest]*ring),
	}
}

// Times of the lease, by the monotonic clock of each authority.
const (
	Term    = 10 * time.Second // a holder that did not renew for this long has lost the lease
	renewal = 3 * time.Second  // how often a holder renews
)

// leaseName is the lease's name in the store.
const leaseName = "rings"

// lease is the right to make ring keys, which one authority of a store has at a time. No two
// clocks are compared: the holder counts the term from before its write to the store, another
// authority from when it reads that write.
type lease struct {
	holder string        // random name of this start of the authority
	turn   chan struct{} // has one element while a goroutine uses the fields below

	row     store.Row     // as last read
	seen    time.Duration // when row was first read in this form
	renewal time.Duration // this authority has the lease, and renews it from then on
	until   time.Duration // this authority has the lease until then
}

// leaseRow is the content of the lease's row.
type leaseRow struct {
	Holder string `json:"holder"`  // empty: released
	Count  uint64 `json:"renewal"` // makes each row differ from the one before
}

// EnsureLease makes sure that this authority may make ring keys, or refuses with reason
// "ring-elsewhere". It takes the lease when it is free, or when its holder did not renew it for
// the term.
func (k *Keyring) EnsureLease(ctx context.Context) error {
	select {
	case k.turn <- struct{}{}:
		defer func() { <-k.turn }()
	case <-ctx.Done():
		return ctx.Err()
	}
	now := k.clock.SinceStart()
	if now < k.renewal {
		return nil
	}
	err := k.takeLease(ctx, now)
	if err != nil && now < k.until && !errors.Is(err, wire.RingElsewhere) {
		return nil // the lease is still valid; the next call renews it
	}
	return err
}

// takeLease renews the lease or takes it over. It refuses when another authority has it. The
// caller has the turn.
func (k *Keyring) takeLease(ctx context.Context, now time.Duration) error {
	found, err := k.readLease(ctx, now)
	if err != nil {
		return err
	}
	ours := found.Holder == k.holder
	if !ours && found.Holder != "" && now < k.seen+Term {
		k.dropRings()
		return wire.Refuse(wire.RingElsewhere, "authority: ring lease", "leased to authority "+found.Holder, "leased to this authority")
	}
	next, err := k.records.Seal(records.TableLease, []byte(leaseName), leaseRow{k.holder, found.Count + 1})
	if err != nil {
		return err
	}
	err = k.store.SwapLease(ctx, k.row, next)
	if errors.Is(err, wire.Behind) {
		k.dropRings()
		return wire.Refuse(wire.RingElsewhere, "authority: ring lease", "taken meanwhile", "leased to this authority")
	}
	if err != nil {
		return err
	}
	if !ours {
		k.dropRings() // another authority may have made keys in between
		k.log.Info("this authority makes ring keys now")
	}
	k.leased.Set(1)
	k.row, k.seen, k.renewal, k.until = next, now, now+renewal, now+Term
	return nil
}

// ReadLease reads the lease: the term of its holder counts from now.
func (k *Keyring) ReadLease(ctx context.Context) error {
	k.turn <- struct{}{}
	defer func() { <-k.turn }()
	_, err := k.readLease(ctx, k.clock.SinceStart())
	return err
}

// readLease reads the lease and records when it changed. The caller has the turn.
func (k *Keyring) readLease(ctx context.Context, now time.Duration) (found leaseRow, err error) {
	row, err := k.store.Lease(ctx, leaseName)
	if err != nil {
		return found, err
	}
	if row.Key != nil {
		fault := k.records.Open(records.TableLease, row, &found)
		k.damage.Report(k.log, records.TableLease, records.Faults(fault))
		if fault != nil {
			found = leaseRow{Holder: "of a damaged row"} // counts as leased until it is unchanged for the term
		}
	}
	if string(row.MAC) != string(k.row.MAC) {
		k.row, k.seen = row, now
	}
	return found, nil
}

// ReleaseLease erases the keys and releases the lease, so that another authority need not wait
// for the term.
func (k *Keyring) ReleaseLease(ctx context.Context) error {
	k.turn <- struct{}{}
	defer func() { <-k.turn }()
	if k.until == 0 {
		return nil
	}
	k.dropRings()
	found, err := k.readLease(ctx, 0)
	if err != nil || found.Holder != k.holder {
		return err
	}
	next, err := k.records.Seal(records.TableLease, []byte(leaseName), leaseRow{Count: found.Count + 1})
	if err != nil {
		return err
	}
	return k.store.SwapLease(ctx, k.row, next)
}
