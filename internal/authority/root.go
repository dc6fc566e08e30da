package authority

import (
	"context"
	"crypto/hmac"
	"crypto/rand"
	"errors"
	"fmt"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/identity"
	"github.com/cohort-tee/cohort/internal/authority/store"
	"github.com/cohort-tee/cohort/internal/wire"
	"github.com/cohort-tee/cohort/policy"
)

// InitConfig is what [Init] needs.
type InitConfig struct {
	Store    *store.Store // made by store.Create
	Attester attest.Attester
	Sealer   attest.Sealer
}

// InitResult is a new authority root and evidence that a TEE made it: bound by
// the label "cohort init v1" to (nonce, root).
type InitResult struct {
	Root     wire.Digest
	Nonce    []byte // 32 bytes
	Evidence attest.Evidence
}

// Init draws the root secret inside the TEE, seals it to the measurement of the
// program that runs Init, and stores it. Nothing else ever makes a root; a store
// that has one is refused with reason "store-foreign".
func Init(ctx context.Context, c InitConfig) (InitResult, error) {
	secret := identity.NewSecret()
	keys, err := identity.Derive(secret)
	if err != nil {
		return InitResult{}, fmt.Errorf("deriving keys: %w", err)
	}
	result := InitResult{Root: keys.Root(), Nonce: make([]byte, 32)}
	rand.Read(result.Nonce)
	result.Evidence, err = c.Attester.Attest(ctx, attest.Bind(wire.LabelInit, result.Nonce, result.Root[:]))
	if err != nil {
		return InitResult{}, fmt.Errorf("attesting the new root: %w", err)
	}
	a := &Authority{store: c.Store, sealer: c.Sealer, keys: keys, secret: secret}
	row, err := a.sealRoot(ctx, nil)
	if err != nil {
		return InitResult{}, err
	}
	return result, c.Store.CreateRoot(ctx, row)
}

// sealRoot makes the row of the root, sealed to the reference values, or to our
// own measurement where there are none. Its key is the digest of that set.
func (a *Authority) sealRoot(ctx context.Context, to []attest.ReferenceValue) (store.Row, error) {
	sealed, err := a.sealer.Seal(ctx, a.secret.Expose(), to)
	if err != nil {
		return store.Row{}, fmt.Errorf("sealing the root: %w", err)
	}
	set := setDigest(to)
	r := store.Row{Key: set[:], Content: sealed}
	r.MAC = a.tag(tableRoot, r)
	return r, nil
}

func setDigest(set []attest.ReferenceValue) wire.Digest {
	fields := make([][]byte, len(set))
	for i, m := range set {
		fields[i] = m.Bytes()
	}
	return wire.Hash(wire.LabelSealedRoot, fields...)
}

// unseal takes the root out of the store and derives the keys.
func (a *Authority) unseal(ctx context.Context) error {
	row, err := a.store.Root(ctx)
	if err != nil {
		return err
	}
	plain, err := a.sealer.Unseal(ctx, row.Content)
	if err != nil {
		return fmt.Errorf("unsealing the root: %w", err)
	}
	a.secret, err = identity.OpenSecret(plain)
	clear(plain)
	if err != nil {
		return fmt.Errorf("reading the root: %w", err)
	}
	a.keys, err = identity.Derive(a.secret)
	if err != nil {
		return fmt.Errorf("deriving keys: %w", err)
	}
	a.root = a.keys.Root()
	if !hmac.Equal(row.MAC, a.tag(tableRoot, row)) {
		return wire.Refuse(wire.StoreForeign, "store: row of root", "a changed row", "as this authority wrote it")
	}
	return nil
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
