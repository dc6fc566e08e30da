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
	idleMost = 64               // idle connections that a replica keeps
	idleTime = 90 * time.Second // an idle connection is closed after this
)

// replica is one address and what is known of it. Its fields are guarded by
// pool.mu.
type replica struct {
	address string
	backoff backoff
	busy    int // requests under way
	late    int // requests and connections that are overdue
	idle    []*conn
	waiting []chan *conn  // for a connection that becomes free, longest first
	dialing chan struct{} // holds one for each that is under way; guards itself
}

// pool holds the replicas of a cluster with their connections. It is safe for
// concurrent use.
type pool struct {
	now func() time.Time

	mu       sync.Mutex // guards all below
	replicas []*replica
	open     map[*conn]bool // every connection that has not ended
	head     attest.Digest  // of the policy in force
	closed   bool
}

func newPool(head attest.Digest, now func() time.Time) *pool {
	return &pool{now: now, open: make(map[*conn]bool), head: head}
}

// set makes addresses the replicas, keeps what is known of those that stay, and
// closes the idle connections of those that go.
func (p *pool) set(addresses []string) {
	p.mu.Lock()
	var kept []*replica
	for _, address := range addresses {
		i := slices.IndexFunc(p.replicas, func(r *replica) bool { return r.address == address })
		if i < 0 {
			kept = append(kept, &replica{address: address, dialing: make(chan struct{}, dialMost)})
			continue
		}
		kept = append(kept, p.replicas[i])
	}
	var idle []*conn
	for _, r := range p.replicas {
		if !slices.Contains(kept, r) {
			idle = append(idle, r.flush()...)
		}
	}
	p.replicas = kept
	p.mu.Unlock()
	closeAll(idle)
}

func (p *pool) all() []*replica {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.replicas // set replaces the slice and never changes it
}

func (p *pool) size() int { return len(p.all()) }

// Ranks of replicas, best first.
const (
	rankFresh  = iota // not tried by this call
	rankLate          // not tried, with answers outstanding
	rankAgain         // tried by this call, but not at fault
	rankPaused        // in its pause after a failure
	rankNone          // already asked and late
)

func (r *replica) rank(at time.Time, tried []*replica) int {
	again := slices.Contains(tried, r)
	switch {
	case !r.backoff.ready(at):
		return rankPaused
	case again && r.late > 0:
		return rankNone
	case again:
		return rankAgain
	case r.late > 0:
		return rankLate
	}
	return rankFresh
}

