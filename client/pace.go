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
	stagger          = 50 * time.Millisecond // after this time without a connection, the call races a second replica
	dialTimeout      = 5 * time.Second       // for a connection and its handshake
	maxDials         = 8                     // concurrent dials to one replica
	dialWait         = time.Second           // longest wait of a dial for other dials
	minLateAfter     = 10 * time.Millisecond // a response is never late before this
	defaultLateAfter = 50 * time.Millisecond // a response is late after this while few latencies are known
	hedgeSamples     = 32                    // latencies needed for a quantile
	hedgeWindow      = 512                   // latencies kept
	hedgeRenew       = 32                    // new latencies until the quantile is computed again
)

// Shares of requests that may be sent a second time although no connection broke, and
// the bursts above those shares.
const (
	hedgeShare = 0.03
	hedgeBurst = 20
	retryShare = 0.15
	retryBurst = 10
)

// backoffs determines the pause of a replica after its failures.
var backoffs = retry.Backoff{First: 50 * time.Millisecond, Max: 10 * time.Second}

// backoff determines when a replica that failed is tried again. The zero backoff is ready.
type backoff struct {
	failures int       // in a row
	last     time.Time // the newest failure
	until    time.Time // end of the pause; before it, the replica is tried only if no better one is left
}

// failed records that a request or dial failed. It began and failed at these times. Failures of
// requests and dials that overlap count once.
func (b *backoff) failed(began, at time.Time, jitter float64) {
	if b.failures > 0 && began.Before(b.last) {
		return
	}
	b.failures++
	b.last = at
	b.until = at.Add(backoffs.Spread(b.failures, jitter))
}

func (b *backoff) ready(at time.Time) bool { return b.failures == 0 || !at.Before(b.until) }

// probe pauses a replica again whose pause is over, so that only the caller's request tries it.
func (b *backoff) probe(at time.Time, jitter float64) {
	if b.failures > 0 {
		b.until = at.Add(backoffs.Spread(b.failures, jitter))
	}
}

// budget limits extra requests to a share of all requests plus a burst. It is safe for
// concurrent use.
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

// latencies records the latencies of recent responses and computes the time after which
// a response is late: 1.25 times their 99th percentile. It is safe for concurrent use.
type latencies struct {
	mu    sync.Mutex // guards all below
	ring  [hedgeWindow]time.Duration
	count int           // latencies recorded since the start
	p99   time.Duration // 0 while too few are known
}

func (l *latencies) addSample(d time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.record(d)
}

// addLate records a late response that was canceled, with the quantile itself as its
// latency. Without this record every hedge would lower the quantile. With the time spent
// waiting as the latency, a replica that hangs would raise it.
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
