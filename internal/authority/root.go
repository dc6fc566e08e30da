package authority

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

// unseal takes the root and its draft out of the store and derives the keys.
func (a *Authority) unseal(ctx context.Context) error {
	row, err := a.store.Root(ctx)
	if err != nil {
		return err
	}
	plain, err := a.sealer.Unseal(ctx, row.Content)
	if err != nil {
		return fmt.Errorf("unsealing the root: %w", err)
	}
	defer clear(plain)
	if a.secret, a.draft, err = openRoot(plain); err != nil {
		return fmt.Errorf("reading the root: %w", err)
	}
	a.keys, err = identity.Derive(a.secret)
	if err != nil {
		return fmt.Errorf("deriving keys: %w", err)
	}
	a.root, a.records = a.keys.RootDigest(), records.New(a.keys)
	if !hmac.Equal(row.MAC, a.records.Tag(records.TableRoot, row)) {
		return wire.Refuse(wire.StoreForeign, "store: row of root", "a changed row", "as this authority wrote it")
	}
	return nil
}

// firstFormat is the size in bytes of a root of the first format: the secret
// alone, which any genesis of the same root served.
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

// bound refuses, with "draft", a history whose genesis is another than the one that
// the root was made for. Whatever gives the root away, or serves under it, comes
// behind this. Without it, the operator of the authority would start this very
// program under a genesis of their own and ask it for a backup.
func (a *Authority) bound(approved policy.Approved) error {
	if got := approved.Draft(); got != a.draft {
		return wire.Refuse(wire.WrongDraft, "authority: draft of the first policy", got, a.draft)
	}
	return nil
}

// sealRoot makes the row of the root, sealed to the reference values, or to our
// own measurement where there are none. Its key is the digest of that set.
func (a *Authority) sealRoot(ctx context.Context, to []attest.ReferenceValue) (store.Row, error) {
	secret := a.secret.Expose()
	plain := wire.Frame(wire.LabelRoot, secret, a.draft[:])
	sealed, err := a.sealer.Seal(ctx, plain, to)
	clear(secret)
	clear(plain)
	if err != nil {
		return store.Row{}, fmt.Errorf("sealing the root: %w", err)
	}
	set := setDigest(to)
	r := store.Row{Key: set[:], Content: sealed}
	r.MAC = a.records.Tag(records.TableRoot, r)
	return r, nil
}

func setDigest(set []attest.ReferenceValue) wire.Digest {
	fields := make([][]byte, len(set))
	for i, m := range set {
		fields[i] = m.Bytes()
	}
	return wire.Hash(wire.LabelSealedRoot, fields...)
}

// reseal seals the root to the authority reference values of a policy, unless
// it is so already. Another authority that was faster has done the same.
func (a *Authority) reseal(ctx context.Context, approved policy.Approved) error {
	old, err := a.store.Root(ctx)
	if err != nil {
		return err
	}
	references := approved.Document().Authority.References
	if set := setDigest(references); string(old.Key) == string(set[:]) {
		return nil
	}
	next, err := a.sealRoot(ctx, references)
	if err != nil {
		return err
	}
	if err := a.store.SwapRoot(ctx, old, next); err != nil && !errors.Is(err, wire.Behind) {
		return err
	}
	a.log.Info("root sealed anew", "policy", approved.Document().Sequence)
	return nil
}
