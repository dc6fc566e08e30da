package snp

import (
	"slices"
	"sync"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/internal/wire"
	"github.com/google/go-sev-guest/abi"
)

// maxKnown bounds the memory: about 1 KiB for each chip.
const maxKnown = 1024

// memory holds chains that were checked, under an accepted root, by the digests
// of the bytes they were checked from. Evidence is never part of it.
type memory struct {
	mu     sync.Mutex // guards chains
	chains map[known]*chain
}

// known names a chip's certificate and the version of its collateral.
type known struct {
	kind              abi.ReportSigner
	leaf, askARK, crl attest.Digest
	listed            bool
}

// chain checks a bundle, or remembers that it did.
func (m *memory) chain(b bundle, roots []attest.Digest) (*chain, error) {
	id := known{b.kind, wire.Sum(b.leaf), wire.Sum(b.askARK), wire.Sum(b.crl), b.crl != nil}
	m.mu.Lock()
	c := m.chains[id]
	m.mu.Unlock()
	if c == nil {
		var err error
		if c, err = b.check(); err != nil {
			return nil, err
		}
	}
	if !slices.Contains(roots, c.root) {
		return nil, wire.Refuse(wire.UnknownRoot, "snp: root of the "+c.kind.String(), c.root, "a root that policy names")
	}
	m.remember(id, c)
	return c, nil
}

// remember keeps a chain; when full it forgets any one.
func (m *memory) remember(id known, c *chain) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.chains == nil {
		m.chains = make(map[known]*chain)
	}
	for other := range m.chains {
		if len(m.chains) < maxKnown {
			break
		}
		delete(m.chains, other)
	}
	m.chains[id] = c
}
