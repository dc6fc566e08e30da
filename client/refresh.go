package client

import (
	"context"
	"crypto/x509"
	"math/rand/v2"
	"net/http"
	"net/url"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cohort-tee/cohort/internal/api"
	"github.com/cohort-tee/cohort/internal/history"
	"github.com/cohort-tee/cohort/internal/retry"
	"github.com/cohort-tee/cohort/internal/wire"
	"github.com/cohort-tee/cohort/policy"
)

// watchDelay is the time from the first use of trust until the watcher of the policy history
// starts. A command that sends one request and ends needs no watcher, because its trust is new.
const watchDelay = 250 * time.Millisecond

// watchedMinRefresh is the least time between two fetches after refused peers while the history is
// watched: usually the watcher receives the policy that accepts the peer before a fetch would.
const watchedMinRefresh = 10 * time.Second

// missingRetry is the pause after a failed fetch of the parts of trust that a policy step
// left missing.
const missingRetry = 15 * time.Second

// sharedTrust keeps the trust of one [FetchTrust] current for all its users, with one watcher of
// the policy history and one fetch at a time. It is safe for concurrent use.
type sharedTrust struct {
	newest    atomic.Pointer[Trust]
	fetchSlot chan struct{} // contains a value during a fetch; guards lastFetch
	lastFetch time.Time     // start of the newest fetch

	mu       sync.Mutex
	users    int         // guarded by mu
	watching *trustWatch // guarded by mu: nil without users
}

// trustWatch keeps trust current while it has users.
type trustWatch struct {
	watcher history.Watcher
	peers   []*history.Peer // the authorities; with the gateways, the watcher's sources
	inner   *http.Transport // to the gateways of the configuration
	moved   chan struct{}   // guarded by sharedTrust.mu: closed when the policy in force changes
	stale   chan struct{}   // contains a value when a step left a part to be fetched
	stop    context.CancelFunc
	tasks   sync.WaitGroup
}

// newSharedTrust returns shared trust that starts with t, which was just fetched.
func newSharedTrust(t *Trust) *sharedTrust {
	l := &sharedTrust{fetchSlot: make(chan struct{}, 1), lastFetch: t.fetchedAt}
	l.newest.Store(t)
	return l
}

// addUser keeps trust current until the user calls release. The last release waits for
// all goroutines. The watcher polls the authorities for the history, and the gateways
// while the authorities are unreachable or accept no further poll.
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
		g := &history.Gateway{Reader: newGatewayReader(at, gateways.inner), Root: t.root, Clock: t.config.Clock}
		added = append(added, g)
		w.watcher.AddSource(g)
	}
	return sync.OnceFunc(func() {
		for _, g := range added {
			w.watcher.RemoveSource(g)
		}
		if l.removeUser() {
			w.stopAndWait()
		}
	})
}

// removeUser removes a user and reports whether it was the last.
func (l *sharedTrust) removeUser() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.users--; l.users == 0 {
		l.watching = nil
	}
	return l.users == 0
}

