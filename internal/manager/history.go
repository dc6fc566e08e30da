package manager

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"slices"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/cohort-tee/cohort/internal/api"
	"github.com/cohort-tee/cohort/internal/limit"
	"github.com/cohort-tee/cohort/internal/retry"
	"github.com/cohort-tee/cohort/internal/wire"
)

// Times and sizes of the copy of the policy history.
const (
	historySize    = 64 << 20               // bytes of policies and signatures in the copy; older steps are dropped
	historyPage    = 8 << 20                // bytes of steps in one response; at most twice as many in JSON
	historyPollGap = 250 * time.Millisecond // minimum time between two polls that return no step
)

// historyBackoff is the wait between polls while no authority responds.
var historyBackoff = retry.Backoff{First: 50 * time.Millisecond, Max: 5 * time.Second}

// historyMirror is the gateway's copy of the policy history. One poll of an authority serves all
// clients of the gateway. Clients verify the history; the gateway checks only that the steps
// hash to the head in the same response, so that it can find the position of any head. The zero
// historyMirror has no authority.
type historyMirror struct {
	authorities []*api.Authority
	log         *slog.Logger
	current     atomic.Pointer[historyCopy]
}

// historyCopy is the history as an authority returned it. It is immutable.
type historyCopy struct {
	heads   []wire.Digest // policy head after each step, genesis first
	entries []api.HistoryEntry
	first   int           // index of the step in entries[0]; older steps are dropped
	proof   []byte        // the last head, signed by the authority
	changed chan struct{} // closed when a copy with a different head is published
}

// newHistoryMirror makes an empty mirror. The configuration is already validated.
func newHistoryMirror(c Config, pool *x509.CertPool) (*historyMirror, error) {
	k := &historyMirror{log: c.Log}
	for _, address := range c.Authorities {
		a, err := api.NewAuthority(address, authorityTLS(pool, c.Clock))
		if err != nil {
			return nil, err
		}
		k.authorities = append(k.authorities, a)
	}
	k.current.Store(&historyCopy{changed: make(chan struct{})})
	return k, nil
}

// authorityTLS returns a TLS configuration that accepts an authority: its leaf is issued
// directly by one of the roots, and no unit's leaf is. This check protects availability only.
func authorityTLS(pool *x509.CertPool, clock func() time.Time) *tls.Config {
	return &tls.Config{
		MinVersion:         tls.VersionTLS13,
		InsecureSkipVerify: true, // VerifyConnection verifies instead: the manager does not know the trust domain and so not the DNS name
		VerifyConnection: func(s tls.ConnectionState) error {
			leaf := s.PeerCertificates[0]
			_, err := leaf.Verify(x509.VerifyOptions{Roots: pool, CurrentTime: clock(), KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}})
			if err != nil {
				return fmt.Errorf("%w: %w", wire.Refuse(wire.BadChain, "authority: certificate of", leaf.Subject.String()+", which does not verify", "a leaf under --authority-root"), err)
			}
			return nil
		},
	}
}

// follow polls the authorities until ctx is done.
func (k *historyMirror) follow(ctx context.Context) {
	if len(k.authorities) == 0 {
		return
	}
	for i, failures := 0, 0; ctx.Err() == nil; {
		began, current := time.Now(), k.current.Load()
		wait := api.MaxPoll
		next, err := current.fetchAfter(ctx, k.authorities[i], wait)
		full := api.IsPollRefused(err)
		if full {
			next, err = current.fetchAfter(ctx, k.authorities[i], 0)
		}
		switch {
		case err == nil:
			k.publish(current, next)
			failures = 0
			switch {
			case full:
				_ = retry.Sleep(ctx, api.PollRetryAfter/2+rand.N(api.PollRetryAfter))
			case next.lastHead() == current.lastHead():
				_ = retry.Sleep(ctx, historyPollGap-time.Since(began))
			}
			continue
		case errors.Is(err, wire.Behind): // the authority's history does not contain this copy's head
			k.publish(current, &historyCopy{})
		}
		if ctx.Err() == nil {
			k.log.Debug("policy history not read", "reason", wire.ReasonOf(err), "error", err)
		}
		i = (i + 1) % len(k.authorities)
		failures++
		_ = retry.Sleep(ctx, historyBackoff.Wait(failures)) // the loop checks ctx
	}
}

// publish replaces the copy current with next, and wakes waiting polls if the head differs.
func (k *historyMirror) publish(current, next *historyCopy) {
	if next.changed = current.changed; next.lastHead() != current.lastHead() {
		next.changed = make(chan struct{})
	}
	k.current.Store(next)
	if next.changed != current.changed {
		close(current.changed)
	}
}

// close ends idle connections.
func (k *historyMirror) close() {
	for _, a := range k.authorities {
		a.Close()
	}
}

// lastHead returns the last policy head, or the zero digest if there is no step.
func (a *historyCopy) lastHead() wire.Digest {
	if len(a.heads) == 0 {
		return wire.Digest{}
	}
	return a.heads[len(a.heads)-1]
}

// fetchAfter returns a copy of a that also has the authority's later steps and its newest proof.
// It waits for a new step for at most wait.
func (a *historyCopy) fetchAfter(ctx context.Context, from *api.Authority, wait time.Duration) (*historyCopy, error) {
	next := *a
	for {
		var unverified api.History
		var err error
		if head := next.lastHead(); head.IsZero() || len(next.heads) != len(a.heads) {
			unverified, err = from.History(ctx, len(next.heads))
		} else {
			unverified, err = from.PollHistory(ctx, head, wait)
		}
		if err != nil {
			return nil, err
		}
		if next, err = next.appendPage(unverified); err != nil {
			return nil, err
		}
		if next.lastHead() == unverified.Head {
			next.proof = unverified.ProvedHead
			return &next, nil
		}
	}
}

