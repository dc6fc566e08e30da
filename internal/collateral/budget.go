package collateral

import (
	"fmt"
	"net/netip"
	"time"

	"github.com/cohort-tee/cohort/internal/wire"
)

// Limits of requests to vendors for evidence of strangers. AMD's service permits about one
// request in ten seconds over time, and about twenty at once. Most of these are for unknown
// chips, the rest for revocation lists and renewals.
const (
	maxUnknown   = 8                // burst of documents for unknown chips
	everyUnknown = 30 * time.Second // one more after this
	maxGrowth    = 8                // burst for networks whose evidence was accepted
	everyGrowth  = 20 * time.Second
	maxInVain    = 2         // burst of both for one network, until its evidence is accepted
	everyInVain  = time.Hour // one more after this
)

// maxAccepted is the maximum number of recorded networks whose evidence was accepted.
const maxAccepted = 4096

// overBudget is a refusal by the budget. EndorseFor returns it unchanged.
type overBudget struct{ error }

func (o overBudget) Unwrap() error { return o.error }

// budget limits the requests to vendors for documents of chips that strangers name: the requests
// for all networks together, and for each network the requests in vain, after which no evidence
// was accepted. Networks whose evidence was accepted share a bucket of their own, so that a
// cluster can grow during a flood of strangers. Each acceptance resets the share of its network,
// so that many machines behind one address are served while a network that invents chips has
// only a few tries. The zero budget refuses all requests.
type budget struct {
	unknown, growth bucket
	inVain          map[string]share
	accepted        map[string]time.Time // when, by network
}

// share counts the requests for one network since its evidence was last accepted.
type share struct {
	asked float64
	at    time.Time
}

// bucket is a token bucket. Its capacity is most, and it gains one token in the time every.
type bucket struct {
	left  float64
	most  int
	every time.Duration
	at    time.Time // time of the last update of left; zero before the first token is taken
}

func newBudget() budget {
	return budget{
		unknown: bucket{left: maxUnknown, most: maxUnknown, every: everyUnknown},
		growth:  bucket{left: maxGrowth, most: maxGrowth, every: everyGrowth},
		inVain:  map[string]share{}, accepted: map[string]time.Time{},
	}
}

// takeToken takes a token if one is left, and reports whether it did.
func (b *bucket) takeToken(now time.Time) bool {
	if !b.at.IsZero() {
		b.left = min(float64(b.most), b.left+float64(max(0, now.Sub(b.at)))/float64(b.every))
	}
	if b.at = now; b.left < 1 {
		return false
	}
	b.left--
	return true
}

// charge charges one document to an address. If a quota is used up, charge refuses with "rate"
// and names the quota.
func (b *budget) charge(address string, now time.Time) error {
	from := network(address)
	mine := b.inVain[from].decayed(now)
	if mine.asked+1 > maxInVain {
		return quotaRefusal("chips that "+from+" named in vain", maxInVain, everyInVain)
	}
	_, known := b.accepted[from]
	if !(known && b.growth.takeToken(now)) && !b.unknown.takeToken(now) {
		return quotaRefusal("unknown chips, of all addresses", maxUnknown, everyUnknown)
	}
	for network, other := range b.inVain { // each token adds at most one entry to the map
		if other.decayed(now).asked == 0 {
			delete(b.inVain, network)
		}
	}
	b.inVain[from] = share{mine.asked + 1, now}
	return nil
}

// refund undoes the charge for a request that the vendor did not serve, which is not the
// sender's fault.
func (b *budget) refund(address string) {
	from := network(address)
	if mine, there := b.inVain[from]; there {
		mine.asked = max(0, mine.asked-1)
		b.inVain[from] = mine
	}
}

// recordAccepted resets the share of an address's network and records the network as accepted.
// If there are too many, it removes the network with the oldest acceptance.
func (b *budget) recordAccepted(address string, now time.Time) {
	from := network(address)
	delete(b.inVain, from)
	if _, known := b.accepted[from]; !known && len(b.accepted) >= maxAccepted {
		oldest := from
		for other, at := range b.accepted {
			if oldest == from || at.Before(b.accepted[oldest]) {
				oldest = other
			}
		}
		delete(b.accepted, oldest)
	}
	b.accepted[from] = now
}

// decayed returns the share at the time now: it decays by one request each everyInVain.
func (s share) decayed(now time.Time) share {
	s.asked = max(0, s.asked-float64(max(0, now.Sub(s.at)))/float64(everyInVain))
	s.at = now
	return s
}

func quotaRefusal(quota string, most int, every time.Duration) error {
	return overBudget{wire.Refuse(wire.TooMany, "collateral: documents of "+quota, fmt.Sprintf("more than %d", most), fmt.Sprintf("%d, and one more each %v", most, every))}
}

// network returns the key of a stranger's share: an IPv4 address, or the /64 network of an IPv6
// address, since one host has all addresses of the latter.
func network(address string) string {
	ip, err := netip.ParseAddr(address)
	if with, portErr := netip.ParseAddrPort(address); err != nil && portErr == nil {
		ip = with.Addr()
	} else if err != nil {
		return "unknown addresses"
	}
	if ip = ip.Unmap(); ip.Is6() {
		return netip.PrefixFrom(ip.WithZone(""), 64).Masked().String()
	}
	return ip.String()
}
