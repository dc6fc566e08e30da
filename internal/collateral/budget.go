package collateral

import (
	"fmt"
	"net/netip"
	"time"

	"github.com/cohort-tee/cohort/internal/wire"
)

// What vendors are asked for on behalf of strangers. AMD's service responds to about
// one request in ten seconds for long, and some twenty at once: most of that is for
// unknown chips, the rest for lists and renewals.
const (
	maxUnknown   = 8                // documents of unknown chips at once
	everyUnknown = 30 * time.Second // one more after this
	maxGrowth    = 8                // the same for networks whose evidence was accepted
	everyGrowth  = 20 * time.Second
	maxInVain    = 2         // of both for one network, until its evidence is accepted
	everyInVain  = time.Hour // one more after this
)

// maxAccepted is how many networks are remembered whose evidence was accepted.
const maxAccepted = 4096

// overBudget is a refusal by the budget, which is returned to strangers unchanged.
type overBudget struct{ error }

func (o overBudget) Unwrap() error { return o.error }

// budget bounds how often vendors are asked for documents of chips that strangers
// name: by all networks together, and by each in vain. Networks whose evidence was
// accepted have a bucket of their own, so that a cluster grows while strangers flood.
// Each acceptance makes the share of a network whole: many machines behind one address
// are served, and a network that makes chips up has a few tries. The zero budget
// refuses.
type budget struct {
	unknown, growth bucket
	inVain          map[string]share
	accepted        map[string]time.Time // when, by network
}

// share is what one network asked for since its evidence was accepted.
type share struct {
	asked float64
	at    time.Time
}

// bucket holds at most so many tokens, and gains one each so often.
type bucket struct {
	left  float64
	most  int
	every time.Duration
	at    time.Time // when left was right; zero before the first take
}

func newBudget() budget {
	return budget{
		unknown: bucket{left: maxUnknown, most: maxUnknown, every: everyUnknown},
		growth:  bucket{left: maxGrowth, most: maxGrowth, every: everyGrowth},
		inVain:  map[string]share{}, accepted: map[string]time.Time{},
	}
}

// takeToken reports whether there was a token, and takes it.
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

// charge counts one document for an address, or refuses it with "rate" and the quota
// that is spent.
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
	for network, other := range b.inVain { // it grows by one for each token
		if other.decayed(now).asked == 0 {
			delete(b.inVain, network)
		}
	}
	b.inVain[from] = share{mine.asked + 1, now}
	return nil
}

// refund returns a request that the vendor did not serve: the sender is not
// to blame.
func (b *budget) refund(address string) {
	from := network(address)
	if mine, there := b.inVain[from]; there {
		mine.asked = max(0, mine.asked-1)
		b.inVain[from] = mine
	}
}

// recordAccepted makes the share of an address whole, and remembers its network. The one that
// was accepted longest ago makes room.
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

// decayed is the share as of now.
func (s share) decayed(now time.Time) share {
	s.asked = max(0, s.asked-float64(max(0, now.Sub(s.at)))/float64(everyInVain))
	s.at = now
	return s
}

func quotaRefusal(quota string, most int, every time.Duration) error {
	return overBudget{wire.Refuse(wire.TooMany, "collateral: documents of "+quota, fmt.Sprintf("more than %d", most), fmt.Sprintf("%d, and one more each %v", most, every))}
}

// network is what one stranger has for sure: an IPv4 address, or 64 bits of IPv6.
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