// pick chooses the replica for the next connection: of those with the best rank
// the less busy of two at random. If all are in their pause, it is the one
// whose failure is longest ago, so the last replica is never given up. It gives
// nil when there is none to ask, and the rank.
func (p *pool) pick(at time.Time, tried []*replica) (*replica, int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	best := rankNone
	var among []*replica
	for _, r := range p.replicas {
		switch rank := r.rank(at, tried); {
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

// fresh reports whether a replica is left that is worth a second send.
func (p *pool) fresh(at time.Time, tried []*replica) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.ContainsFunc(p.replicas, func(r *replica) bool { return r.rank(at, tried) == rankFresh })
}

// lessBusy is the power of two choices.
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

// take gives an idle connection to the replica that may carry one more request,
// reserved for the caller, or nil.
func (p *pool) take(r *replica, at time.Time) *conn {
	for {
		p.mu.Lock()
		if len(r.idle) == 0 {
			p.mu.Unlock()
			return nil
		}
		last := r.idle[len(r.idle)-1]
		r.idle = r.idle[:len(r.idle)-1]
		usable := p.current(last) && at.Before(last.retire)
		p.mu.Unlock()
		if !usable {
			last.http.Close()
		} else if p.reserve(last, at) {
			return last
		}
	}
}

// reserve makes the connection the caller's for one request. It fails when the
// connection has ended meanwhile.
func (p *pool) reserve(c *conn, at time.Time) bool {
	p.mu.Lock()
	c.busy, c.used = true, at
	c.replica.busy++
	p.mu.Unlock()
	if c.http.Reserve() != nil {
		p.changed(c)
		return false
	}
	return true
}

// opened takes note of a new connection.
func (p *pool) opened(c *conn, at time.Time) {
	p.mu.Lock()
	p.open[c] = true
	c.used = at
	closed := p.closed
	p.mu.Unlock()
	c.http.SetStateHook(func(*http.ClientConn) { p.changed(c) })
	if closed {
		c.http.Close()
	}
}

// changed is called by a connection that became free or ended.
func (p *pool) changed(c *conn) {
	ended := c.http.Err() != nil
	if !ended && c.http.Available() == 0 {
		return
	}
	p.mu.Lock()
	wasBusy := c.busy
	if wasBusy {
		c.busy = false
		c.replica.busy--
	}
	if ended {
		delete(p.open, c)
		c.replica.idle = slices.DeleteFunc(c.replica.idle, func(i *conn) bool { return i == c })
	}
	p.mu.Unlock()
	if wasBusy && !ended {
		p.put(c)
	}
}

// put gives a connection that nobody uses to whoever waits longest for one to
// its replica, keeps it, or closes it when it is not to be used again.
func (p *pool) put(c *conn) {
	p.mu.Lock()
	r := c.replica
	keep := p.current(c) && slices.Contains(p.replicas, r)
	switch {
	case keep && len(r.waiting) > 0 && p.now().Before(c.retire):
		r.waiting[0] <- c // has room for one
		r.waiting = r.waiting[1:]
	case keep && len(r.idle) < idleMost:
		r.idle = append(r.idle, c)
	default:
		keep = false
	}
	p.mu.Unlock()
	if !keep {
		c.http.Close()
	}
}

// await gives a channel for one connection to the replica that becomes free.
func (p *pool) await(r *replica) chan *conn {
	p.mu.Lock()
	defer p.mu.Unlock()
	free := make(chan *conn, 1)
	r.waiting = append(r.waiting, free)
	return free
}

// forgo ends waiting. What came meanwhile goes to others.
func (p *pool) forgo(r *replica, free chan *conn) {
	p.mu.Lock()
	r.waiting = slices.DeleteFunc(r.waiting, func(w chan *conn) bool { return w == free })
	p.mu.Unlock()
	select {
	case c := <-free:
		p.put(c)
	default:
	}
}

// current reports whether the policy a connection was checked under is in
// force. The caller holds mu.
func (p *pool) current(c *conn) bool { return !p.closed && c.head == p.head }

// failed notes that what began at began on this replica did not end well.
func (p *pool) failed(r *replica, began, at time.Time) {
	p.mu.Lock()
	r.backoff.failed(began, at, rand.Float64())
	var idle []*conn
	if r.backoff.fails > 1 { // once may be bad luck; a replica that is gone takes its connections along
		idle = r.flush()
	}
	p.mu.Unlock()
	closeAll(idle)
}

func (p *pool) succeeded(r *replica) {
	p.mu.Lock()
	defer p.mu.Unlock()
	r.backoff = backoff{}
}

// late adds n to what is overdue at a replica.
func (p *pool) late(r *replica, n int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	r.late += n
}

// drop closes the idle connections of a replica: one of them turned out dead.
func (p *pool) drop(r *replica) {
	p.mu.Lock()
	idle := r.flush()
	p.mu.Unlock()
	closeAll(idle)
}

// enforce makes head the policy in force, by which check judges the connections that are
// open. One that it refuses ends at once.
func (p *pool) enforce(head attest.Digest, at time.Time, check func(*conn) error) {
	p.mu.Lock()
	p.head = head
	open := slices.Collect(maps.Keys(p.open))
	p.mu.Unlock()
	var refused []*conn
	for _, c := range open {
		if check(c) != nil {
			// Without a TLS close: the peer would end its response in good order on that.
			c.link.Conn.Close()
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

// under reports whether connections are checked under the policy with a head.
func (p *pool) under(head attest.Digest) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.head == head
}

// sweep closes idle connections that will not be used again.
func (p *pool) sweep(at time.Time) {
	p.mu.Lock()
	var old []*conn
	for _, r := range p.replicas {
		r.idle = slices.DeleteFunc(r.idle, func(c *conn) bool {
			over := !p.current(c) || !at.Before(c.retire) || at.Sub(c.used) > idleTime
			if over {
				old = append(old, c)
			}
			return over
		})
	}
	p.mu.Unlock()
	closeAll(old)
}

// close ends all connections, those in use as well.
func (p *pool) close() {
	p.mu.Lock()
	p.closed = true
	all := slices.Collect(maps.Keys(p.open))
	p.mu.Unlock()
	closeAll(all)
}

func (r *replica) flush() []*conn {
	idle := r.idle
	r.idle = nil
	return idle
}

func closeAll(conns []*conn) {
	for _, c := range conns {
		c.http.Close()
	}
}
