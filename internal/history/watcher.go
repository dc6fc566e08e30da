package history

import (
	"context"
	"crypto/x509"
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/identity"
	"github.com/cohort-tee/cohort/internal/api"
	"github.com/cohort-tee/cohort/internal/retry"
	"github.com/cohort-tee/cohort/internal/wire"
)

// Times of a watcher.
const (
	minPollInterval = 250 * time.Millisecond // least time between two polls without a new step
	returnToFirst   = time.Minute            // time after which the watcher returns to its first source

	hintsAtOnce = 3               // burst of polls because of hinted heads
	hintsEach   = 5 * time.Second // after the burst, time between two such polls

	hintsChecked = 20 // hints per second whose signatures are checked; a skipped hint only delays the next poll
)

// backoff determines the pauses while no source responds.
var backoff = retry.Backoff{First: 50 * time.Millisecond, Max: 5 * time.Second}

// Source is a server that a [Watcher] polls: a [Peer] or a [Gateway].
type Source interface {
	// Watch waits for the next step after h, as [Peer.Watch] does.
	Watch(ctx context.Context, h History, pin attest.Digest, wait time.Duration) (History, error)
	// PushHistory sends a newer history to the source, if the source accepts one.
	PushHistory(ctx context.Context, h History) error
}

// PushHistory does nothing: a gateway accepts no history.
func (g *Gateway) PushHistory(context.Context, History) error { return nil }

// Watcher keeps a history current. It makes one poll at a time, at the first of its sources that
// accepts the poll. A Watcher with its exported fields set is ready for use. The fields must not
// change after [Watcher.Run] is called. Its methods are safe for concurrent use.
type Watcher struct {
	Pin     attest.Digest        // digest of the first policy
	Current func() History       // returns the current history
	Adopt   func(History)        // called by Run with the current history extended by steps or a newer proof
	Wait    func() time.Duration // returns how long a source may wait for a new step

	mu      sync.Mutex
	sources []Source           // guarded by mu: the source in use is first
	first   Source             // guarded by mu: the source that was added first
	current Source             // guarded by mu: source of the last poll if it succeeded; otherwise nil
	cancel  context.CancelFunc // guarded by mu: ends the current wait
	hinted  bool               // guarded by mu: a newer head was hinted
	tokens  int                // guarded by mu: polls for hints, less those that time has restored
	filled  time.Time          // guarded by mu: when tokens was last reduced
	second  int64              // guarded by mu: second that checks counts, Unix time
	checks  int                // guarded by mu: hints in this second, each with a signature check up to hintsChecked
}

// AddSource adds a source after the others.
func (w *Watcher) AddSource(s Source) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.first == nil {
		w.first = s
	}
	w.sources = append(w.sources, s)
	w.wakeUp()
}

// RemoveSource removes a source that was added.
func (w *Watcher) RemoveSource(s Source) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for i, other := range w.sources {
		if other == s {
			w.sources = append(w.sources[:i:i], w.sources[i+1:]...)
			break
		}
	}
	w.wakeUp()
}

// CurrentSource returns the source of the last poll, or nil if that poll failed.
func (w *Watcher) CurrentSource() Source {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.current
}

// HintHead receives an unverified policy head from a peer. If the authority has signed the head
// and it is newer than the current one, the watcher polls at once. It does so up to three times
// in a burst, then at most every 5 seconds. root is the certificate of the authority root.
// HintHead does not block.
func (w *Watcher) HintHead(unverified []byte, root *x509.Certificate, at time.Time) {
	current, now := w.Current(), time.Now()
	if steps := unverifiedSteps(unverified); steps <= len(current.entries) || !w.allowCheck(now) {
		return
	}
	if _, err := identity.ParseHead(unverified, current.policy, root, at); err != nil {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if n := int(now.Sub(w.filled) / hintsEach); n > 0 || w.filled.IsZero() {
		w.tokens, w.filled = max(0, w.tokens-n), now
	}
	if w.tokens < hintsAtOnce {
		w.tokens++
		w.hinted = true
		w.wakeUp()
	}
}

// allowCheck reports whether to check the signatures of one more hint in this second. It limits
// the work, because any stranger can send hints.
func (w *Watcher) allowCheck(now time.Time) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	if second := now.Unix(); second != w.second {
		w.second, w.checks = second, 0
	}
	w.checks++
	return w.checks <= hintsChecked
}

