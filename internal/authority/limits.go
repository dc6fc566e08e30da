package authority

import (
	"net/netip"
	"sync"

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

// maxAddresses bounds the memory of the limiter. Beyond it all addresses begin
// anew; the total limit goes on.
const maxAddresses = 4096

// limiter says whether a request may be served.
type limiter struct {
	limits   Limits
	total    *rate.Limiter
	refusals *rate.Limiter // of log rows about refused requests

	mu      sync.Mutex
	sources map[netip.Addr]*rate.Limiter // guarded by mu
}

func newLimiter(l Limits) *limiter {
	return &limiter{
		limits:   l,
		total:    rate.NewLimiter(rate.Limit(l.Total), 2*l.Total),
		refusals: rate.NewLimiter(10, 100),
		sources:  make(map[netip.Addr]*rate.Limiter),
	}
}

// allow counts a request from a remote address.
func (l *limiter) allow(remote string) bool {
	return l.source(remote).Allow() && l.total.Allow()
}

// source is the limiter of one IPv4 address or one IPv6 network of 64 bits: a
// single host has all of the latter.
func (l *limiter) source(remote string) *rate.Limiter {
	address, _ := netip.ParseAddrPort(remote) // the zero address shares one limiter
	ip := address.Addr().Unmap()
	if ip.Is6() {
		ip = netip.PrefixFrom(ip.WithZone(""), 64).Masked().Addr()
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if found := l.sources[ip]; found != nil {
		return found
	}
	if len(l.sources) >= maxAddresses {
		clear(l.sources)
	}
	fresh := rate.NewLimiter(rate.Limit(l.limits.PerAddress), 2*l.limits.PerAddress)
	l.sources[ip] = fresh
	return fresh
}
