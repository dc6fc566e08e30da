package authority

import (
	"context"
	"fmt"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/identity"
	"github.com/cohort-tee/cohort/internal/authority/records"
	"github.com/cohort-tee/cohort/internal/authority/store"
	"github.com/cohort-tee/cohort/internal/founding"
	"github.com/cohort-tee/cohort/internal/wire"
	"github.com/cohort-tee/cohort/policy/policydraft"
)

// InitConfig is what [Init] needs.
type InitConfig struct {
	Store    *store.Store // made by store.Create
	Attester attest.Attester
	Sealer   attest.Sealer
	Draft    policydraft.Draft // what founders will sign, as soon as it names the root
	Endorser Endorser          // optional, as in [Config]
	// Again replaces a root that no policy was adopted under: drafts have
	// mistakes. A store with a history is refused whatever it says.
	Again bool
}

// Init draws the root secret inside the TEE and seals it, with the digest of the
// draft, to the measurement of the program that runs Init. What it gives back is
// for the founders: the root, and evidence that a TEE made it for this draft.
// Nothing else ever makes a root; a store that has one is refused with reason
// "store-foreign".
func Init(ctx context.Context, c InitConfig) (founding.Root, error) {
	if c.Draft.Document() == nil {
		return founding.Root{}, wire.Refuse(wire.BadPolicy, "init: draft", "none", "a first policy with an empty authority.root")
	}
	secret := identity.NewSecret()
	keys, err := identity.Derive(secret)
	if err != nil {
		return founding.Root{}, fmt.Errorf("deriving keys: %w", err)
	}
	a := &Authority{store: c.Store, sealer: c.Sealer, keys: keys, records: records.New(keys), secret: secret, draft: c.Draft.Digest()}
	made, err := founding.MakeRoot(ctx, c.Attester, c.Sealer, keys.RootDigest(), a.draft, c.endorse)
	if err != nil {
		return founding.Root{}, err
	}
	row, err := a.sealRoot(ctx, nil)
	if err != nil {
		return founding.Root{}, err
	}
	if c.Again {
		return made, c.Store.ReplaceRoot(ctx, row)
	}
	return made, c.Store.CreateRoot(ctx, row)
}

// endorse is what the vendor says of one part of the evidence.
func (c InitConfig) endorse(ctx context.Context, part attest.Evidence) (attest.Endorsements, error) {
	if c.Endorser == nil {
		return nil, nil
	}
	return c.Endorser.Endorse(ctx, part)
}
