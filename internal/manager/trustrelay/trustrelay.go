// Package trustrelay passes requests for trust from the clients of a gateway on to the
// authorities, and the responses back, unchanged. It needs no trust to do so: a client verifies
// the response, and the package believes and checks nothing in it.
//
// A request with a nonce has a fresh response of its own. A response to a request without one is
// the same for all clients: it is kept as long as the authority's Cache-Control allows, but not
// beyond the next step of the policy, and one request to the authority serves all clients that wait
// for it.
//
// All clients of a gateway share what the authority allows the gateway's address. So a request
// is refused before it is sent if its query is malformed, or if the client's address exceeds its
// share of requests or memory. One address can neither use up the allowance nor evict what is
// kept: nothing is removed before its time.
//
// [NewRelay] makes a [Relay], [Relay.ServeTrust] serves a request, and [Relay.Close] ends it.
//
// Files, each using those before it: entry.go, trustrelay.go.
package trustrelay

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cohort-tee/cohort/internal/api"
	"github.com/cohort-tee/cohort/internal/limit"
	"github.com/cohort-tee/cohort/internal/wire"
)

// Quotas. Each name is the rule of a refusal and the label of a metric.
const (
	quotaRequests = "gateway: requests for trust under way"
	quotaFresh    = "gateway: requests for fresh trust a second"
	quotaFetches  = "gateway: requests for cached trust passed on a second"
	quotaBytes    = "gateway: bytes of trust responses"
)

// Quotas lists the names of all quotas.
var Quotas = []string{quotaRequests, quotaFresh, quotaFetches, quotaBytes}

// Sizes of the quotas. An authority allows 100 requests a second from one address by default,
// and the gateway polls the history from the same address.
const (
	maxRequests = 4_096
	maxFresh    = 60
	maxFetches  = 30
	maxBytes    = 96 << 20
	maxKept     = 32 << 20 // of them, responses that are kept for further requests
	entryBytes  = 1 << 10  // charged for a response beside its body
	maxQuery    = 4 << 10  // bytes; the longest one that a client sends has less than 2.5 KiB
)

// Times.
const (
	attemptWait = 10 * time.Second // for one authority; evidence takes some of them seconds
	relayWait   = 25 * time.Second // for all authorities
	period      = time.Second      // in which maxFresh and maxFetches count
)

// relayedStatuses are the statuses that are passed on, and whether another authority is asked
// first, which may be ahead of this one or have room.
var relayedStatuses = map[int]struct{ askNext bool }{
	http.StatusOK: {false}, http.StatusBadRequest: {false}, http.StatusForbidden: {false}, http.StatusNotFound: {false},
	http.StatusConflict: {true}, http.StatusTooManyRequests: {true}, http.StatusServiceUnavailable: {true},
}

// Relay passes requests on to authorities. It is safe for concurrent use.
type Relay struct {
	authorities []*api.Authority
	head        func() wire.Digest
	clock       func() time.Time
	preferred   atomic.Int64 // index of the authority that responded last

	requests *limit.Shares // one for each request in progress
	fresh    *limit.Shares // one for each request with a nonce that was passed on within the last period
	fetches  *limit.Shares // the same for requests without one
	bytes    *limit.Shares // of responses that are read, kept or written
	kept     *limit.Shares // of these, those that are kept: a response that exceeds it serves only the clients that wait for it

	running sync.WaitGroup  // fetches for several clients
	ctx     context.Context // done when the relay is closed
	end     context.CancelFunc

	mu      sync.Mutex
	entries map[subject]*entry // guarded by mu
	swept   time.Time          // guarded by mu: when ended entries were last removed
}

// NewRelay makes a relay to the authorities, which the caller closes. Without any, each request is
// refused with "unavailable". head returns the newest policy head that the gateway has: a response
// from before a step serves no client after it, because clients refuse it.
func NewRelay(authorities []*api.Authority, head func() wire.Digest, clock func() time.Time) *Relay {
	t := &Relay{
		authorities: authorities, head: head, clock: clock, entries: map[subject]*entry{},
		requests: limit.NewShares(quotaRequests, maxRequests), fresh: limit.NewShares(quotaFresh, maxFresh),
		fetches: limit.NewShares(quotaFetches, maxFetches), bytes: limit.NewShares(quotaBytes, maxBytes), kept: limit.NewShares("", maxKept),
	}
	t.ctx, t.end = context.WithCancel(context.Background())
	return t
}

