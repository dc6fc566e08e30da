package client

import (
	"cmp"
	"slices"
	"sync"
	"time"

	"github.com/cohort-tee/cohort/internal/retry"
)

// Times and sizes of fail-over. None of them affects trust.
const (
	stagger          = 50 * time.Millisecond // a connection that takes longer is raced by one to another replica
	dialTimeout      = 5 * time.Second       // a connection and its handshake take at most this
	maxDials         = 8                     // connections to a replica that are under way at a time
	dialWait         = time.Second           // a dial waits at most this for others
	minLateAfter     = 10 * time.Millisecond // no response is late before
	defaultLateAfter = 50 * time.Millisecond // when a response is late while few latencies are known
	hedgeSamples     = 32                    // latencies needed for a quantile
	hedgeWindow      = 512                   // latencies kept
	hedgeRenew       = 32                    // new latencies until the quantile is computed again
)

// Shares of requests that may be sent a second time without a broken
// connection, and the bursts above that.
const (
	hedgeShare = 0.03
	hedgeBurst = 20
	retryShare = 0.15
	retryBurst = 10
)

// backoffs determines the pause of a replica after its failures.
var backoffs = retry.Backoff{First: 50 * time.Millisecond, Max: 10 * time.Second}

// backoff determines when a replica that failed is tried again. The zero
// backoff is ready.
type backoff struct {
	failures int       // in a row
	last     time.Time // the newest failure
	until    time.Time // not to be tried before, unless all others are worse
}

// failed records a failure of a request or dial that began at began. Failures of
// those that ran at the same time count once.
func (b *backoff) failed(began, at time.Time, jitter float64) {
	if b.failures > 0 && began.Before(b.last) {
		return
	}
	b.failures++
	b.last = at
	b.until = at.Add(backoffs.Spread(b.failures, jitter))
}

func (b *backoff) ready(at time.Time) bool { return b.failures == 0 || !at.Before(b.until) }

// probe admits one request to a replica whose pause is over, and pauses it again
// for the others.
func (b *backoff) probe(at time.Time, jitter float64) {
	if b.failures > 0 {
		b.until = at.Add(backoffs.Spread(b.failures, jitter))
	}
}

// budget bounds extra requests to a share of all requests and a burst. It is
// safe for concurrent use.
type budget struct {
	share, burst float64

	mu     sync.Mutex // guards tokens
	tokens float64
}

func newBudget(share, burst float64) *budget {
	return &budget{share: share, burst: burst, tokens: burst}
}

func (b *budget) refill() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.tokens = min(b.tokens+b.share, b.burst)
}

func (b *budget) spend() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.tokens < 1 {
		return false
	}
	b.tokens--
	return true
}

// latencies records how long recent responses took, and computes after which
// time a response is late: a little above their 99th percentile. It is safe for
// concurrent use.
type latencies struct {
	mu    sync.Mutex // guards all below
	ring  [hedgeWindow]time.Duration
	count int           // since the beginning
	p99   time.Duration // 0 while too few are known
}

func (l *latencies) addSample(d time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.record(d)
}

// addLate records a late response that was canceled, with the quantile itself as
// its latency. Without a record the quantile would sink with every hedge; with
// the time waited for it, a replica that hangs would raise it.
func (l *latencies) addLate() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.record(cmp.Or(l.p99, defaultLateAfter))
}

func (l *latencies) record(d time.Duration) {
	l.ring[l.count%hedgeWindow] = d
	l.count++
	if l.count >= hedgeSamples && l.count%hedgeRenew == 0 {
		known := slices.Clone(l.ring[:min(l.count, hedgeWindow)])
		slices.Sort(known)
		l.p99 = known[len(known)*99/100]
	}
}

func (l *latencies) lateAfter() time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.p99 == 0 {
		return defaultLateAfter
	}
	return max(l.p99+l.p99/4, minLateAfter)
}
