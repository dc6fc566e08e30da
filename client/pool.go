package client

import (
	"maps"
	"math/rand/v2"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/cohort-tee/cohort/attest"
)

const (
	maxIdle     = 64               // idle connections kept per replica
	idleTimeout = 90 * time.Second // an idle connection is closed after this
)

// replica is one address of the cluster with its connections and its failures. The
// fields below dialing are guarded by pool.mu.
type replica struct {
	address   string
	transport *http.Transport
	dialing   chan struct{} // contains a value for each dial in progress

	backoff backoff
	busy    int // requests in progress
	late    int // requests and connections that are overdue
}

// pool contains the replicas of a cluster and every open connection to them. The transport of each
// replica keeps the idle connections for reuse. A pool is safe for concurrent use.
type pool struct {
	now          func() time.Time
	newTransport func(*replica) *http.Transport

	mu       sync.Mutex // guards all below
	replicas []*replica
	open     map[*conn]bool // every connection that has not ended
	head     attest.Digest  // head of the policy in force
	closed   bool
}

func newPool(head attest.Digest, now func() time.Time, newTransport func(*replica) *http.Transport) *pool {
	return &pool{now: now, newTransport: newTransport, open: make(map[*conn]bool), head: head}
}

// setAddresses replaces the replicas by those at addresses. A replica whose address stays
// keeps its connections and failures; the idle connections of removed replicas are closed.
func (p *pool) setAddresses(addresses []string) {
	p.mu.Lock()
	var kept []*replica
	for _, address := range addresses {
		i := slices.IndexFunc(p.replicas, func(r *replica) bool { return r.address == address })
		if i < 0 {
			r := &replica{address: address, dialing: make(chan struct{}, maxDials)}
			r.transport = p.newTransport(r)
			kept = append(kept, r)
			continue
		}
		kept = append(kept, p.replicas[i])
	}
	old := p.replicas
	p.replicas = kept
	p.mu.Unlock()
	for _, r := range old {
		if !slices.Contains(kept, r) {
			r.transport.CloseIdleConnections()
		}
	}
}

func (p *pool) allReplicas() []*replica {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.replicas // setAddresses replaces the slice and never changes it
}

func (p *pool) replicaCount() int { return len(p.allReplicas()) }

// Ranks of replicas for the next attempt of a call, best first.
const (
	rankUntried = iota // not tried by this call
	rankLate           // not tried by this call, with late responses
	rankTried          // tried by this call, not late and not paused
	rankPaused         // in its pause after a failure
	rankNone           // tried by this call and late: not to be chosen
)

func (r *replica) rankAt(at time.Time, tried []*replica) int {
	again := slices.Contains(tried, r)
	switch {
	case !r.backoff.ready(at):
		return rankPaused
	case again && r.late > 0:
		return rankNone
	case again:
		return rankTried
	case r.late > 0:
		return rankLate
	}
	return rankUntried
}

// choose returns the replica for the next attempt, and its rank. It picks two random
// replicas of the best rank and returns the less busy one. If all are in their pause, it
// returns the replica whose last failure is oldest, so that the last replica is never
// excluded. It returns nil when no replica is left.
func (p *pool) choose(at time.Time, tried []*replica) (*replica, int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	best := rankNone
	var among []*replica
	for _, r := range p.replicas {
		switch rank := r.rankAt(at, tried); {
		case rank < best:
			best, among = rank, []*replica{r}
		case rank == best && rank != rankNone:
			among = append(among, r)
		}
	}
	if len(among) == 0 {
		return nil, rankNone
	}
	if best == rankPaused {
		return slices.MinFunc(among, func(a, b *replica) int { return a.backoff.last.Compare(b.backoff.last) }), best
	}
	chosen := lessBusy(among)
	chosen.backoff.probe(at, rand.Float64())
	return chosen, best
}

// hasUntried reports whether a replica of the best rank is left for a second send.
func (p *pool) hasUntried(at time.Time, tried []*replica) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.ContainsFunc(p.replicas, func(r *replica) bool { return r.rankAt(at, tried) == rankUntried })
}

