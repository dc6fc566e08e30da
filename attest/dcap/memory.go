package dcap

import (
	"slices"
	"sync"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/internal/wire"
)

// maxKnown bounds the memory: about 20 KiB for each platform.
const maxKnown = 1024

// memory holds platforms whose certificates and collateral were checked, under
// an accepted root, by the digests of the bytes they were checked from. Of a
// quote only the certificate chain is part of it.
type memory struct {
	mu        sync.Mutex // guards platforms
	platforms map[known]*platform
}

// known names a platform's certificates and the version of its collateral.
type known struct {
	of                                                   attest.Platform
	chain, tcb, tcbChain, qe, qeChain, pckList, rootList attest.Digest
}

func (b bundle) known() known {
	return known{
		of: b.of, chain: wire.Sum(b.chain),
		tcb: wire.Sum(b.endorsed[roleTCBInfo]), tcbChain: wire.Sum(b.endorsed[roleTCBInfoChain]),
		qe: wire.Sum(b.endorsed[roleQEIdentity]), qeChain: wire.Sum(b.endorsed[roleQEIdentityChain]),
		pckList: wire.Sum(b.endorsed[rolePCKCRL]), rootList: wire.Sum(b.endorsed[roleRootCRL]),
	}
}

// platform checks a bundle, or remembers that it did.
func (m *memory) platform(b bundle, roots []attest.Digest) (*platform, error) {
	id := b.known()
	m.mu.Lock()
	p := m.platforms[id]
	m.mu.Unlock()
	if p == nil {
		var err error
		if p, err = b.check(); err != nil {
			return nil, err
		}
	}
	if !slices.Contains(roots, p.root) {
		return nil, wire.Refuse(wire.UnknownRoot, "dcap: root of the PCK certificate", p.root, "a root that policy names")
	}
	m.remember(id, p)
	return p, nil
}

// remember keeps a platform; when full it forgets any one.
func (m *memory) remember(id known, p *platform) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.platforms == nil {
		m.platforms = make(map[known]*platform)
	}
	for other := range m.platforms {
		if len(m.platforms) < maxKnown || m.platforms[id] != nil {
			break
		}
		delete(m.platforms, other)
	}
	m.platforms[id] = p
}
