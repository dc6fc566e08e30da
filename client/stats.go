package client

import (
	"sync/atomic"
	"time"

	"github.com/cohort-tee/cohort/attest"
)

// counters are the counts of [Stats] since the client was made.
type counters struct {
	requests, sends, retries, hedges, dials, refreshFailed atomic.Int64
}

// Stats contains the counts and the current state of a client, for people and metrics.
type Stats struct {
	Requests      int64 // calls of RoundTrip that started an attempt
	Sends         int64 // times a request was put on a connection
	Retries       int64 // sends after a broken connection or a status 502 or 503
	Hedges        int64 // sends after a late response
	Dials         int64 // connections attempted
	RefreshFailed int64 // failed fetches of trust

	LateAfter  time.Duration // time after which a response counts as late now
	TrustAt    time.Time     // when trust was fetched
	PolicyHead attest.Digest
	Replicas   []ReplicaStats
}

// ReplicaStats contains the state of the replica at one address.
type ReplicaStats struct {
	Address  string
	InFlight int       // requests in progress
	Late     int       // overdue requests and connections
	Idle     int       // idle connections
	Failures int       // failures in a row
	Until    time.Time // end of the pause after the last failure
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
