// Package sealed keeps the secrets of an authority: the root of its domain, and the secrets of
// groups whose rosters name it. They are in the store; the TEE seals each to the authorities that
// may open it, and each row has a MAC under the root.
//
// It trusts the TEE and rows with that MAC. A root serves only the history of the draft that it
// was made for ([Root.CheckDraft]). A group's secret is sealed only to the authorities that the
// roster names.
//
// [CreateRoot] makes a root, once. [UnsealRoot] opens it. [Restore] restores it from shares that
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
	Draft  wire.Digest // digest of the draft that the root was made for
	Keys   *identity.Keys
	Digest wire.Digest // the policy names it
}

// newRoot derives the keys from a secret.
func newRoot(secret identity.Secret, draft wire.Digest) (Root, error) {
	keys, err := identity.Derive(secret)
	if err != nil {
		return Root{}, fmt.Errorf("deriving keys: %w", err)
	}
	return Root{secret, draft, keys, keys.RootDigest()}, nil
}

// UnsealRoot reads the root and its draft from the store, unseals them and derives the keys.
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

// firstFormat is the size in bytes of a root of the first format: it had the secret alone, so the
// root could serve any genesis.
const firstFormat = 32

// openRoot parses the sealed bytes: Frame("cohort root v2", secret, draft).
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

// CheckDraft refuses, with "draft", a history whose genesis differs from the draft that the root
// was made for. Check it before the root is exported and before anything is served under it.
// Without it, the operator of the authority could start this program under a genesis of their own
// and request a backup of the root.
func (r Root) CheckDraft(approved policy.Approved) error {
	if got := approved.Draft(); got != r.Draft {
		return wire.Refuse(wire.WrongDraft, "authority: draft of the first policy", got, r.Draft)
	}
	return nil
}

// SealRow makes the row of the root, sealed to the reference values, or to this program's own
// measurement if there are none. The row's key is the digest of the reference values.
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

// Reseal seals the root to the authority reference values of a policy, unless it is already, and
// reports whether it did. When another authority was faster, that one has done the same.
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
