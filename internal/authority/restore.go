package authority

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"time"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/internal/api"
	"github.com/cohort-tee/cohort/internal/authority/history"
	"github.com/cohort-tee/cohort/internal/authority/records"
	"github.com/cohort-tee/cohort/internal/authority/sealed"
	"github.com/cohort-tee/cohort/internal/authority/store"
	"github.com/cohort-tee/cohort/internal/authority/trustedclock"
	"github.com/cohort-tee/cohort/internal/backup"
	"github.com/cohort-tee/cohort/internal/collateral"
	"github.com/cohort-tee/cohort/internal/wire"
	"github.com/cohort-tee/cohort/policy"
)

// RestoreConfig has the arguments of [Restore].
type RestoreConfig struct {
	Store    *store.Store // made by store.Create
	Attester attest.Attester
	Sealer   attest.Sealer
	Verifier *attest.Verifier
	Clock    trustedclock.Source
	Endorser func(kept collateral.Cache) Endorser // optional, as in [Config]
	Genesis  wire.Digest
	History  []api.HistoryEntry // whole, as an authority of this root returned it
	Request  backup.Request
	Shares   []backup.Share // unlocked for the request
}

// Restore restores the root from a quorum of shares into a store without a root, with the policy
// history and the record of the backup, and returns the root's digest. It first rebuilds the
// sealed secret and its draft, and checks them against the root and the mark of the shares. Only
// then does it read the history, which must start from that draft ("draft"). It writes the root
// last: until then every command but Restore refuses the store, and Restore may run again.
func Restore(ctx context.Context, c RestoreConfig) (wire.Digest, error) {
	a := &Authority{store: c.Store, attester: c.Attester, sealer: c.Sealer, verifier: c.Verifier,
		clock: trustedclock.New(c.Clock), log: slog.New(slog.NewTextHandler(io.Discard, nil))}
	var err error
	if a.root, err = sealed.Restore(ctx, c.Attester, c.Sealer, c.Request, c.Shares); err != nil {
		return wire.Digest{}, err
	}
	a.records = records.New(a.root.Keys)
	a.history = a.newHistory(history.Metrics{})
	if c.Endorser != nil { // the store key authenticates its rows, so it comes after records
		a.endorser = c.Endorser(documentCache{a})
	}
	steps := make([]policy.Step, len(c.History))
	for i, e := range c.History {
		steps[i] = history.StepOf(e)
	}
	approved, err := policy.Replay(c.Genesis, steps)
	if err != nil {
		return wire.Digest{}, fmt.Errorf("replaying the history: %w", err)
	}
	for _, s := range c.Shares {
		if err := s.CheckPolicy(approved); err != nil {
			return wire.Digest{}, err
		}
	}
	if err := a.history.CheckAdopted(c.History, approved); err != nil {
		return wire.Digest{}, err
	}
	own, err := a.attestSelf(ctx, approved)
	if err != nil {
		return wire.Digest{}, err
	}
	if err := a.checkNamed(approved, own); err != nil {
		return wire.Digest{}, err
	}
	return a.root.Digest, a.writeBack(ctx, c, approved)
}

// writeBack writes the history, the backup record and the root, in this order. It keeps what an
// earlier attempt wrote.
func (a *Authority) writeBack(ctx context.Context, c RestoreConfig, approved policy.Approved) error {
	if _, err := c.Store.RootRow(ctx); err == nil {
		return wire.Refuse(wire.StoreForeign, "store: root", "a root exists", "a new store")
	}
	stored, _, err := a.history.LoadWhole(ctx)
	if err != nil {
		return err
	}
	if !approved.Knows(stored.PolicyHead()) {
		return wire.Refuse(wire.StoreForeign, "store: history", stored.PolicyHead(), "none, or a part of the one to restore")
	}
	if err := a.history.Rewrite(ctx, stored, unstamped(c.History[len(stored.Steps()):])); err != nil {
		return err
	}
	if err := a.history.RecordBackup(ctx, c.Shares[0].Header); err != nil {
		return err
	}
	row, err := a.root.SealRow(ctx, a.sealer, approved.Document().Authority.References)
	if err != nil {
		return err
	}
	return a.store.CreateRoot(ctx, row)
}

// unstamped returns entries without the times of adoption from the file: nothing authenticates
// them, and a lower bound of the authority's time would follow from them. Restore adopts the
// entries now.
func unstamped(entries []api.HistoryEntry) []api.HistoryEntry {
	entries = slices.Clone(entries)
	for i := range entries {
		entries[i].AdoptedAt = time.Time{}
	}
	return entries
}