// wakeUp ends the current wait. The caller holds mu.
func (w *Watcher) wakeUp() {
	if w.cancel != nil {
		w.cancel()
	}
}

// Run watches until ctx is done.
func (w *Watcher) Run(ctx context.Context) {
	r := watchState{Watcher: w}
	for ctx.Err() == nil {
		r.pollOnce(ctx)
	}
}

// watchState is the state of [Watcher.Run].
type watchState struct {
	*Watcher
	failures int  // rounds over all sources in a row without a success
	tried    int  // sources that failed since the last success
	full     bool // one of these sources accepted no further poll

	failing   bool      // the last poll failed
	leftFirst time.Time // when the watcher left the first source
}

// pollOnce polls one source. If all sources have failed, it pauses after that.
func (r *watchState) pollOnce(ctx context.Context) {
	waiting, cancel := context.WithCancel(ctx)
	defer cancel()
	source, count, hinted := r.nextSource(cancel)
	if source == nil {
		<-waiting.Done() // until a source is added
		return
	}
	wait := r.Wait()
	// After a failure the first request does not wait for a step, because the newest proof may
	// be old by now. If all sources are full, this request is the only source of news until the
	// next try.
	if hinted || r.failing {
		wait = 0
	}
	began, current := time.Now(), r.Current()
	next, err := source.Watch(waiting, current, r.Pin, wait)
	switch {
	case waiting.Err() != nil: // ctx is done, or wakeUp was called
	case err == nil:
		r.Adopt(next)
		pause := minPollInterval - time.Since(began)
		if full := r.recordSuccess(source); full {
			pause = api.PollRetryAfter/2 + rand.N(api.PollRetryAfter)
		} else if next.policy.PolicyHead() != current.policy.PolicyHead() {
			pause = 0
		}
		_ = retry.Sleep(waiting, pause) // Run checks ctx
	default:
		if errors.Is(err, wire.Behind) {
			_ = source.PushHistory(waiting, current) // the source may have caught up by the next poll
		}
		r.recordFailure(source, err)
		if r.tried >= count && !(r.full && r.tried == count) {
			r.failures++
			_ = retry.Sleep(waiting, backoff.Wait(r.failures)) // Run checks ctx
			r.tried, r.full = 0, false
		}
	}
}

// nextSource returns the source to poll, the number of sources, and whether a newer head was
// hinted. From then on wakeUp calls cancel.
func (r *watchState) nextSource(cancel context.CancelFunc) (source Source, count int, hinted bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.cancel = cancel
	hinted, r.hinted = r.hinted, false
	if len(r.sources) == 0 {
		return nil, 0, false
	}
	if r.sources[0] != r.first && time.Since(r.leftFirst) > returnToFirst {
		for range r.sources {
			if r.rotate(); r.sources[0] == r.first {
				break
			}
		}
		r.leftFirst = time.Now()
	}
	return r.sources[0], len(r.sources), hinted
}

// recordSuccess records that a source responded. It reports whether the poll did not wait
// because all sources are full.
func (r *watchState) recordSuccess(source Source) (full bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	full = r.full && r.tried >= len(r.sources)
	r.current, r.failures, r.tried, r.full, r.failing = source, 0, 0, false, false
	return full
}

// recordFailure records that a poll failed and selects the next source.
func (r *watchState) recordFailure(source Source, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.current, r.failing = nil, true
	r.tried++
	r.full = r.full || api.IsPollRefused(err)
	if len(r.sources) > 1 && r.sources[0] == source {
		if source == r.first {
			r.leftFirst = time.Now()
		}
		r.rotate()
	}
}

// rotate moves the source in use to the end of the sources. The caller holds mu.
func (r *watchState) rotate() {
	r.sources = append(r.sources[1:len(r.sources):len(r.sources)], r.sources[0])
}

// unverifiedSteps returns the number of steps that an unverified head claims, or 0 if b is not
// a head. With it callers skip the heads that are not newer than their own.
func unverifiedSteps(b []byte) int {
	var f [2][]byte
	if prefix := 1 + len(wire.LabelHead) + 4 + len(attest.Digest{}) + 4 + 8; len(b) < prefix || len(b) > identity.MaxHead || wire.UnframeInto(f[:], wire.LabelHead, b[:prefix]) != nil || len(f[1]) != 8 {
		return 0
	}
	return int(min(binary.BigEndian.Uint64(f[1]), wire.MaxHistory))
}
