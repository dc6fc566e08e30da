// Package admission bounds what unknown clients can make an authority do: requests per second,
// waiting polls, and challenges. Each refusal names its quota, which is also the label of a
// metric.
//
// It trusts no client: an address counts as one client, and the certificate of a unit entitles it
// to a place among the polls of units and to nothing else. It refuses with "rate" what exceeds
// the bound of one client, and with "overload" what exceeds the bound of all.
//
// [Limits] are the bounds. [Limiter] counts requests, [Polls] has the places of polls, and
// [Nonces] remembers the challenges that were used.
//
// Files, each using those before it: admission.go, nonces.go, polls.go.
package admission

import (
	"fmt"
	"net/netip"
	"sync"
	"time"

	"github.com/cohort-tee/cohort/internal/limit"
	"github.com/cohort-tee/cohort/internal/wire"
	"golang.org/x/time/rate"
)

// Limits bound the requests of clients to an authority. A zero field means its default; no limit
// can be switched off.
type Limits struct {
	PerAddress  int // requests per second from one address; default 100, bursts of twice that
	Total       int // requests per second from all; default 1,000, bursts of twice that
	Connections int // open at once; default 1,024; an idle one is closed to make room
	Requests    int // served at once; default 768; one address has no more than are free

	Polls           int // waiting for the next step, of units that present their certificates; default 16,384, 4 of one unit
	StrangerPolls   int // waiting polls of all other clients; default 1,024
	PollsPerAddress int // the part of StrangerPolls for one address; default 8
}

// OrDefault returns the limits with a default in place of each zero.
func (l Limits) OrDefault() Limits {
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

// Names of the quotas: the rules of the refusals, and the labels of a metric.
const (
	QuotaRate     = "authority: requests a second"
	QuotaRequests = "authority: requests under way"
	QuotaTrusts   = "authority: requests for evidence that wait"
	QuotaTotal    = "authority: requests a second from all"
	QuotaPolls    = "authority: polls of units"
	QuotaOthers   = "authority: polls without a unit's certificate"
)

// Limiter counts requests. It is safe for concurrent use.
type Limiter struct {
	sources  *limit.Buckets
	each     int // of one address
	most     int // of all
	total    *rate.Limiter
	refusals *rate.Limiter // of log rows about refused requests

	mu     sync.Mutex
	second int64              // guarded by mu: the second that counts are of, Unix time
	counts map[netip.Addr]int // guarded by mu: requests in that second, by address
}

// NewLimiter returns a limiter with all counts at zero.
func NewLimiter(l Limits) *Limiter {
	return &Limiter{
		sources:  limit.NewBuckets(l.PerAddress),
		each:     l.PerAddress,
		most:     l.Total,
		total:    rate.NewLimiter(rate.Limit(l.Total), 2*l.Total),
		refusals: rate.NewLimiter(10, 100),
		counts:   make(map[netip.Addr]int),
	}
}

// Allow counts a request from a remote address. When the total is used up, it still admits an
// address that had less than an even share of it in this second: even in a flood from many
// addresses, a client with few requests is served. It refuses with "rate" requests above the
// limit of one address, and with "overload" requests above the limit of all.
func (l *Limiter) Allow(remote string, at time.Time) error {
	if !l.sources.TakeToken(remote, at) {
		return wire.Refuse(wire.TooMany, QuotaRate, "more from "+limit.AddressOf(remote).String(), fmt.Sprint(l.each, " from one address"))
	}
	had, part := l.countRequest(limit.AddressOf(remote), at)
	if !l.total.AllowN(at, 1) && had >= part {
		return wire.Refuse(wire.Overload, QuotaTotal, fmt.Sprint("more, ", had, " of them from ", limit.AddressOf(remote)), l.most)
	}
	return nil
}

// AllowPoll counts a poll of a remote address, which does not count toward the total.
func (l *Limiter) AllowPoll(remote string, at time.Time) error {
	if !l.sources.TakeToken(remote, at) {
		return wire.Refuse(wire.TooMany, QuotaRate, "more from "+limit.AddressOf(remote).String(), l.each)
	}
	return nil
}

// AllowRow reports whether a refused request may be added to the log.
func (l *Limiter) AllowRow() bool { return l.refusals.Allow() }

// countRequest counts a request of an address. It returns how many requests the address had
// before in this second, and an even share of the total among the addresses that had any.
func (l *Limiter) countRequest(from netip.Addr, at time.Time) (had, part int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if second := at.Unix(); second != l.second {
		l.second = second
		clear(l.counts)
	}
	had = l.counts[from]
	if had > 0 || len(l.counts) < l.most { // further addresses get no share
		l.counts[from]++
	}
	return had, l.most / max(1, len(l.counts))
}