// appendPage returns a copy of a with one page of an authority's history appended.
func (a *historyCopy) appendPage(unverified api.History) (historyCopy, error) {
	next := historyCopy{heads: slices.Clip(a.heads), entries: slices.Clip(a.entries), first: a.first}
	n := len(next.heads) + len(unverified.Entries)
	if unverified.From != len(next.heads) || n > wire.MaxHistory || len(unverified.Entries) == 0 && next.lastHead() != unverified.Head || len(unverified.ProvedHead) > wire.MaxHead {
		return historyCopy{}, wire.Refuse(wire.Malformed, "policy history: steps", fmt.Sprint(len(unverified.Entries), " from ", unverified.From),
			fmt.Sprint("those from ", len(next.heads), " on, up to the head beside them"))
	}
	for _, e := range unverified.Entries {
		next.heads = append(next.heads, wire.NextHead(next.lastHead(), e.Policy))
		next.entries = append(next.entries, e)
	}
	size := 0
	for i, e := range slices.Backward(next.entries) {
		if size += entrySize(e); size > historySize {
			next.first, next.entries = next.first+i+1, slices.Clone(next.entries[i+1:])
			break
		}
	}
	return next, nil
}

// entrySize returns the size of an entry in bytes, before encoding.
func entrySize(e api.HistoryEntry) int {
	size := len(e.Policy) + len(e.Adopted)
	for _, s := range e.Signatures {
		size += len(s)
	}
	return size
}

// pageFrom returns the steps from index from, at most historyPage bytes of them but at least
// one.
func (a *historyCopy) pageFrom(from int) (api.History, error) {
	from = min(from, len(a.heads))
	if from < a.first {
		return api.History{}, wire.Refuse(wire.NotFound, "policy history: step", from, fmt.Sprint("from ", a.first, " on: the authority has the older ones"))
	}
	h := api.History{From: from, Head: a.lastHead(), ProvedHead: a.proof, Entries: []api.HistoryEntry{}}
	size := 0
	for _, e := range a.entries[from-a.first:] {
		if size += entrySize(e); size > historyPage && len(h.Entries) > 0 {
			break
		}
		h.Entries = append(h.Entries, e)
	}
	return h, nil
}

// serveHistory serves the policy history. A request that names the newest head waits for the
// next step and counts as a poll.
func (m *Manager) serveHistory(w http.ResponseWriter, r *http.Request) {
	start := time.Now()
	h, err := m.readHistory(w, r)
	if err != nil {
		api.ProblemOf(err).Write(w)
	} else {
		w.Header().Set("Content-Type", "application/json")
		// An error means that the client has disconnected.
		_ = json.NewEncoder(w).Encode(h)
	}
	m.metrics.observeRequest(r.URL.Path, err, time.Since(start))
}

func (m *Manager) readHistory(w http.ResponseWriter, r *http.Request) (api.History, error) {
	if r.Method != http.MethodGet {
		return api.History{}, wire.Refuse(wire.BadRequest, "request: method", r.Method, http.MethodGet)
	}
	poll, named, err := api.ParsePollQuery(r.URL.Query())
	if err != nil {
		return api.History{}, err
	}
	current := m.mirror.current.Load()
	switch {
	case len(m.mirror.authorities) == 0:
		return api.History{}, wire.Refuse(wire.NotFound, "gateway: authorities", 0, "a manager with --authority")
	case len(current.heads) == 0:
		return api.History{}, wire.Refuse(wire.Unavailable, "gateway: steps of the policy history", 0, "the history of the authority, once it was read")
	}
	if !named {
		from, err := strconv.ParseUint(r.URL.Query().Get("from"), 10, 32)
		if err != nil {
			return api.History{}, wire.Refuse(wire.BadRequest, "history: from", r.URL.Query().Get("from"), "a policy head, or an index")
		}
		return current.pageFrom(int(min(from, wire.MaxHistory)))
	}
	if poll.Head == current.lastHead() && poll.Wait > 0 {
		if err := m.waitForStep(w, r, current, poll.Wait); err != nil {
			return api.History{}, err
		}
		current = m.mirror.current.Load()
	}
	for i, head := range slices.Backward(current.heads) {
		if head == poll.Head {
			return current.pageFrom(i + 1)
		}
	}
	return api.History{}, wire.Refuse(wire.Behind, "history: policy head", poll.Head, current.lastHead())
}

// waitForStep blocks until there is a step after current, for at most wait, or until the client
// disconnects. It refuses the request if too many polls wait already, and when the manager shuts
// down.
func (m *Manager) waitForStep(w http.ResponseWriter, r *http.Request, current *historyCopy, wait time.Duration) error {
	from := limit.AddressOf(r.RemoteAddr)
	if err := m.polls.Acquire(from, 1); err != nil {
		api.SetPollRetry(w.Header())
		return err
	}
	defer m.polls.Release(from, 1)
	if r.ProtoMajor == 1 { // an HTTP/2 connection can carry other requests too
		defer m.clients.Exclude()()
	}
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-current.changed:
	case <-timer.C:
	case <-r.Context().Done():
	case <-m.ending:
		return wire.Refuse(wire.Unavailable, "manager", "shutting down", "another manager, or this one later")
	}
	return nil
}
