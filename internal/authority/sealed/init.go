package sealed

import (
	"context"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/identity"
	"github.com/cohort-tee/cohort/internal/authority/store"
	"github.com/cohort-tee/cohort/internal/founding"
	"github.com/cohort-tee/cohort/internal/wire"
	"github.com/cohort-tee/cohort/policy/policydraft"
)

// InitConfig has the arguments of [CreateRoot].
type InitConfig struct {
	Store    *store.Store // made by store.Create
	Attester attest.Attester
	Sealer   attest.Sealer
	Draft    policydraft.Draft // founders sign it once it names the root
	Endorser Endorser          // optional: without it only endorsements that come with evidence count
	// Again replaces a root under which no policy was adopted, for example after a mistake in the
	// draft. A store with a history is still refused.
	Again bool
}

// Endorser returns the vendor's endorsements of evidence, as far as it can get them. It may send
// a request to the vendor, and blocks until ctx ends at the latest.
type Endorser interface {
	Endorse(ctx context.Context, e attest.Evidence) (attest.Endorsements, error)
}

// CreateRoot draws the root secret inside the TEE and seals it, with the digest of the draft, to
// the measurement of the running program. It returns the root for the founders, with evidence
// that a TEE made it for this draft. No other function makes a root. A store that has a root is
// refused with reason "store-foreign".
func CreateRoot(ctx context.Context, c InitConfig) (founding.Root, error) {
	if c.Draft.Document() == nil {
		return founding.Root{}, wire.Refuse(wire.BadPolicy, "init: draft", "no draft", "a first policy with an empty authority.root")
	}
	r, err := newRoot(identity.NewSecret(), c.Draft.Digest())
	if err != nil {
		return founding.Root{}, err
	}
	made, err := founding.MakeRoot(ctx, c.Attester, c.Sealer, r.Digest, r.Draft, c.endorsePart)
	if err != nil {
		return founding.Root{}, err
	}
	row, err := r.SealRow(ctx, c.Sealer, nil)
	if err != nil {
		return founding.Root{}, err
	}
	if c.Again {
		return made, c.Store.ReplaceRoot(ctx, row)
	}
	return made, c.Store.CreateRoot(ctx, row)
}

// endorsePart returns the vendor's endorsements of one part of the evidence.
func (c InitConfig) endorsePart(ctx context.Context, part attest.Evidence) (attest.Endorsements, error) {
	if c.Endorser == nil {
		return nil, nil
	}
	return c.Endorser.Endorse(ctx, part)
}
