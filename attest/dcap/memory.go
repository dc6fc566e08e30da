package dcap

import (
	"slices"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/attest/internal/pki"
	"github.com/cohort-tee/cohort/internal/wire"
)

// maxKnown bounds the memory: about 20 KiB for each platform.
const maxKnown = 1024

// memory holds platforms whose certificates and collateral were checked, under
// an accepted root, by the digests of the bytes they were checked from. Of a
// quote only the certificate chain is part of it.
type memory struct{ platforms pki.Cache[known, *platform] }

// known names a platform's certificates and the version of its collateral.
type known struct {
	of                                                   attest.Platform
	chain, tcb, tcbChain, qe, qeChain, pckList, rootList attest.Digest
}

func (b bundle) known() known {
	return known{
		of: b.of, chain: wire.SumPEM(b.pckChain()),
		tcb: wire.Sum(b.endorsed[roleTCBInfo]), tcbChain: wire.SumPEM(b.endorsed[roleTCBInfoChain]),
		qe: wire.Sum(b.endorsed[roleQEIdentity]), qeChain: wire.SumPEM(b.endorsed[roleQEIdentityChain]),
		pckList: wire.Sum(b.endorsed[rolePCKCRL]), rootList: wire.Sum(b.endorsed[roleRootCRL]),
	}
}

// platform checks a bundle, or remembers that it did.
func (m *memory) platform(b bundle, roots []attest.Digest) (*platform, error) {
	id := b.known()
	p, known := m.platforms.Load(id)
	if !known {
		var err error
		if p, err = b.verify(); err != nil {
			return nil, err
		}
	}
	if !slices.Contains(roots, p.root) {
		return nil, wire.Refuse(wire.UnknownRoot, "dcap: root of the PCK certificate", p.root, "a root that policy names")
	}
	if !known {
		m.platforms.Store(id, p, maxKnown)
	}
	return p, nil
}
