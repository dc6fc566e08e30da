package limit

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"sync"

	"github.com/cohort-tee/cohort/internal/wire"
)

// Shares divides a limited resource, such as requests in progress or bytes of their bodies,
// between remote addresses. An address can have no more than the amount that stays free: one
// address can have half of the resource, two addresses a third each, fifty addresses 1/51 each.
// So a few addresses cannot use up the resource before a new address arrives, and nothing is
// taken back from an address. It is safe for concurrent use.
type Shares struct {
	what string
	most int

	mu        sync.Mutex
	taken     int                // guarded by mu: sum over all addresses
	byAddress map[netip.Addr]int // guarded by mu: amount of each address, without zeros
}

// NewShares divides an amount of most, at least 1. The quota has the name what in refusals and
// metrics, for example "gateway: requests under way".
func NewShares(what string, most int) *Shares {
	return &Shares{what: what, most: most, byAddress: make(map[netip.Addr]int)}
}

// Acquire takes an amount n for an address until [Shares.Release]. It refuses with "rate" if the
// address would exceed its share, and with "overload" if less than n is free.
func (s *Shares) Acquire(from netip.Addr, n int) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	taken, free := s.byAddress[from], s.most-s.taken
	switch {
	case n < 0 || n > free:
		return wire.Refuse(wire.Overload, s.what, s.taken, fmt.Sprint(n, " below ", s.most))
	case taken > 0 && taken > free-n:
		return wire.Refuse(wire.TooMany, s.what+oneAddressSuffix, taken, fmt.Sprint("at most the ", free, " that are free"))
	}
	s.taken += n
	s.byAddress[from] = taken + n
	return nil
}

// Release returns an amount n that the address took.
func (s *Shares) Release(from netip.Addr, n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.taken -= n
	if s.byAddress[from] -= n; s.byAddress[from] <= 0 {
		delete(s.byAddress, from)
	}
}

// InUse returns the amount that all addresses have taken together.
func (s *Shares) InUse() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.taken
}

// oneAddressSuffix follows the name of the quota in a refusal because an address exceeds its
// share.
const oneAddressSuffix = ", of one address"

// QuotaOf returns the name of the quota if err is a refusal with "rate" or "overload"; ok is
// false for other errors.
func QuotaOf(err error) (name string, ok bool) {
	var refusal *wire.Refusal
	if !errors.As(err, &refusal) || refusal.Reason != wire.TooMany && refusal.Reason != wire.Overload {
		return "", false
	}
	return strings.TrimSuffix(refusal.Rule, oneAddressSuffix), true
}

// AddressOf returns the address under which quotas count a remote "host:port": an IPv4 address,
// or the /64 network of an IPv6 address, because a single host has all addresses of the latter.
// It returns the zero address if remote cannot be parsed.
func AddressOf(remote string) netip.Addr {
	address, _ := netip.ParseAddrPort(remote)
	ip := address.Addr().Unmap()
	if ip.Is6() {
		ip = netip.PrefixFrom(ip.WithZone(""), 64).Masked().Addr()
	}
	return ip
}
