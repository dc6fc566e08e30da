package limit

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"sync"

	"github.com/cohort-tee/cohort/internal/wire"
)

// Shares divides a bounded resource, such as requests in progress or bytes of their bodies,
// between remote addresses. An address can have no more than the rest that is free: a single
// address half of all, two addresses a third each, fifty a fifty-first each. So no few
// addresses can take everything before a new address arrives, and nothing is revoked. It is
// safe for concurrent use.
type Shares struct {
	what string
	most int

	mu        sync.Mutex
	taken     int                // guarded by mu: of most, by all
	byAddress map[netip.Addr]int // guarded by mu: by each address that has any
}

// NewShares divides most, which is at least 1. What names the quota, in refusals
// and metrics: "gateway: requests under way".
func NewShares(what string, most int) *Shares {
	return &Shares{what: what, most: most, byAddress: make(map[netip.Addr]int)}
}

// Acquire takes n for an address until [Shares.Release]. It refuses with "rate" more than the
// share of the address, and with "overload" more than is free.
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

// Release returns n of what the address took.
func (s *Shares) Release(from netip.Addr, n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.taken -= n
	if s.byAddress[from] -= n; s.byAddress[from] <= 0 {
		delete(s.byAddress, from)
	}
}

// InUse returns the sum over all addresses.
func (s *Shares) InUse() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.taken
}

// oneAddressSuffix follows the name of the quota in the refusal of more than a share.
const oneAddressSuffix = ", of one address"

// QuotaOf is the name of the quota that refused something with "rate" or
// "overload"; ok is false of other errors.
func QuotaOf(err error) (name string, ok bool) {
	var refusal *wire.Refusal
	if !errors.As(err, &refusal) || refusal.Reason != wire.TooMany && refusal.Reason != wire.Overload {
		return "", false
	}
	return strings.TrimSuffix(refusal.Rule, oneAddressSuffix), true
}

// AddressOf is the address that quotas count for a remote "host:port": an IPv4
// address, or an IPv6 network of 64 bits, because a single host has all of the
// latter. What cannot be read shares the zero address.
func AddressOf(remote string) netip.Addr {
	address, _ := netip.ParseAddrPort(remote)
	ip := address.Addr().Unmap()
	if ip.Is6() {
		ip = netip.PrefixFrom(ip.WithZone(""), 64).Masked().Addr()
	}
	return ip
}
