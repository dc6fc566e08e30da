package snp

import (
	"slices"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/attest/internal/pki"
	"github.com/cohort-tee/cohort/internal/wire"
)

// maxKnown bounds the memory: about 1 KiB for each chip.
const maxKnown = 1024

// memory holds chains that were checked, under an accepted root, by the digests
// of the bytes they were checked from. Evidence is never part of it.
type memory struct{ chains pki.Cache[known, *chain] }

// known names a chip's certificate and the version of its collateral.
type known struct {
	kind              signer
	leaf, askARK, crl attest.Digest
	listed            bool
}

// chain checks a bundle, or remembers that it did.
func (m *memory) chain(b bundle, roots []attest.Digest) (*chain, error) {
	id := known{b.kind, wire.Sum(b.leaf), wire.SumPEM(b.askARK), wire.Sum(b.crl), b.crl != nil}
	c, known := m.chains.Load(id)
	if !known {
		var err error
		if c, err = b.verify(); err != nil {
			return nil, err
		}
	}
	if !slices.Contains(roots, c.root) {
		return nil, wire.Refuse(wire.UnknownRoot, "snp: root of the "+c.kind.String(), c.root, "a root that policy names")
	}
	if !known {
		m.chains.Store(id, c, maxKnown)
	}
	return c, nil
}
