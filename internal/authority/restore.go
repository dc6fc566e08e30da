package authority

import (
	"context"
	"crypto/hpke"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"time"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/identity"
	"github.com/cohort-tee/cohort/internal/api"
	"github.com/cohort-tee/cohort/internal/authority/history"
	"github.com/cohort-tee/cohort/internal/authority/records"
	"github.com/cohort-tee/cohort/internal/authority/store"
	"github.com/cohort-tee/cohort/internal/authority/trustedclock"
	"github.com/cohort-tee/cohort/internal/backup"
	"github.com/cohort-tee/cohort/internal/collateral"
	"github.com/cohort-tee/cohort/internal/wire"
	"github.com/cohort-tee/cohort/policy"
)

// AskRestore makes the request that owners answer with their shares. Its key is
// sealed to our own measurement, so that the process may end meanwhile.
func AskRestore(ctx context.Context, attester attest.Attester, sealer attest.Sealer) (backup.Request, error) {
	r := backup.Request{Schema: backup.SchemaRequest}
	key, err := hpke.MLKEM768X25519().GenerateKey()
	if err != nil {
		return r, fmt.Errorf("making the request's key: %w", err)
	}
	private, err := key.Bytes()
	if err != nil {
		return r, fmt.Errorf("making the request's key: %w", err)
	}
	defer clear(private)
	r.Key = key.PublicKey().Bytes()
	if tee, ok := attester.(attest.CredentialActivator); ok {
		kept := tee.ExportKey()
		private = wire.Frame(wire.LabelRestoreKey, private, kept)
		clear(kept)
		defer clear(private)
	}
	if r.SealedKey, err = sealer.Seal(ctx, private, nil); err != nil {
		return r, fmt.Errorf("sealing the request's key: %w", err)
	}
	evidence, err := attester.Attest(ctx, r.ReportData())
	if err != nil {
		return r, fmt.Errorf("attesting the request's key: %w", err)
	}
	r.Evidence, err = json.Marshal(evidence)
	return r, err
}

// RestoreConfig is what [Restore] needs.
type RestoreConfig struct {
	Store    *store.Store // made by store.Create
	Attester attest.Attester
	Sealer   attest.Sealer
	Verifier *attest.Verifier
	Clock    trustedclock.Source
	Endorser func(kept collateral.Cache) Endorser // optional, as in [Config]
	Genesis  wire.Digest
	History  []api.HistoryEntry // whole, as an authority of this root gave it
	Request  backup.Request
	Shares   []backup.Share // unlocked for the request
}

// Restore brings the root back from a quorum of shares into a store without one,
// with the policy history and the record of the backup, and gives the root. It
// first rebuilds what was sealed, the secret and its draft, and demands the root and
// the mark of the shares; only then does it look at the history, which must start
// from that draft ("draft"). The root is written last: until then the store is
// refused by everybody but Restore, which may be run again.
func Restore(ctx context.Context, c RestoreConfig) (wire.Digest, error) {
	a := &Authority{store: c.Store, attester: c.Attester, sealer: c.Sealer, verifier: c.Verifier,
		clock: trustedclock.New(c.Clock), log: slog.New(slog.NewTextHandler(io.Discard, nil))}
	if err := a.combine(ctx, c); err != nil {
		return wire.Digest{}, err
	}
	a.history = a.newHistory(history.Metrics{})
	if c.Endorser != nil { // whose rows are under the store key
		a.endorser = c.Endorser(shelf{a})
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
	own, err := a.examine(ctx, approved)
	if err != nil {
		return wire.Digest{}, err
	}
	if err := a.named(approved, own); err != nil {
		return wire.Digest{}, err
	}
	return a.root, a.writeBack(ctx, c, approved)
}

// combine opens the shares with the key that only we can unseal, and takes secret and
// draft from them.
func (a *Authority) combine(ctx context.Context, c RestoreConfig) error {
	sealed, err := a.sealer.Unseal(ctx, c.Request.SealedKey)
	defer clear(sealed)
	if err != nil {
		return fmt.Errorf("unsealing the request's key: %w", err)
	}
	private, keys := sealed, backup.Keys{}
	if tee, ok := a.attester.(attest.CredentialActivator); ok {
		f, err := wire.Unframe(wire.LabelRestoreKey, sealed, 2)
		if err != nil {
			return fmt.Errorf("reading the request's key: %w", err)
		}
		private = f[0]
		keys.Open = func(credential []byte) ([]byte, error) { return tee.ActivateCredential(ctx, f[1], credential) }
	}
	if keys.Private, err = hpke.MLKEM768X25519().NewPrivateKey(private); err != nil {
		return fmt.Errorf("reading the request's key: %w", err)
	}
	secret, header, err := backup.Combine(c.Shares, keys)
	if err != nil {
		return err
	}
	a.secret, a.draft = secret, header.Draft
	if a.keys, err = identity.Derive(secret); err != nil {
		return fmt.Errorf("deriving keys: %w", err)
	}
	a.root, a.records = a.keys.RootDigest(), records.New(a.keys)
	return nil
}

// writeBack writes history, backup record and root, in this order. What an
// earlier try wrote stays.
func (a *Authority) writeBack(ctx context.Context, c RestoreConfig, approved policy.Approved) error {
	if _, err := c.Store.Root(ctx); err == nil {
		return wire.Refuse(wire.StoreForeign, "store: root", "a root exists", "a new store")
	}
	stored, _, err := a.history.Load(ctx)
	if err != nil {
		return err
	}
	if !approved.Knows(stored.Head()) {
		return wire.Refuse(wire.StoreForeign, "store: history", stored.Head(), "none, or a part of the one to restore")
	}
	if err := a.history.Rewrite(ctx, stored, unstamped(c.History[len(stored.Steps()):])); err != nil {
		return err
	}
	if err := a.history.RecordBackup(ctx, c.Shares[0].Header); err != nil {
		return err
	}
	row, err := a.sealRoot(ctx, approved.Document().Authority.References)
	if err != nil {
		return err
	}
	return a.store.CreateRoot(ctx, row)
}

// unstamped are entries without the times of adoption in a file: nothing
// authenticates them, and a floor of the authority's time follows from them. They
// are adopted now.
func unstamped(entries []api.HistoryEntry) []api.HistoryEntry {
	entries = slices.Clone(entries)
	for i := range entries {
		entries[i].AdoptedAt = time.Time{}
	}
	return entries
}
