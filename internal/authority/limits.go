package authority

import (
	"fmt"
	"net/netip"
	"sync"
	"time"

	"github.com/cohort-tee/cohort/internal/limit"
	"github.com/cohort-tee/cohort/internal/wire"
	"golang.org/x/time/rate"
)

// Limits bound what strangers can ask of an authority. A zero field is its
// default; none can be switched off.
type Limits struct {
	PerAddress  int // requests a second from one address; default 100, bursts of twice that
	Total       int // requests a second from all; default 1,000, bursts of twice that
	Connections int // open at once; default 1,024; one that waits makes room
	Requests    int // under way at once; default 768; one address has no more than are free

	Polls           int // that wait for the next step, of units that present their certificates; default 16,384, 4 of one unit
	StrangerPolls   int // the same of all others; default 1,024
	PollsPerAddress int // of these from one address; default 8
}

func (l Limits) orDefault() Limits {
	for _, field := range []struct {
		value     *int
		otherwise int
	}{{&l.PerAddress, 100}, {&l.Total, 1000}, {&l.Connections, 1024}, {&l.Requests, 768}, {&l.Polls, 16_384}, {&l.StrangerPolls, 1024}, {&l.PollsPerAddress, 8}} {
		if *field.value <= 0 {
			*field.value = field.otherwise
		}
	}
	return l
}

// quotas are the names of what bounds requests: the rules of the refusals, and the
// labels of a metric.
const (
	quotaRate     = "authority: requests a second"
	quotaRequests = "authority: requests under way"
	quotaTrusts   = "authority: requests for evidence that wait"
	quotaTotal    = "authority: requests a second from all"
	quotaPolls    = "authority: polls of units"
	quotaOthers   = "authority: polls without a unit's certificate"
)

// limiter says whether a request may be served.
type limiter struct {
	sources  *limit.Buckets
	each     int // of one address
	most     int // of all
	total    *rate.Limiter
	refusals *rate.Limiter // of log rows about refused requests

	mu     sync.Mutex
	second int64              // guarded by mu: that counts are of, Unix time
	counts map[netip.Addr]int // guarded by mu: requests of it, by address
}

func newLimiter(l Limits) *limiter {
	return &limiter{
		sources:  limit.NewBuckets(l.PerAddress),
		each:     l.PerAddress,
		most:     l.Total,
		total:    rate.NewLimiter(rate.Limit(l.Total), 2*l.Total),
		refusals: rate.NewLimiter(10, 100),
		counts:   make(map[netip.Addr]int),
	}
}

// allow counts a request from a remote address. When the total is used up, an
// address that had less than an even part of it in this second gets that all the
// same: however many flood, one that asks little is served. It refuses with "rate" what is
// more than an address may ask, and with "overload" what is more than all may.
func (l *limiter) allow(remote string, at time.Time) error {
	if !l.sources.TakeToken(remote, at) {
		return wire.Refuse(wire.TooMany, quotaRate, "more", fmt.Sprint(l.each, " from one address"))
	}
	had, part := l.count(limit.AddressOf(remote), at)
	if !l.total.AllowN(at, 1) && had >= part {
		return wire.Refuse(wire.Overload, quotaTotal, "more", l.most)
	}
	return nil
}

// count counts a request of an address. It returns how many that address had before
// in this second, and an even part of the total for each address that had any.
func (l *limiter) count(from netip.Addr, at time.Time) (had, part int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if second := at.Unix(); second != l.second {
		l.second = second
		clear(l.counts)
	}
	had = l.counts[from]
	if had > 0 || len(l.counts) < l.most { // more have no part of it
		l.counts[from]++
	}
	return had, l.most / max(1, len(l.counts))
}