// lessBusy returns the less busy of two random replicas: the power of two choices.
func lessBusy(among []*replica) *replica {
	if len(among) == 1 {
		return among[0]
	}
	i := rand.IntN(len(among))
	j := (i + 1 + rand.IntN(len(among)-1)) % len(among)
	if among[j].busy < among[i].busy {
		return among[j]
	}
	return among[i]
}

// addConn registers a new connection. It returns false if the pool is closed.
func (p *pool) addConn(c *conn) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return false
	}
	p.open[c] = true
	return true
}

// acquire makes attempt a the user of a connection. It returns false if c may carry
// no further request: it has ended, its peer was not checked under the policy in force,
// or, for a reused connection, the peer's certificate ends soon.
func (p *pool) acquire(c *conn, a *attempt, reused bool) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.open[c] || c.stopped.Load() || !p.current(c) || reused && !p.now().Before(c.retire) {
		return false
	}
	if c.user.Swap(a) == nil {
		c.replica.busy++
	}
	return true
}

// release ends the use of a connection by attempt a. It does nothing if a is no longer the user.
func (p *pool) release(c *conn, a *attempt) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if c.user.CompareAndSwap(a, nil) {
		c.replica.busy--
	}
}

// wrote stops the connection of an attempt and reports whether a part of the attempt's request was
// written to it. If the connection already has a different user, the whole request was written.
func (p *pool) wrote(a *attempt) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if user := a.conn.user.Load(); user != nil && user != a {
		return true
	}
	return a.conn.wroteSince(a.writes)
}

// removeConn removes a connection that ends.
func (p *pool) removeConn(c *conn) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.open, c)
	if c.user.Swap(nil) != nil {
		c.replica.busy--
	}
}

// current reports whether a connection's peer was checked under the policy in force. The
// caller holds mu.
func (p *pool) current(c *conn) bool { return !p.closed && c.head == p.head }

// failed records that a request or dial failed. It began and failed at these times.
func (p *pool) failed(r *replica, began, at time.Time) {
	p.mu.Lock()
	r.backoff.failed(began, at, rand.Float64())
	again := r.backoff.failures > 1
	p.mu.Unlock()
	if again { // the replica may have stopped, so its idle connections may be dead
		r.transport.CloseIdleConnections()
	}
}

func (p *pool) succeeded(r *replica) {
	p.mu.Lock()
	defer p.mu.Unlock()
	r.backoff = backoff{}
}

// addLate adds n to the count of a replica's overdue requests and connections.
func (p *pool) addLate(r *replica, n int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	r.late += n
}

// enforce sets the head of the policy in force and checks every open connection. A
// connection that check refuses ends at once.
func (p *pool) enforce(head attest.Digest, at time.Time, check func(*conn) error) {
	p.mu.Lock()
	p.head = head
	open := slices.Collect(maps.Keys(p.open))
	p.mu.Unlock()
	var refused []*conn
	for _, c := range open {
		if check(c) != nil {
			// Close TCP first: after a TLS close_notify the peer would end its response regularly.
			c.Conn.Close()
			refused = append(refused, c)
			continue
		}
		p.mu.Lock()
		if p.head == head {
			c.head = head
		}
		p.mu.Unlock()
	}
	closeAll(refused)
	p.sweep(at)
}

// enforces reports whether the policy with this head is the policy in force.
func (p *pool) enforces(head attest.Digest) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.head == head
}

// sweep closes idle connections that no request may use again.
func (p *pool) sweep(at time.Time) {
	p.mu.Lock()
	var old []*conn
	for c := range p.open {
		if c.user.Load() == nil && (!p.current(c) || !at.Before(c.retire)) {
			old = append(old, c)
		}
	}
	p.mu.Unlock()
	closeAll(old)
}

// close ends all connections, including those in use.
func (p *pool) close() {
	p.mu.Lock()
	p.closed = true
	all := slices.Collect(maps.Keys(p.open))
	p.mu.Unlock()
	closeAll(all)
}

func closeAll(conns []*conn) {
	for _, c := range conns {
		c.secured.Close()
	}
}
