// Package sealed keeps the secrets of an authority: the root of its domain, and those of
// groups whose rosters name it. They are in the store, each sealed by the TEE to the
// authorities that may open it, under a MAC of the root.
//
// It trusts the TEE and rows with that MAC. A root serves no other history than that of
// the draft that it was made for ([Root.CheckDraft]), and a group's secret is sealed to no
// other authorities than the roster names.
//
// [CreateRoot] makes a root, once; [UnsealRoot] opens it, and [Restore] takes it out of shares that
// owners unlocked for the request of [AskRestore]. [Groups] opens the secrets of groups.
//
// Files, each using those before it: root.go, groups.go, init.go, restore.go.
package sealed

import (
	"context"
	"crypto/hmac"
	"errors"
	"fmt"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/identity"
	"github.com/cohort-tee/cohort/internal/authority/records"
	"github.com/cohort-tee/cohort/internal/authority/store"
	"github.com/cohort-tee/cohort/internal/wire"
	"github.com/cohort-tee/cohort/policy"
)

// Root is the root of a domain, unsealed.
type Root struct {
	Secret identity.Secret
	Draft  wire.Digest // that the root was made for
	Keys   *identity.Keys
	Digest wire.Digest // that policy names
}

// newRoot derives the keys of a secret.
func newRoot(secret identity.Secret, draft wire.Digest) (Root, error) {
	keys, err := identity.Derive(secret)
	if err != nil {
		return Root{}, fmt.Errorf("deriving keys: %w", err)
	}
	return Root{secret, draft, keys, keys.RootDigest()}, nil
}

// UnsealRoot takes the root and its draft out of the store and derives the keys.
func UnsealRoot(ctx context.Context, db *store.Store, sealer attest.Sealer) (Root, error) {
	row, err := db.RootRow(ctx)
	if err != nil {
		return Root{}, err
	}
	plain, err := sealer.Unseal(ctx, row.Content)
	if err != nil {
		return Root{}, fmt.Errorf("unsealing the root: %w", err)
	}
	defer clear(plain)
	secret, draft, err := openRoot(plain)
	if err != nil {
		return Root{}, fmt.Errorf("reading the root: %w", err)
	}
	r, err := newRoot(secret, draft)
	if err == nil && !hmac.Equal(row.MAC, records.New(r.Keys).ComputeMAC(records.TableRoot, row)) {
		return Root{}, wire.Refuse(wire.StoreForeign, "store: row of root", "a changed row", "as this authority wrote it")
	}
	return r, err
}

// firstFormat is the size in bytes of a root of the first format: the secret
// alone, under which any genesis could be served.
const firstFormat = 32

// openRoot reads what was sealed: Frame("cohort root v2", secret, draft).
func openRoot(plain []byte) (identity.Secret, wire.Digest, error) {
	var draft wire.Digest
	if len(plain) == firstFormat {
		return identity.Secret{}, draft, wire.Refuse(wire.RootUnbound, "store: sealed root", "the first format, bound to no draft", "a root made by `cohort authority init --draft`")
	}
	f, err := wire.Unframe(wire.LabelRoot, plain, 2)
	if err != nil {
		return identity.Secret{}, draft, err
	}
	if len(f[1]) != len(draft) || wire.Digest(f[1]).IsZero() {
		return identity.Secret{}, draft, wire.Refuse(wire.Malformed, "sealed root: draft in bytes", len(f[1]), len(draft))
	}
	secret, err := identity.OpenSecret(f[0])
	return secret, wire.Digest(f[1]), err
}

// CheckDraft refuses, with "draft", a history whose genesis is another than the one that
// the root was made for. It comes before the root is exported and before anything is
// served under it. Without it, the operator of the authority would start this very
// program under a genesis of their own and ask it for a backup.
func (r Root) CheckDraft(approved policy.Approved) error {
	if got := approved.Draft(); got != r.Draft {
		return wire.Refuse(wire.WrongDraft, "authority: draft of the first policy", got, r.Draft)
	}
	return nil
}

// SealRow makes the row of the root, sealed to the reference values, or to our
// own measurement where there are none. Its key is the digest of that set.
func (r Root) SealRow(ctx context.Context, sealer attest.Sealer, to []attest.ReferenceValue) (store.Row, error) {
	secret := r.Secret.Expose()
	plain := wire.Frame(wire.LabelRoot, secret, r.Draft[:])
	sealed, err := sealer.Seal(ctx, plain, to)
	clear(secret)
	clear(plain)
	if err != nil {
		return store.Row{}, fmt.Errorf("sealing the root: %w", err)
	}
	set := setDigest(to)
	row := store.Row{Key: set[:], Content: sealed}
	row.MAC = records.New(r.Keys).ComputeMAC(records.TableRoot, row)
	return row, nil
}

func setDigest(set []attest.ReferenceValue) wire.Digest {
	fields := make([][]byte, len(set))
	for i, m := range set {
		fields[i] = m.Bytes()
	}
	return wire.Hash(wire.LabelSealedRoot, fields...)
}

// Reseal seals the root to the authority reference values of a policy, unless it is so
// already, which it reports. Another authority that was faster has done the same.
func (r Root) Reseal(ctx context.Context, db *store.Store, sealer attest.Sealer, approved policy.Approved) (changed bool, err error) {
	old, err := db.RootRow(ctx)
	if err != nil {
		return false, err
	}
	references := approved.Document().Authority.References
	if set := setDigest(references); string(old.Key) == string(set[:]) {
		return false, nil
	}
	next, err := r.SealRow(ctx, sealer, references)
	if err != nil {
		return false, err
	}
	if err := db.SwapRoot(ctx, old, next); err != nil && !errors.Is(err, wire.Behind) {
		return false, err
	}
	return true, nil
}
