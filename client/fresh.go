package client

import (
	"context"
	"crypto/x509"
	"math/rand/v2"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cohort-tee/cohort/internal/api"
	"github.com/cohort-tee/cohort/internal/history"
	"github.com/cohort-tee/cohort/internal/retry"
	"github.com/cohort-tee/cohort/internal/wire"
	"github.com/cohort-tee/cohort/policy"
)

// watchDelay is how long after its first use trust is watched: a command that sends one
// request and ends needs no watcher, since what it was given is fresh.
const watchDelay = 250 * time.Millisecond

// watchedMinRefresh is between two fetches because a peer was refused, while the history is
// watched: policy that accepts the peer has most likely come by then.
const watchedMinRefresh = 10 * time.Second

// missingRetry is how long after a fetch in vain one is made again that a step makes
// necessary.
const missingRetry = 15 * time.Second

// sharedTrust keeps the trust that one [FetchTrust] gave current, for all who use it: one watcher
// of the policy history, and one fetch at a time. It is safe for concurrent use.
type sharedTrust struct {
	newest    atomic.Pointer[Trust]
	fetchSlot chan struct{} // holds a value during a fetch; guards asked
	lastFetch time.Time     // when trust was last asked for

	mu       sync.Mutex
	users    int         // guarded by mu
	watching *trustWatch // guarded by mu: nil without users
}

// trustWatch is what keeps trust current while it has users.
type trustWatch struct {
	watcher history.Watcher
	peers   []*history.Peer // its sources, beside the gateways of users
	moved   chan struct{}   // guarded by live.mu: closed when another policy is in force
	stale   chan struct{}   // holds a value when a step leaves something to be fetched
	stop    context.CancelFunc
	tasks   sync.WaitGroup
}

// newSharedTrust begins with trust that was just fetched.
func newSharedTrust(t *Trust) *sharedTrust {
	l := &sharedTrust{fetchSlot: make(chan struct{}, 1), lastFetch: t.fetchedAt}
	l.newest.Store(t)
	return l
}

// addUser begins to keep trust current, until release is called. The last
// release waits for what was started. The history is watched at the authorities, and at the
// gateways where these are away or have no place for another poll.
func (l *sharedTrust) addUser(gateways *gateways) (release func()) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.users++; l.users == 1 {
		l.watching = l.watch()
	}
	w := l.watching
	t := l.newest.Load()
	var added []*history.Gateway
	for _, at := range gateways.all {
		g := &history.Gateway{Reader: api.NewGateway(at, &http.Client{Transport: gateways.inner}), Root: t.root, Clock: t.config.Clock}
		added = append(added, g)
		w.watcher.Add(g)
	}
	return sync.OnceFunc(func() {
		for _, g := range added {
			w.watcher.Remove(g)
		}
		if l.removeUser() {
			w.stopAndWait()
		}
	})
}

// removeUser counts a user out, and reports whether it was the last.
func (l *sharedTrust) removeUser() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.users--; l.users == 0 {
		l.watching = nil
	}
	return l.users == 0
}

// watch starts what keeps trust current.
func (l *sharedTrust) watch() *trustWatch {
	t := l.newest.Load()
	w := &trustWatch{moved: make(chan struct{}), stale: make(chan struct{}, 1)}
	w.watcher = history.Watcher{
		Pin: t.config.Genesis, Held: func() history.History { return l.newest.Load().state.history },
		Adopt: func(h history.History) {
			if l.adoptHistory(h).incomplete() {
				w.requestFetch()
			}
		},
		Wait: func() time.Duration { return api.MaxPoll },
	}
	judge := func(*x509.Certificate) (policy.Approved, time.Time, error) {
		return l.newest.Load().Policy(), t.config.Clock(), nil
	}
	for _, address := range t.config.Authorities {
		// FetchTrust has refused what is no address.
		if p, err := history.Dial(history.Config{Address: address, Judge: judge, Clock: t.config.Clock}); err == nil {
			w.peers = append(w.peers, p)
			w.watcher.Add(p)
		}
	}
	var ctx context.Context
	ctx, w.stop = context.WithCancel(context.Background())
	w.tasks.Go(func() {
		_ = retry.Sleep(ctx, watchDelay)
		w.watcher.Run(ctx)
	})
	w.tasks.Go(func() { l.fetchMissing(ctx, w.stale) })
	return w
}

// finish stops, and waits for what was started.
func (w *trustWatch) stopAndWait() {
	w.stop()
	w.tasks.Wait()
	for _, p := range w.peers {
		p.Close()
	}
}

// requestFetch has what a step leaves to be fetched fetched.
func (w *trustWatch) requestFetch() {
	select {
	case w.stale <- struct{}{}:
	default:
	}
}

// changed is closed when another policy is in force. It is for users.
func (l *sharedTrust) changed() <-chan struct{} {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.watching.moved
}

// adoptHistory makes what the watcher found count from now on, for every check, and returns what
// trust is then.
func (l *sharedTrust) adoptHistory(h history.History) *Trust {
	return l.store(l.newest.Load().withHistory(h))
}

