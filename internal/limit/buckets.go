package limit

import (
	"net/netip"
	"sync"
	"time"

	"golang.org/x/time/rate"
)

// maxAddresses limits the number of buckets. When it is exceeded, all buckets are dropped and
// addresses start with full ones.
const maxAddresses = 4096

// Buckets are token buckets, one for each remote address, with a burst of twice the tokens per
// second. It is safe for concurrent use.
type Buckets struct {
	perSecond int

	mu      sync.Mutex
	sources map[netip.Addr]*rate.Limiter // guarded by mu
}

// NewBuckets makes buckets that gain perSecond tokens per second, at least 1.
func NewBuckets(perSecond int) *Buckets {
	return &Buckets{perSecond: perSecond, sources: make(map[netip.Addr]*rate.Limiter)}
}

// TakeToken takes a token of a remote "host:port" if one is left, and reports whether it did.
func (b *Buckets) TakeToken(remote string, at time.Time) bool {
	return b.bucketOf(remote).AllowN(at, 1)
}

// bucketOf returns the bucket of a remote "host:port".
func (b *Buckets) bucketOf(remote string) *rate.Limiter {
	ip := AddressOf(remote)
	b.mu.Lock()
	defer b.mu.Unlock()
	if found := b.sources[ip]; found != nil {
		return found
	}
	if len(b.sources) >= maxAddresses {
		clear(b.sources)
	}
	fresh := rate.NewLimiter(rate.Limit(b.perSecond), 2*b.perSecond)
	b.sources[ip] = fresh
	return fresh
}