// Close ends all fetches and waits for them.
func (t *Relay) Close() {
	t.end()
	t.running.Wait()
}

// ServeTrust writes the authority's response to a request. If it returns an error it has written
// nothing: the error is a refusal, or that of the request's context.
func (t *Relay) ServeTrust(w http.ResponseWriter, r *http.Request) error {
	query, err := parseRequest(r)
	if err != nil {
		return err
	}
	if len(t.authorities) == 0 {
		return wire.Refuse(wire.Unavailable, "gateway: authorities", 0, "a manager with --authority https://HOST:PORT")
	}
	from := limit.AddressOf(r.RemoteAddr)
	if err := t.requests.Acquire(from, 1); err != nil {
		return err
	}
	defer t.requests.Release(from, 1)
	e, err := t.findEntry(r.Context(), from, query)
	if err != nil {
		return err
	}
	defer t.leave(e)
	if e.err != nil {
		return e.err
	}
	t.writeEntry(w, e)
	return nil
}

// parseRequest returns the query of a request. It refuses any other form, so that the authority
// receives nothing else.
func parseRequest(r *http.Request) (api.TrustQuery, error) {
	if r.Method != http.MethodGet {
		return api.TrustQuery{}, wire.Refuse(wire.BadRequest, "request: method", r.Method, http.MethodGet)
	}
	if n := len(r.URL.RawQuery); n > maxQuery {
		return api.TrustQuery{}, wire.Refuse(wire.BadRequest, "trust: size of the query in bytes", n, fmt.Sprint("at most ", maxQuery))
	}
	values, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil {
		return api.TrustQuery{}, wire.Refuse(wire.BadRequest, "trust: query", err, "NAME=VALUE, joined by &")
	}
	return api.ParseTrustQuery(values)
}

// findEntry returns the complete entry of a query. The caller leaves it.
func (t *Relay) findEntry(ctx context.Context, from netip.Addr, query api.TrustQuery) (*entry, error) {
	t.sweep()
	if query.Nonce == nil {
		return t.findShared(ctx, from, query)
	}
	done, err := t.takePlace(t.fresh, from)
	if err != nil {
		return nil, err
	}
	defer done()
	e := newEntry(from)
	t.fillEntry(ctx, e, query)
	return e, nil
}

// findShared returns the entry that is kept for a query or, once it is complete, the one that
// is being fetched. If the fetch exceeded the share of the address that began it, clients of
// other addresses begin another.
func (t *Relay) findShared(ctx context.Context, from netip.Addr, query api.TrustQuery) (*entry, error) {
	for {
		e, err := t.joinEntry(from, query)
		if err != nil {
			return nil, err
		}
		select {
		case <-e.complete:
		case <-ctx.Done():
			t.leave(e)
			return nil, context.Cause(ctx)
		}
		if _, full := limit.QuotaOf(e.err); !full || e.from == from {
			return e, nil
		}
		t.leave(e)
	}
}

// joinEntry adds a user to the entry of a query. If there is none, it starts to fetch one for all
// clients: the fetch does not end with the client that began it.
func (t *Relay) joinEntry(from netip.Addr, query api.TrustQuery) (*entry, error) {
	key := subject{t.head(), query.Task, query.Group, query.ID}
	t.mu.Lock()
	defer t.mu.Unlock()
	if e := t.entries[key]; e != nil && !e.hasEnded(t.clock()) {
		e.users++
		return e, nil
	}
	done, err := t.takePlace(t.fetches, from)
	if err != nil {
		return nil, err
	}
	t.removeEntry(key)
	e := newEntry(from)
	e.users++ // the map
	t.entries[key] = e
	t.running.Go(func() {
		defer done()
		t.fillEntry(t.ctx, e, query)
		t.mu.Lock()
		defer t.mu.Unlock()
		if t.entries[key] == e && e.hasEnded(t.clock()) {
			t.removeEntry(key)
		}
	})
	return e, nil
}