// watch starts the watcher and the goroutine that fetches missing parts.
func (l *sharedTrust) watch() *trustWatch {
	t := l.newest.Load()
	w := &trustWatch{moved: make(chan struct{}), stale: make(chan struct{}, 1), inner: newGateway(t.config.GatewayCA)}
	w.watcher = history.Watcher{
		Pin: t.config.Genesis, Current: func() history.History { return l.newest.Load().state.history },
		Adopt: func(h history.History) {
			if l.adoptHistory(h).incomplete() {
				w.requestFetch()
			}
		},
		Wait: func() time.Duration { return api.MaxPoll },
	}
	currentPolicy := func(*x509.Certificate) (policy.Approved, time.Time, error) {
		return l.newest.Load().Policy(), t.config.Clock(), nil
	}
	for _, address := range t.config.Authorities {
		// FetchTrust has refused invalid addresses.
		if p, err := history.NewPeer(history.Config{Address: address, LeafPolicy: currentPolicy, Clock: t.config.Clock}); err == nil {
			w.peers = append(w.peers, p)
			w.watcher.AddSource(p)
		}
	}
	for _, address := range t.config.Gateways {
		if at, err := url.Parse(address); err == nil {
			w.watcher.AddSource(&history.Gateway{Reader: newGatewayReader(at, w.inner), Root: t.root, Clock: t.config.Clock})
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

// stopAndWait stops the watch and waits for its goroutines.
func (w *trustWatch) stopAndWait() {
	w.stop()
	w.tasks.Wait()
	for _, p := range w.peers {
		p.Close()
	}
	(&gateways{inner: w.inner}).close()
}

// requestFetch wakes fetchMissing to fetch the parts that a step left missing.
func (w *trustWatch) requestFetch() {
	select {
	case w.stale <- struct{}{}:
	default:
	}
}

// changed returns a channel that is closed when the policy in force changes. Only a user
// of the trust may call it.
func (l *sharedTrust) changed() <-chan struct{} {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.watching.moved
}

// adoptHistory applies a newer history to the trust of all users, and returns the new trust.
func (l *sharedTrust) adoptHistory(h history.History) *Trust {
	return l.store(l.newest.Load().withHistory(h))
}

// store makes t the newest trust and returns it. If the known trust has policy steps that
// t lacks, store first extends t by these steps.
func (l *sharedTrust) store(t *Trust) *Trust {
	l.mu.Lock()
	defer l.mu.Unlock()
	known := l.newest.Load()
	if !t.Policy().Knows(known.Policy().PolicyHead()) {
		t = t.withHistory(known.state.history)
	}
	l.newest.Store(t)
	if w := l.watching; w != nil && t.Policy().PolicyHead() != known.Policy().PolicyHead() {
		close(w.moved)
		w.moved = make(chan struct{})
	}
	return t
}

// fetchMissing fetches trust after steps that leave parts of it missing, until ctx is
// done. It first waits a random part of the spread in the authority's proved head, so
// that clients do not all fetch at once.
func (l *sharedTrust) fetchMissing(ctx context.Context, stale <-chan struct{}) {
	f := trustRefresher{sharedTrust: l, minInterval: minRefresh, waits: true}
	for {
		select {
		case <-ctx.Done():
			return
		case <-stale:
		}
		_ = retry.Sleep(ctx, rand.N(l.newest.Load().state.history.Proved().Spread()+1))
		for known := l.newest.Load(); ctx.Err() == nil && known.incomplete(); known = l.newest.Load() {
			if _, err := f.renew(ctx, known); err != nil {
				_ = retry.Sleep(ctx, missingRetry)
			}
		}
	}
}

// hintHead gives the watcher a policy head that a unit sent.
func (l *sharedTrust) hintHead(unverified []byte) {
	l.mu.Lock()
	w := l.watching
	l.mu.Unlock()
	if t := l.newest.Load(); w != nil {
		w.watcher.HintHead(unverified, t.root, t.config.Clock())
	}
}

// historyCurrent reports whether a source of the watcher shows that the history is current.
func (l *sharedTrust) historyCurrent() bool {
	l.mu.Lock()
	w := l.watching
	l.mu.Unlock()
	return w != nil && w.watcher.CurrentSource() != nil
}

// provedHead returns the newest proved policy head, for requests to units.
func (l *sharedTrust) provedHead() []byte { return l.newest.Load().state.history.Proved().Bytes() }

// trustRefresher is one user's access to shared trust. The user renews trust when that is due, or
// after refusing a peer that newer trust may accept. A trustRefresher is safe for concurrent use.
type trustRefresher struct {
	*sharedTrust
	minInterval time.Duration // least time between two fetches
	waits       bool          // renew waits until the next fetch is due
	release     func()
}

// attach makes the refresher a user of the trust that t shares. The caller calls
// release at the end.
func (f *trustRefresher) attach(t *Trust, least time.Duration, at *gateways) {
	f.sharedTrust, f.minInterval = t.shared, least
	f.release = f.sharedTrust.addUser(at)
}

// Load returns the newest trust.
func (f *trustRefresher) Load() *Trust { return f.newest.Load() }

// renew returns trust newer than old. If no other goroutine has fetched it meanwhile, renew fetches
// it from the authority. If the last fetch was less than minInterval ago, renew returns the known
// trust, or waits if f.waits. If the authority does not respond or refuses, renew returns the known
// trust and the error. Old trust is a risk only for a short time, because certificates expire soon.
func (f *trustRefresher) renew(ctx context.Context, old *Trust) (*Trust, error) {
	select {
	case f.fetchSlot <- struct{}{}:
		defer func() { <-f.fetchSlot }()
	case <-ctx.Done():
		return f.Load(), nil
	}
	known := f.Load()
	least := f.minInterval
	if !f.waits && f.historyCurrent() {
		least = max(least, watchedMinRefresh)
	}
	early := least - known.config.Clock().Sub(f.lastFetch)
	if !known.sameAs(old) || early > 0 && !f.waits {
		return known, nil
	}
	if retry.Sleep(ctx, early) != nil {
		return known, nil
	}
	f.lastFetch = known.config.Clock()
	newer, err := known.refetch(ctx)
	if err != nil {
		return f.Load(), err
	}
	return f.store(newer), nil
}

// sameAs reports whether t and other are equal except for the proof of their policy head.
func (t *Trust) sameAs(other *Trust) bool {
	return t == other || t.fetchedAt.Equal(other.fetchedAt) && t.Policy().PolicyHead() == other.Policy().PolicyHead()
}

// withHistory returns t with a newer policy history. It keeps the parts of t that the
// authority sent.
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

// incomplete reports whether a step left a part to be fetched: the root of an identity,
// or the certificate of a new authority root.
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
