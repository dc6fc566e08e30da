package bus

import (
	"time"

	"github.com/cohort-tee/cohort/internal/retry"
)

// Times. Those of frames and writes hold for both sides.
const (
	handshakeTime = 5 * time.Second
	frameTime     = 4 * time.Second        // until a whole frame is there: four heartbeats
	writeTime     = 4 * time.Second        // the peer takes what is written
	dialTime      = 5 * time.Second        // TCP and TLS, at a unit
	closeTime     = time.Second            // what was published before Close is written
	settled       = time.Second            // a connection that lived so long begins the attempts anew; a certificate lasts 3 s at least
	hintTime      = 500 * time.Millisecond // to write why a connection ends
)

// connectBackoff is the wait between two attempts of a unit to connect.
var connectBackoff = retry.Backoff{First: 50 * time.Millisecond, Most: 2 * time.Second}

// Rates a second, and how much may come at once.
const (
	bytesEach, bytesBurst   = 32 << 20, 64 << 20 // from the peer
	beatsEach, beatsBurst   = 10, 20             // of one unit; an honest one sends 1
	rangesEach, rangesBurst = 2, 8               // of one unit, each a write to the manager's disk at worst
)

// Counts.
const (
	mostHalfOpen   = 1_024 // handshakes at a time at a manager; beyond, the one that waits longest is ended
	mostOfAddress  = 64    // of these from one address
	mostPulls      = 64    // under way at a time, of one unit
	mostBatches    = 128   // that wait for one unit; all units share a batch's memory
	mostWaiting    = 4_096 // sealed sessions that wait at a unit
	mostRequests   = 2 * mostPulls
	maxHintedCause = 32 // bytes of a reason in a hint
)

// bucket counts tokens that fill again with time.
type bucket struct {
	rate, burst float64 // tokens a second, and at most
	tokens      float64
	at          time.Time // when tokens was so many; zero: never used
}

func newBucket(rate, burst float64) bucket { return bucket{rate: rate, burst: burst, tokens: burst} }

func (b *bucket) fill(now time.Time) {
	if !b.at.IsZero() {
		b.tokens = min(b.burst, b.tokens+max(0, now.Sub(b.at).Seconds())*b.rate)
	}
	b.at = now
}

// take takes a token, if there is one.
func (b *bucket) take(now time.Time) bool {
	b.fill(now)
	if b.tokens < 1 {
		return false
	}
	b.tokens--
	return true
}

// owes takes n tokens, and returns how long it takes until they are there.
func (b *bucket) owes(n float64, now time.Time) time.Duration {
	b.fill(now)
	b.tokens -= n
	if b.tokens >= 0 {
		return 0
	}
	return time.Duration(-b.tokens / b.rate * float64(time.Second))
}