// takePlace takes a place of an address until done was called and period has passed, so that s
// bounds the requests in a period as well as those in progress.
func (t *Relay) takePlace(s *limit.Shares, from netip.Addr) (done func(), err error) {
	if err := s.Acquire(from, 1); err != nil {
		return nil, err
	}
	begin := time.Now()
	return func() { time.AfterFunc(period-time.Since(begin), func() { s.Release(from, 1) }) }, nil
}

// fillEntry fetches the response of an entry and completes the entry.
func (t *Relay) fillEntry(ctx context.Context, e *entry, query api.TrustQuery) {
	ctx, cancel := context.WithTimeout(ctx, relayWait)
	defer cancel()
	begin := t.clock()
	response, charged, err := t.fetch(ctx, e.from, query)
	t.mu.Lock()
	defer t.mu.Unlock()
	e.response, e.charged, e.err = response, charged, err
	e.fetched, e.until = begin, begin.Add(lifetimeOf(response, err))
	if query.Nonce != nil || t.kept.Acquire(e.from, charged) != nil {
		e.until = begin // it serves no further request
	} else {
		e.kept = charged
	}
	close(e.complete)
}

// fetch returns the first response of an authority that is final, or the last one that is not.
// The caller releases the bytes that it charged.
func (t *Relay) fetch(ctx context.Context, from netip.Addr, query api.TrustQuery) (last api.Relayed, charged int, failed error) {
	first := int(t.preferred.Load())
	for i := range t.authorities {
		n := (first + i) % len(t.authorities)
		response, size, err := t.fetchFrom(ctx, t.authorities[n], from, query)
		if _, full := limit.QuotaOf(err); full {
			t.bytes.Release(from, charged)
			return api.Relayed{}, 0, err // of this gateway: another authority changes nothing
		}
		if err != nil {
			failed = errors.Join(failed, err)
			continue
		}
		t.bytes.Release(from, charged)
		last, charged = response, size
		if !relayedStatuses[last.Status].askNext {
			t.preferred.Store(int64(n))
			break
		}
	}
	if last.Status == 0 {
		// The addresses of authorities are for the log only.
		return last, 0, fmt.Errorf("%w: %w", wire.Refuse(wire.Unavailable, "gateway: authorities that respond", 0, "at least one of --authority"), failed)
	}
	return last, charged, nil
}

// fetchFrom fetches the response of one authority, and charges an address for its memory.
func (t *Relay) fetchFrom(ctx context.Context, a *api.Authority, from netip.Addr, query api.TrustQuery) (response api.Relayed, charged int, err error) {
	ctx, cancel := context.WithTimeout(ctx, attemptWait)
	defer cancel()
	response, err = a.RelayTrust(ctx, query, func(n int) error {
		if err := t.bytes.Acquire(from, n); err != nil {
			return err
		}
		charged += n
		return nil
	})
	if _, relayed := relayedStatuses[response.Status]; err == nil && !relayed {
		err = wire.Refuse(wire.Unavailable, "authority: status", response.Status, "200, 400, 403, 404, 409, 429 or 503")
	}
	if err != nil {
		t.bytes.Release(from, charged)
		return api.Relayed{}, 0, err
	}
	if spare := charged - len(response.Body) - entryBytes; spare > 0 {
		response.Body = slices.Clone(response.Body)
		t.bytes.Release(from, spare)
		charged -= spare
	}
	return response, charged, nil
}

// writeEntry writes the response of an entry. Age says how long the gateway has kept it (RFC 9111,
// section 5.1), so that no cache behind the gateway keeps it longer than the authority allows.
func (t *Relay) writeEntry(w http.ResponseWriter, e *entry) {
	h := w.Header()
	h.Set("Content-Type", e.response.ContentType)
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Cache-Control", "no-store")
	if e.response.CacheControl != "" {
		h.Set("Cache-Control", e.response.CacheControl)
		h.Set("Age", strconv.Itoa(int(max(0, t.clock().Sub(e.fetched))/time.Second)))
	}
	if e.response.RetryAfter != "" {
		h.Set("Retry-After", e.response.RetryAfter)
	}
	w.WriteHeader(e.response.Status)
	_, _ = w.Write(e.response.Body) // the client may be gone
}
