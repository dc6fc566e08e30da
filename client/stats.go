package client

import (
	"sync/atomic"
	"time"

	"github.com/cohort-tee/cohort/attest"
)

// counters count since the client was made.
type counters struct {
	requests, sends, retries, hedges, dials, refreshFailed atomic.Int64
}

// Stats are counts and the present state of a client, for people and metrics.
type Stats struct {
	Requests      int64 // calls of RoundTrip that went out
	Sends         int64 // times a request was put on a connection
	Retries       int64 // sends after a broken connection or a refusing status
	Hedges        int64 // sends after a late response
	Dials         int64 // connections attempted
	RefreshFailed int64 // failed fetches of trust

	LateAfter  time.Duration // the time after which a response is late now
	TrustAt    time.Time
	PolicyHead attest.Digest
	Replicas   []ReplicaStats
}

// ReplicaStats are those of one address.
type ReplicaStats struct {
	Address  string
	InFlight int
	Late     int // requests and connections that are overdue
	Idle     int // connections
	Failures int // in a row
	Until    time.Time
}

// Stats returns a snapshot.
func (c *Client) Stats() Stats {
	trust := c.trust.Load()
	return Stats{
		Requests:      c.counters.requests.Load(),
		Sends:         c.counters.sends.Load(),
		Retries:       c.counters.retries.Load(),
		Hedges:        c.counters.hedges.Load(),
		Dials:         c.counters.dials.Load(),
		RefreshFailed: c.counters.refreshFailed.Load(),
		LateAfter:     c.latencies.lateAfter(),
		TrustAt:       trust.fetchedAt,
		PolicyHead:    trust.Policy().PolicyHead(),
		Replicas:      c.pool.stats(),
	}
}

func (p *pool) stats() []ReplicaStats {
	p.mu.Lock()
	defer p.mu.Unlock()
	open := make(map[*replica]int)
	for c := range p.open {
		open[c.replica]++
	}
	var all []ReplicaStats
	for _, r := range p.replicas {
		all = append(all, ReplicaStats{
			Address: r.address, InFlight: r.busy, Late: r.late,
			Idle: open[r] - r.busy, Failures: r.backoff.failures, Until: r.backoff.until,
		})
	}
	return all
}
