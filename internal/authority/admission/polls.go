package admission

import (
	"crypto/x509"
	"net/http"
	"net/netip"
	"sync"
	"time"

	"github.com/cohort-tee/cohort/internal/bus"
	"github.com/cohort-tee/cohort/internal/limit"
	"github.com/cohort-tee/cohort/internal/wire"
)

// pollsPerUnit is more than one, because the server may detect a closed connection late.
const pollsPerUnit = 4

// Polls are the requests that wait for the next step of the history. They have places of their
// own, because otherwise they would occupy all places of other requests.
type Polls struct {
	units  *limit.Pool[wire.UnitID]
	others *limit.Pool[netip.Addr]
	most   int // bound of known units; remember clears them at twice as many

	mu    sync.Mutex
	known map[wire.Digest]bus.Unit // guarded by mu: by the digest of a signing certificate that was verified
}

// NewPolls returns Polls with all places free.
func NewPolls(l Limits) *Polls {
	return &Polls{
		units:  limit.NewPool[wire.UnitID](QuotaPolls, l.Polls, pollsPerUnit),
		others: limit.NewPool[netip.Addr](QuotaOthers, l.StrangerPolls, l.PollsPerAddress),
		most:   l.Polls, known: make(map[wire.Digest]bus.Unit),
	}
}

// InUse returns how many polls of units, and how many of other clients, have a place.
func (p *Polls) InUse() (units, others int) { return p.units.InUse(), p.others.InUse() }

// Acquire takes a place for a poll; the returned release frees it. A unit that presents its
// signing certificate gets a place of units, any other client one of the others. The certificate
// protects only availability.
func (p *Polls) Acquire(r *http.Request, root []byte, at time.Time) (release func(), err error) {
	if unit, ok := p.unitOf(r, root, at); ok {
		return func() { p.units.Release(unit) }, p.units.Acquire(unit)
	}
	from := limit.AddressOf(r.RemoteAddr)
	return func() { p.others.Release(from) }, p.others.Acquire(from)
}

// unitOf returns the unit whose signing certificate the client presented, if it verifies under
// the authority root.
func (p *Polls) unitOf(r *http.Request, root []byte, at time.Time) (unit wire.UnitID, ok bool) {
	if r.TLS == nil || len(r.TLS.PeerCertificates) < 2 {
		return unit, false
	}
	chain := r.TLS.PeerCertificates
	leaf := wire.Sum(chain[0].Raw)
	p.mu.Lock()
	known, found := p.known[leaf]
	p.mu.Unlock()
	if !found {
		parsed, err := x509.ParseCertificate(root)
		if err != nil {
			return unit, false
		}
		roots := x509.NewCertPool()
		roots.AddCert(parsed)
		if known, err = bus.UnitOf(chain, roots, at); err != nil {
			return unit, false
		}
		p.remember(leaf, known)
	}
	return known.ID, at.Before(known.NotAfter)
}

// remember caches a verified unit. At the bound it clears the cache, and units are verified
// again.
func (p *Polls) remember(leaf wire.Digest, unit bus.Unit) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.known) >= 2*p.most {
		clear(p.known)
	}
	unit.Leaf, unit.Cross = nil, nil
	p.known[leaf] = unit
}
