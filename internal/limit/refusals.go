package limit

import (
	"maps"
	"sync"
)

// Refusals counts refusals by quota. The zero Refusals is ready for use. It is safe for
// concurrent use.
type Refusals struct {
	mu     sync.Mutex
	counts map[string]uint64 // guarded by mu: by quota
}

// Count counts err if it is a refusal by a quota. The map stays small, since peers cannot choose
// the names of quotas.
func (r *Refusals) Count(err error) {
	quota, ok := QuotaOf(err)
	if !ok {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.counts == nil {
		r.counts = make(map[string]uint64)
	}
	r.counts[quota]++
}

// Counts returns a copy of the counts; nil if there was no refusal.
func (r *Refusals) Counts() map[string]uint64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	return maps.Clone(r.counts)
}
