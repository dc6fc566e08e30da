package authority

import (
	"crypto/x509"
	"errors"
	"net/http"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/cohort-tee/cohort/identity"
	"github.com/cohort-tee/cohort/internal/api"
	"github.com/cohort-tee/cohort/internal/authority/history"
	"github.com/cohort-tee/cohort/internal/bus"
	"github.com/cohort-tee/cohort/internal/limit"
	"github.com/cohort-tee/cohort/internal/wire"
)

// pollsPerUnit is more than one, because the end of a connection may be seen late.
const pollsPerUnit = 4

// polls are the requests that wait for the next step of the history. They have places of
// their own, because they would take all of those for requests that do something.
type polls struct {
	units  *limit.Pool[wire.UnitID]
	others *limit.Pool[netip.Addr]
	most   int // units that are remembered

	mu    sync.Mutex
	known map[wire.Digest]bus.Unit // guarded by mu: by the digest of a signing certificate that was verified
}

func newPolls(l Limits) polls {
	return polls{
		units:  limit.NewPool[wire.UnitID](quotaPolls, l.Polls, pollsPerUnit),
		others: limit.NewPool[netip.Addr](quotaOthers, l.StrangerPolls, l.PollsPerAddress),
		most:   l.Polls, known: make(map[wire.Digest]bus.Unit),
	}
}

// endKey is the key of a connection's context under which a channel is closed when the
// server shuts down.
type endKey struct{}

// polled serves requests that wait for the next step, and leaves the others to h. One from
// an older head waits for nothing and is a request like others.
func (a *Authority) polled(h http.Handler) http.Handler {
	wait := a.respond(route{path: api.PathHistory + "?wait"}, a.waitHistory)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodGet && r.URL.Path == api.PathHistory {
			if p, _, err := api.ParsePollQuery(r.URL.Query()); err == nil && p.Wait > 0 && p.Head == a.history.Current().Approved.Head() {
				wait.ServeHTTP(w, r)
				return
			}
		}
		h.ServeHTTP(w, r)
	})
}

// waitHistory responds to a poll once there is a step after its head, or its time is over.
// It gives its place back at once when the client goes away, and ends at once when the
// server shuts down.
func (a *Authority) waitHistory(w http.ResponseWriter, r *http.Request) (any, error) {
	p, _, err := api.ParsePollQuery(r.URL.Query())
	if err != nil {
		return nil, err
	}
	if !a.limiter.sources.TakeToken(r.RemoteAddr, time.Now()) {
		return nil, wire.Refuse(wire.TooMany, quotaRate, "more", a.limits.PerAddress)
	}
	now, err := a.clock.Now()
	if err != nil {
		return nil, err
	}
	give, err := a.polls.take(r, a.inForce().issuer.AuthorityRoot(), now)
	if err != nil {
		api.SetPollRetry(w.Header())
		return nil, err
	}
	defer give()
	defer a.clients.Exclude()()
	// The limit on reading the request would end the context of one that waits for longer.
	_ = http.NewResponseController(w).SetReadDeadline(time.Time{}) // a server that has none has its own limits
	ending, _ := r.Context().Value(endKey{}).(<-chan struct{})
	timer := time.NewTimer(p.Wait)
	defer timer.Stop()
	for {
		snap := a.history.Current()
		if snap.Approved.Head() != p.Head {
			return a.historyAfter(snap, p.Head)
		}
		select {
		case <-snap.Replaced:
		case <-timer.C:
			return a.historyAfter(snap, p.Head)
		case <-ending:
			return nil, wire.Refuse(wire.Unavailable, "authority", "shutting down", "another authority, or this one later")
		case <-r.Context().Done():
			return nil, wire.Refuse(wire.Unavailable, "history: client", "gone", "one that waits")
		}
	}
}

// take takes a place for a poll: one of those of units for a unit that presents its signing
// certificate, else one of the others. The certificate guards availability only.
func (p *polls) take(r *http.Request, root []byte, at time.Time) (give func(), err error) {
	if unit, ok := p.unitOf(r, root, at); ok {
		return func() { p.units.Release(unit) }, p.units.Acquire(unit)
	}
	from := limit.AddressOf(r.RemoteAddr)
	return func() { p.others.Release(from) }, p.others.Acquire(from)
}

// unitOf is the unit whose signing certificate the client presented, under the authority
// root.
func (p *polls) unitOf(r *http.Request, root []byte, at time.Time) (unit wire.UnitID, ok bool) {
	if r.TLS == nil || len(r.TLS.PeerCertificates) < 2 {
		return unit, false
	}
	chain := r.TLS.PeerCertificates
	leaf := wire.Sum(chain[0].Raw)
	p.mu.Lock()
	known, found := p.known[leaf]
	p.mu.Unlock()
	if !found {
		parsed, err := x509.ParseCertificate(root)
		if err != nil {
			return unit, false
		}
		roots := x509.NewCertPool()
		roots.AddCert(parsed)
		if known, err = bus.UnitOf(chain, roots, at); err != nil {
			return unit, false
		}
		p.remember(leaf, known)
	}
	return known.ID, at.Before(known.NotAfter)
}

// remember keeps a unit that was verified. Beyond the bound all are verified anew.
func (p *polls) remember(leaf wire.Digest, unit bus.Unit) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.known) >= 2*p.most {
		clear(p.known)
	}
	unit.Leaf, unit.Cross = nil, nil
	p.known[leaf] = unit
}

// historyAfter is the run of steps after a head. It refuses with "behind" a head that this
// authority does not know.
func (a *Authority) historyAfter(snap *history.Snapshot, head wire.Digest) (api.History, error) {
	if err := a.history.Behind(); err != nil {
		return api.History{}, err
	}
	index := slices.Index(snap.Approved.Heads(), head)
	if index < 0 {
		return api.History{}, wire.Refuse(wire.Behind, "history: policy head", head, snap.Approved.Head())
	}
	return a.proveHistory(snap, index+1), nil
}

// proveHistory is the run of steps from an index on, with the proof of the head. An
// authority that is behind, or whose clock is refused, gives no proof: what it has is a hint.
func (a *Authority) proveHistory(snap *history.Snapshot, from int) api.History {
	h := snap.Run(from)
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

// proved is a proved head and the second that it was made in.
type proved struct {
	second int64
	head   []byte
}

// proveHead is the head of the snapshot under the authority's signature: one for all who
// ask within a second, since it says the same.
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
		Head: s.approved.Head(), Steps: uint64(len(s.approved.Heads())), At: at, Spread: s.spread,
	}, signer)
	if err != nil {
		return nil, err
	}
	s.proved = proved{at.Unix(), head}
	return head, nil
}
