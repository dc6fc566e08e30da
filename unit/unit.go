// Package unit is the SDK for units: programs that run inside a TEE with the attested identity
// of their task.
//
// [Start] proves the program's identity to an authority, and returns a [Unit] with a
// certificate. The unit serves TLS with the certificate, and renews it automatically with fresh
// evidence until [Unit.Close]. Start never returns a unit without a certificate.
//
// A unit trusts the TEE in which it runs, and one digest: that of the genesis policy. It
// verifies the policy history by the owners' signatures back to that digest. The authority must
// have the root that the newest policy names, and must sign the certificate report together with
// this unit's own request. The unit refuses a history that is older than one it has seen, and
// certificates that are not valid at its own time. Only availability depends on the host, which
// also provides addresses.
//
// `cohort unit` does the same for a program that does not use this package.
//
// Private keys exist only in memory. The Go runtime can copy memory, so their erasure is best
// effort unless the program is built with GOEXPERIMENT=runtimesecret.
//
// Files, each using those before it: config.go, attester.go, unit.go, conn.go, watch.go,
// history.go, enrol.go, tls.go, peer.go, channel.go, bus.go, renew.go, serve.go,
// health.go, start.go.
package unit

import (
	"context"
	"crypto/ecdsa"
	"crypto/tls"
	"crypto/x509"
	"maps"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/identity"
	"github.com/cohort-tee/cohort/internal/api"
	"github.com/cohort-tee/cohort/internal/busrelay"
	"github.com/cohort-tee/cohort/internal/channel"
	"github.com/cohort-tee/cohort/internal/history"
	"github.com/cohort-tee/cohort/internal/hostclock"
	"github.com/cohort-tee/cohort/internal/limit"
	"github.com/cohort-tee/cohort/internal/wire"
	"github.com/cohort-tee/cohort/policy"
)

// Unit is a running program with its certificate. It is safe for concurrent use. The TLS
// configurations and handlers that it returns are live: they use the newest certificate and the
// newest policy at each handshake.
type Unit struct {
	config   Config
	tee      serialAttester
	id       wire.UnitID
	signing  *ecdsa.PrivateKey
	clock    *hostclock.Clock
	spki     []byte  // SubjectPublicKeyInfo of signing
	peers    []*peer // reordered only by the goroutine that enrols
	cluster  clusterState
	requests *limit.Shares // requests in flight, and TCP connections that the agent forwards

	seen     atomic.Pointer[history.History] // newest history; only adopt writes it
	steps    stepNotifier
	watcher  history.Watcher
	conns    connSet
	cutOff   atomic.Pointer[cutOffResult] // cached result of checkNotCutOff; nil before its first call
	enrolled atomic.Pointer[enrolment]    // newest enrolment; nil before the first and after Close
	counters counters

	stop context.CancelFunc
	done chan struct{} // closed when the renewal goroutine has ended
}

// enrolment is the verified content of one certificate report. It is immutable.
type enrolment struct {
	policy      policy.Approved
	lifetime    time.Duration     // lifetime of certificates, from policy
	root        *x509.Certificate // authority root
	identity    identity.Identity
	party       attest.Digest    // in a group, the key of the party of the unit's program
	unit        []byte           // certificate of the signing key, DER
	leaf        *tls.Certificate // leaf and cross-certificate, with the key
	ring        identity.Ring    // ring keys
	env         map[string]string
	facts       policy.Facts          // facts about the unit, from its certificate
	proved      identity.ProvedHead   // policy head in the report
	offset      time.Duration         // unit's clock minus authority's clock at the report, including the report's transmission time
	endorsed    []attest.Endorsements // of the unit's evidence, first the TEE, then each device: vendors' documents, and when the authority fetched them
	renewAfter  time.Time
	renewBefore time.Time
	notAfter    time.Time
	replaced    chan struct{} // closed when a newer enrolment replaces this one
}

// peer is the authority at one address.
type peer struct {
	*history.Peer
	address string
}

// clusterState is the unit's state in its cluster: the sessions that it shares with the other
// units, and the values that it reports to the manager. A fault in it does not make the unit
// unready.
type clusterState struct {
	host         *channel.Host
	relay        *busrelay.Relay
	renewNow     chan struct{} // a value requests an early renewal
	lastHastened atomic.Int64  // time of the last request for an early renewal, Unix nanoseconds
	inFlight     atomic.Int64  // requests being served
	serving      atomic.Int64  // calls of Serve that are not shutting down
	address      atomic.Pointer[string]
	tasks        sync.WaitGroup // goroutines of the cluster, and of watch and watchHistory
}

