package authority

import (
	"time"

	"github.com/cohort-tee/cohort/internal/api"
	"golang.org/x/time/rate"
)

// Limits bound what strangers can ask of an authority. A zero field is its
// default; none can be switched off.
type Limits struct {
	PerAddress  int // requests a second from one address; default 100, bursts of twice that
	Total       int // requests a second from all; default 1,000, bursts of twice that
	Connections int // open at once; default 1,024; the one that waits longest makes room
}

func (l Limits) orDefault() Limits {
	for _, field := range []struct {
		value     *int
		otherwise int
	}{{&l.PerAddress, 100}, {&l.Total, 1000}, {&l.Connections, 1024}} {
		if *field.value <= 0 {
			*field.value = field.otherwise
		}
	}
	return l
}

// limiter says whether a request may be served.
type limiter struct {
	sources  *api.Buckets
	total    *rate.Limiter
	refusals *rate.Limiter // of log rows about refused requests
}

func newLimiter(l Limits) *limiter {
	return &limiter{
		sources:  api.NewBuckets(l.PerAddress),
		total:    rate.NewLimiter(rate.Limit(l.Total), 2*l.Total),
		refusals: rate.NewLimiter(10, 100),
	}
}

// allow counts a request from a remote address.
func (l *limiter) allow(remote string) bool {
	return l.sources.Take(remote, time.Now()) && l.total.Allow()
}
