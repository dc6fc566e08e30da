package history

import (
	"context"
	"crypto/x509"
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
	minPollInterval = 250 * time.Millisecond // between two polls without a new step, whatever a source responds
	returnToFirst   = time.Minute            // time after which the watcher returns to its first source

	hintsAtOnce = 3 // fetches because of heads that others show
	hintsEach   = 5 * time.Second

	hintsChecked = 20 // a second: one that is passed over costs time alone
)

// backoff is the wait while no source responds.
var backoff = retry.Backoff{First: 50 * time.Millisecond, Max: 5 * time.Second}

// Source is a server at which a history is watched: a [Peer] or a [Gateway].
type Source interface {
	Watch(ctx context.Context, h History, pin attest.Digest, wait time.Duration) (History, error)
	// Teach shows the source a history that it does not know, if it can be shown one.
	PushHistory(ctx context.Context, h History) error
}

// PushHistory does nothing: a gateway takes no history.
func (g *Gateway) PushHistory(context.Context, History) error { return nil }

// Watcher keeps a history current by one poll at a time, at the first of its sources that has
// a place for it. A Watcher with its exported fields set is ready for use; they must not
// change after [Watcher.Run] is called. Its methods are safe for concurrent use.
type Watcher struct {
	Pin     attest.Digest // digest of the first policy
	Current func() History
	Adopt   func(History) // called by Run with the current history extended by steps or a newer proof
	Wait    func() time.Duration

	mu      sync.Mutex
	sources []Source           // guarded by mu: the one in use first
	first   Source             // guarded by mu: the one that was added first
	current Source             // guarded by mu: where the last poll went well; nil after one that did not
	cancel  context.CancelFunc // guarded by mu: of the wait under way
	hinted  bool               // guarded by mu: a newer head was shown
	tokens  int                // guarded by mu: fetches for hints that were made since filled
	filled  time.Time          // guarded by mu
	second  int64              // guarded by mu: that checks are of, Unix time
	checks  int                // guarded by mu: hints of it whose signatures were checked
}

// AddSource adds a source behind the others.
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

// CurrentSource is the source at which the history was found current last, nil while none is.
func (w *Watcher) CurrentSource() Source {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.current
}

// HintHead receives an unverified policy head that a peer presents. If the authority has
// signed it and it is newer than the current one, the watcher polls at once: three times, then
// every 5 seconds. Root is the certificate of the authority root. It does not block.
func (w *Watcher) HintHead(unverified []byte, root *x509.Certificate, at time.Time) {
	current, now := w.Current(), time.Now()
	if steps := identity.UnverifiedSteps(unverified); steps <= len(current.entries) || !w.allowCheck(now) {
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

// allowCheck counts a hint whose signatures are to be checked: any stranger may show one.
func (w *Watcher) allowCheck(now time.Time) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	if second := now.Unix(); second != w.second {
		w.second, w.checks = second, 0
	}
	w.checks++
	return w.checks <= hintsChecked
}

// wakeUp ends the wait under way. The caller holds mu.
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
	failures int  // rounds of all sources in vain, in a row
	tried    int  // sources in vain since one went well
	full     bool // one of those had no place

	failing   bool      // the last poll was in vain
	leftFirst time.Time // when the first source was left
}

// pollOnce polls one source, and waits before the next where none is left to try.
func (r *watchState) pollOnce(ctx context.Context) {
	waiting, cancel := context.WithCancel(ctx)
	defer cancel()
	source, count, hinted := r.nextSource(cancel)
	if source == nil {
		<-waiting.Done() // for a source
		return
	}
	wait := r.Wait()
	// After one in vain the first request waits for nothing: what was proved last may be old
	// by now. Where there is no place anywhere it is all that there is until later.
	if hinted || r.failing {
		wait = 0
	}
	began, current := time.Now(), r.Current()
	next, err := source.Watch(waiting, current, r.Pin, wait)
	switch {
	case waiting.Err() != nil: // of ctx, or woken
	case err == nil:
		r.Adopt(next)
		pause := minPollInterval - time.Since(began)
		if full := r.recordSuccess(source); full {
			pause = api.PollRetryAfter/2 + rand.N(api.PollRetryAfter)
		} else if next.policy.PolicyHead() != current.policy.PolicyHead() {
			pause = 0
		}
		_ = retry.Sleep(waiting, pause) // the caller sees ctx
	default:
		if errors.Is(err, wire.Behind) {
			_ = source.PushHistory(waiting, current) // it may be caught up by the next time
		}
		r.recordFailure(source, err)
		if r.tried >= count && !(r.full && r.tried == count) {
			r.failures++
			_ = retry.Sleep(waiting, backoff.Wait(r.failures)) // as above
			r.tried, r.full = 0, false
		}
	}
}

// nextSource returns the source to poll, the number of sources, and whether a newer head was
// presented. The wait that follows ends with cancel.
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

// recordSuccess notes that a source responded, and reports whether that was without waiting because
// none has a place.
func (r *watchState) recordSuccess(source Source) (full bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	full = r.full && r.tried >= len(r.sources)
	r.current, r.failures, r.tried, r.full, r.failing = source, 0, 0, false, false
	return full
}

// recordFailure makes the next source the one in use.
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

// rotate puts the first source behind the others. The caller holds mu.
func (r *watchState) rotate() {
	r.sources = append(r.sources[1:len(r.sources):len(r.sources)], r.sources[0])
}
