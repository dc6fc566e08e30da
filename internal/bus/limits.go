package bus

import (
	"time"

	"github.com/cohort-tee/cohort/internal/retry"
)

// Times. frameTime and writeTime apply to both sides.
const (
	handshakeTime = 5 * time.Second
	frameTime     = 4 * time.Second        // for a whole frame to arrive: four heartbeat intervals
	writeTime     = 4 * time.Second        // for the peer to accept a write
	dialTime      = 5 * time.Second        // for a unit to connect, TCP and TLS
	closeTime     = time.Second            // for Close to write queued items
	stableAfter   = time.Second            // a connection that lasted this long resets the back-off; certificates last at least 3 s
	hintTime      = 500 * time.Millisecond // to write a hint before the connection ends
)

// connectBackoff is the wait between two attempts of a unit to connect.
var connectBackoff = retry.Backoff{First: 50 * time.Millisecond, Max: 2 * time.Second}

// Rates per second, and bursts.
const (
	bytesEach, bytesBurst           = 32 << 20, 64 << 20 // bytes from the peer
	heartbeatsEach, heartbeatsBurst = 10, 20             // from one unit; honest units send 1
	rangesEach, rangesBurst         = 2, 8               // from one unit; each may cause a disk write at the manager
)

// Counts.
const (
	mostHalfOpen   = 1_024 // concurrent handshakes at a manager; above this the oldest is closed
	mostOfAddress  = 64    // concurrent handshakes from one address
	mostPulls      = 64    // concurrent pulls by one unit
	mostBatches    = 128   // batches queued for one unit; the queues share the memory of a batch
	mostWaiting    = 4_096 // sealed sessions queued at a unit
	mostRequests   = 2 * mostPulls
	maxHintedCause = 32 // bytes of a reason in a hint
)

// bucket is a token bucket.
type bucket struct {
	rate, burst float64 // tokens per second, and maximum number of tokens
	tokens      float64
	at          time.Time // time of the last update of tokens; zero: never updated
}

func newBucket(rate, burst float64) bucket { return bucket{rate: rate, burst: burst, tokens: burst} }

func (b *bucket) refill(now time.Time) {
	if !b.at.IsZero() {
		b.tokens = min(b.burst, b.tokens+max(0, now.Sub(b.at).Seconds())*b.rate)
	}
	b.at = now
}

// tryTake takes a token if one is available, and reports whether it did.
func (b *bucket) tryTake(now time.Time) bool {
	b.refill(now)
	if b.tokens < 1 {
		return false
	}
	b.tokens--
	return true
}

// reserve takes n tokens, available or not, and returns the wait until they are available.
func (b *bucket) reserve(n float64, now time.Time) time.Duration {
	b.refill(now)
	b.tokens -= n
	if b.tokens >= 0 {
		return 0
	}
	return time.Duration(-b.tokens / b.rate * float64(time.Second))
}
