package authority

import (
	"errors"
	"net/http"
	"slices"
	"time"

	"github.com/cohort-tee/cohort/identity"
	"github.com/cohort-tee/cohort/internal/api"
	"github.com/cohort-tee/cohort/internal/authority/history"
	"github.com/cohort-tee/cohort/internal/wire"
)

// endKey is the key in a connection's context of a channel that is closed when the server shuts
// down.
type endKey struct{}

// servePolls serves requests that wait for the next step, and passes all others to h. A poll from
// an older head has nothing to wait for, so h serves it.
func (a *Authority) servePolls(h http.Handler) http.Handler {
	wait := a.respond(route{path: api.PathHistory + "?wait"}, a.waitHistory)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodGet && r.URL.Path == api.PathHistory {
			if p, _, err := api.ParsePollQuery(r.URL.Query()); err == nil && p.Wait > 0 && p.Head == a.history.Current().Approved.PolicyHead() {
				wait.ServeHTTP(w, r)
				return
			}
		}
		h.ServeHTTP(w, r)
	})
}

// waitHistory responds to a poll once there is a step after its head, or its wait has ended. It
// releases its place at once when the client disconnects, and returns at once when the server
// shuts down.
func (a *Authority) waitHistory(w http.ResponseWriter, r *http.Request) (any, error) {
	p, _, err := api.ParsePollQuery(r.URL.Query())
	if err != nil {
		return nil, err
	}
	if err := a.limiter.AllowPoll(r.RemoteAddr, time.Now()); err != nil {
		return nil, err
	}
	now, err := a.clock.Now()
	if err != nil {
		return nil, err
	}
	release, err := a.polls.Acquire(r, a.inForce().issuer.AuthorityRoot(), now)
	if err != nil {
		api.SetPollRetry(w.Header())
		return nil, err
	}
	defer release()
	defer a.clients.Exclude()()
	// The server's read deadline would end the context of a poll that waits longer.
	_ = http.NewResponseController(w).SetReadDeadline(time.Time{}) // a server that cannot set deadlines has its own limits
	ending, _ := r.Context().Value(endKey{}).(<-chan struct{})
	timer := time.NewTimer(p.Wait)
	defer timer.Stop()
	for {
		snap := a.history.Current()
		if snap.Approved.PolicyHead() != p.Head {
			return a.historyAfter(snap, p.Head)
		}
		select {
		case <-snap.Replaced:
		case <-timer.C:
			return a.historyAfter(snap, p.Head)
		case <-ending:
			return nil, wire.Refuse(wire.Unavailable, "authority", "shutting down", "another authority, or this one later")
		case <-r.Context().Done():
			return nil, wire.Refuse(wire.Unavailable, "history: client", r.Context().Err(), "a client that waits")
		}
	}
}

// historyAfter returns the steps after a head. It refuses, with "behind", a head that this
// authority does not know.
func (a *Authority) historyAfter(snap *history.Snapshot, head wire.Digest) (api.History, error) {
	if err := a.history.Behind(); err != nil {
		return api.History{}, err
	}
	index := slices.Index(snap.Approved.Heads(), head)
	if index < 0 {
		return api.History{}, wire.Refuse(wire.Behind, "history: policy head", head, snap.Approved.PolicyHead())
	}
	return a.proveHistory(snap, index+1), nil
}

// proveHistory returns the steps from an index on, with a proved head. An authority that is
// behind, or whose clock is refused, adds no proof: then the steps are only a hint.
func (a *Authority) proveHistory(snap *history.Snapshot, from int) api.History {
	h := snap.StepsFrom(from)
	now, err := a.clock.Now()
	if err == nil {
		err = a.history.Behind()
	}
	if err == nil {
		h.ProvedHead, err = snap.Derived.(*snapshot).proveHead(now)
	}
	if err != nil && !errors.Is(err, wire.Behind) && !errors.Is(err, wire.ClockSkew) {
		a.log.Error("proving the policy head", "error", err)
	}
	return h
}

// proved is a proved head and the second in which it was signed.
type proved struct {
	second int64
	head   []byte
}

// proveHead returns the snapshot's policy head, signed by the authority. All requests within a
// second get the same proved head, which saves signatures.
func (s *snapshot) proveHead(at time.Time) ([]byte, error) {
	signer, err := s.authorityLeaf(at)
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.proved.head != nil && s.proved.second == at.Unix() {
		return s.proved.head, nil
	}
	head, err := identity.ProveHead(identity.HeadClaim{
		Head: s.approved.PolicyHead(), Steps: uint64(len(s.approved.Heads())), At: at, Spread: s.spread,
	}, signer)
	if err != nil {
		return nil, err
	}
	s.proved = proved{at.Unix(), head}
	return head, nil
}