// store makes trust the newest, unless that has policy which t does not know: then it is
// what was fetched with t, under that policy. It returns the newest.
func (l *sharedTrust) store(t *Trust) *Trust {
	l.mu.Lock()
	defer l.mu.Unlock()
	held := l.newest.Load()
	if !t.Policy().Knows(held.Policy().Head()) {
		t = t.withHistory(held.state.history)
	}
	l.newest.Store(t)
	if w := l.watching; w != nil && t.Policy().Head() != held.Policy().Head() {
		close(w.moved)
		w.moved = make(chan struct{})
	}
	return t
}

// fetchMissing fetches trust anew after steps that leave something to be fetched, spread as
// the authority proved, until ctx is done.
func (l *sharedTrust) fetchMissing(ctx context.Context, stale <-chan struct{}) {
	f := trustRefresher{sharedTrust: l, minInterval: minRefresh, waits: true}
	for {
		select {
		case <-ctx.Done():
			return
		case <-stale:
		}
		_ = retry.Sleep(ctx, rand.N(l.newest.Load().state.history.Proved().Spread()+1))
		for held := l.newest.Load(); ctx.Err() == nil && held.incomplete(); held = l.newest.Load() {
			if _, err := f.renew(ctx, held); err != nil {
				_ = retry.Sleep(ctx, missingRetry)
			}
		}
	}
}

// hintHead is told of a head that a unit shows.
func (l *sharedTrust) hintHead(unverified []byte) {
	l.mu.Lock()
	w := l.watching
	l.mu.Unlock()
	if t := l.newest.Load(); w != nil {
		w.watcher.Hint(unverified, t.root, t.config.Clock())
	}
}

// historyCurrent reports whether the history was found current last.
func (l *sharedTrust) historyCurrent() bool {
	l.mu.Lock()
	w := l.watching
	l.mu.Unlock()
	return w != nil && w.watcher.At() != nil
}

// provedHead is the newest proved head, to be shown to units.
func (l *sharedTrust) provedHead() []byte { return l.newest.Load().state.history.Proved().Bytes() }

// hasUntried is a user's view of trust that is kept current. It is fetched anew when the user
// finds that due, or when a peer is refused that newer trust may accept. It is safe for
// concurrent use.
type trustRefresher struct {
	*sharedTrust
	minInterval time.Duration // between two fetches
	waits       bool          // a fetch that comes too soon is waited for
	release     func()
}

// attach makes trust, or what it has become, that of a user. The user calls release.
func (f *trustRefresher) attach(t *Trust, least time.Duration, at *gateways) {
	f.sharedTrust, f.minInterval = t.shared, least
	f.release = f.sharedTrust.addUser(at)
}

// Load is the newest trust.
func (f *trustRefresher) Load() *Trust { return f.newest.Load() }

// renew gives trust newer than old: what another goroutine fetched meanwhile, or
// what the authority gives. It gives the newest there is when the authority was
// asked a moment ago, unless f is patient, and beside the error when it does not
// answer or refuses; certificates end soon enough that the cluster need not stop
// for that.
func (f *trustRefresher) renew(ctx context.Context, old *Trust) (*Trust, error) {
	select {
	case f.fetchSlot <- struct{}{}:
		defer func() { <-f.fetchSlot }()
	case <-ctx.Done():
		return f.Load(), nil
	}
	held := f.Load()
	least := f.minInterval
	if !f.waits && f.historyCurrent() {
		least = max(least, watchedMinRefresh)
	}
	early := least - held.config.Clock().Sub(f.lastFetch)
	if !held.sameAs(old) || early > 0 && !f.waits {
		return held, nil
	}
	if retry.Sleep(ctx, early) != nil {
		return held, nil
	}
	f.lastFetch = held.config.Clock()
	newer, err := held.refetch(ctx)
	if err != nil {
		return f.Load(), err
	}
	return f.store(newer), nil
}

// sameAs reports whether t says what other says, but for the proof of its head.
func (t *Trust) sameAs(other *Trust) bool {
	return t == other || t.fetchedAt.Equal(other.fetchedAt) && t.Policy().Head() == other.Policy().Head()
}

// enforces is t after further steps of the policy history: by it peers are checked from now
// on. What the authority's answer gave stays.
func (t *Trust) withHistory(h history.History) *Trust {
	next := *t
	next.state = State{h}
	pinned, err := t.config.pinned(h.Policy())
	if next.pinError = err; err != nil {
		return &next
	}
	for i, p := range pinned {
		for _, known := range t.identities {
			if known.ID == p.ID {
				pinned[i] = known
			}
		}
	}
	next.identities = pinned
	return &next
}

// incomplete reports whether a step left something to be fetched: the root of an identity,
// another authority root, or the authority's evidence under other rules.
func (t *Trust) incomplete() bool {
	if t.pinError != nil {
		return false
	}
	for _, i := range t.identities {
		if i.Root == nil {
			return true
		}
	}
	return t.root == nil || wire.Sum(t.root.RawSubjectPublicKeyInfo) != t.Policy().Document().Authority.Root
}
