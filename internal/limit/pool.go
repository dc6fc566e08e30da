package limit

import (
	"sync"

	"github.com/cohort-tee/cohort/internal/wire"
)

// Pool limits concurrent operations. Each holder can have at most a fixed share of the places,
// even if more are free, so that long waits of some holders do not keep others out. It is safe
// for concurrent use.
type Pool[K comparable] struct {
	what        string
	most, share int

	mu       sync.Mutex
	taken    int       // guarded by mu
	byHolder map[K]int // guarded by mu: places of each holder, without zeros
}

// NewPool makes a pool of most places, of which one holder can have at most share. The quota has
// the name what in refusals and metrics.
func NewPool[K comparable](what string, most, share int) *Pool[K] {
	return &Pool[K]{what: what, most: most, share: share, byHolder: make(map[K]int)}
}

// Acquire takes a place until [Pool.Release]. It refuses with "overload".
func (p *Pool[K]) Acquire(by K) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case p.taken >= p.most:
		return wire.Refuse(wire.Overload, p.what, p.taken, p.most)
	case p.byHolder[by] >= p.share:
		return wire.Refuse(wire.Overload, p.what+oneAddressSuffix, p.byHolder[by], p.share)
	}
	p.taken++
	p.byHolder[by]++
	return nil
}

// Release releases a place.
func (p *Pool[K]) Release(by K) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.taken--
	if p.byHolder[by]--; p.byHolder[by] == 0 {
		delete(p.byHolder, by)
	}
}

// InUse returns the number of places that are taken.
func (p *Pool[K]) InUse() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.taken
}