// stepNotifier notifies goroutines of policy steps that the unit adopts.
type stepNotifier struct {
	mu    sync.Mutex
	moved chan struct{} // guarded by mu: closed when a step is adopted
}

// nextStep returns a channel that is closed when the next step is adopted.
func (s *stepNotifier) nextStep() <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.moved
}

// cutOffResult is the cached result of a check whether the newest policy cuts off an enrolment.
// It is used until the policy or the enrolment changes, because every handshake needs it.
type cutOffResult struct {
	of   *enrolment
	head attest.Digest
	err  error
}

type counters struct {
	quotas                         limit.Refusals
	renewals, failures, handshakes atomic.Uint64
	lastFailure                    atomic.Pointer[wire.Reason]
}

// failed records an attempt that obtained no certificate.
func (c *counters) failed(err error) {
	reason := wire.ReasonOf(err)
	c.lastFailure.Store(&reason)
	c.failures.Add(1)
}

// currentTime returns the unit's own time.
func (u *Unit) currentTime() time.Time { return u.clock.Now() }

// newest returns the newest policy that the unit has adopted.
func (u *Unit) newest() policy.Approved { return u.seen.Load().Policy() }

// provedHead returns the newest proved head, for clients.
func (u *Unit) provedHead() []byte { return u.seen.Load().Proved().Bytes() }

// spread returns the time over which units spread the renewals after a step, from the newest
// proved head.
func (u *Unit) spread() time.Duration { return u.seen.Load().Proved().Spread() }

// pollTime returns the maximum wait of one poll. In a group this is at most a third of the time
// for which a unit may continue without a proved head.
func (u *Unit) pollTime() time.Duration {
	p := u.newest()
	if pact := p.GroupByName(u.config.Group); u.config.Group != "" && pact != nil {
		return min(api.MaxPoll, p.Document().Silence(pact.Group)/3)
	}
	return api.MaxPoll
}

func (u *Unit) authorityRoot() *x509.Certificate {
	if e := u.enrolled.Load(); e != nil {
		return e.root
	}
	return nil
}

// ID returns the unit id. It is new at each start.
func (u *Unit) ID() wire.UnitID { return u.id }

// Identity returns the identity of the unit, or the zero Identity after Close.
func (u *Unit) Identity() identity.Identity {
	if e := u.enrolled.Load(); e != nil {
		return e.identity
	}
	return identity.Identity{}
}

// PolicyHead returns the head of the newest policy that the unit has adopted. The unit verifies
// peers against that policy, and has closed the connections that it refuses.
func (u *Unit) PolicyHead() attest.Digest {
	u.steps.mu.Lock()
	defer u.steps.mu.Unlock()
	return u.newest().PolicyHead()
}

// Environment returns the environment variables that policy sets for the program.
func (u *Unit) Environment() map[string]string {
	if e := u.enrolled.Load(); e != nil {
		return maps.Clone(e.env)
	}
	return nil
}

// Stats has counters since Start, and the state of the certificate.
type Stats struct {
	Renewals    uint64      `json:"renewals"`               // certificates obtained, including the first
	Failures    uint64      `json:"failures"`               // attempts that obtained no certificate
	Handshakes  uint64      `json:"handshakes"`             // TLS handshakes in which the unit presented its certificate as a server
	LastFailure wire.Reason `json:"last_failure,omitempty"` // reason of the last failed attempt
	NotAfter    time.Time   `json:"not_after,omitzero"`     // end of the current certificate
	Sessions    int         `json:"sessions"`               // sessions of the trusted channel in memory
	Manager     bool        `json:"manager"`                // whether a manager is connected
	// Refused counts refused requests by the quota that refused them.
	Refused map[string]uint64 `json:"refused,omitempty"`
}

// Stats returns a copy of the unit's counters.
func (u *Unit) Stats() Stats {
	s := Stats{
		Renewals:   u.counters.renewals.Load(),
		Failures:   u.counters.failures.Load(),
		Handshakes: u.counters.handshakes.Load(),
		Sessions:   u.cluster.host.Stats(u.currentTime()).Sessions,
		Manager:    u.cluster.relay.Connected(),
		Refused:    u.counters.quotas.Counts(),
	}
	if reason := u.counters.lastFailure.Load(); reason != nil {
		s.LastFailure = *reason
	}
	if e := u.enrolled.Load(); e != nil {
		s.NotAfter = e.notAfter
	}
	return s
}
