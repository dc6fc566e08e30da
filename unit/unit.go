// Package unit is the SDK for computing units: programs that run inside a TEE
// with their task's attested identity.
//
// [Start] proves the program to an authority and returns a [Unit] that has a
// certificate, serves TLS with it, and renews it automatically, with fresh evidence
// each time, until [Unit.Close]. There is no half-ready Unit.
//
// It trusts the TEE it runs in and one digest, that of the genesis policy. The
// policy history authenticates itself by its owners' signatures back to that
// digest; the authority must have the root which the newest policy names; the
// certificate report must be signed by that authority and respond to this
// unit's own request. It refuses everything else, a history older than one it
// has seen, and certificates that are not valid at its own time. The host, which
// also provides addresses, is trusted for availability only.
//
// `cohort unit` does the same for a program that knows nothing of Cohort.
//
// Private keys live in memory only. Go copies memory freely, so erasing them is
// best effort unless the program is built with GOEXPERIMENT=runtimesecret.
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

// Unit is one start of one program with its certificate. It is safe for
// concurrent use. The TLS configurations and handlers that it returns are
// live: they use the newest certificate and the newest policy at each handshake.
type Unit struct {
	config   Config
	tee      serialAttester
	id       wire.UnitID
	signing  *ecdsa.PrivateKey
	clock    *hostclock.Clock
	spki     []byte  // of signing
	peers    []*peer // ordered by the goroutine that enrols
	cluster  clusterState
	requests *limit.Shares // in flight, and connections that are forwarded as TCP

	seen     atomic.Pointer[history.History] // the newest; written by adopt
	steps    stepNotifier
	watcher  history.Watcher
	conns    connSet
	cutOff   atomic.Pointer[cutOffResult] // of the newest policy on held; nil before the first
	enrolled atomic.Pointer[enrolment]    // nil before the first and after Close
	counters counters

	stop context.CancelFunc
	done chan struct{} // closed when the renewal goroutine has ended
}

// enrolment is the verified content of one certificate report. It is immutable.
type enrolment struct {
	policy      policy.Approved
	lifetime    time.Duration     // of certificates, as policy has it
	root        *x509.Certificate // authority root
	identity    identity.Identity
	party       attest.Digest    // whose program the unit runs, in a group: key
	unit        []byte           // certificate of the signing key, DER
	leaf        *tls.Certificate // leaf and cross-certificate, with the key
	ring        identity.Ring    // keys under which units seal sessions
	env         map[string]string
	facts       policy.Facts          // that the unit certificate says of the unit
	proved      identity.ProvedHead   // that came with the report
	offset      time.Duration         // how far the unit's clock was ahead of the authority's then, and how long the report travelled
	endorsed    []attest.Endorsements // of our evidence, the TEE's and then each device's: the vendor's words, and when the authority had them
	renewAfter  time.Time
	renewBefore time.Time
	notAfter    time.Time
	replaced    chan struct{} // closed when a newer enrolment is current
}

// peer is one address of the authority.
type peer struct {
	*history.Peer
	address string
}

// clusterState is the unit's part in its cluster: the sessions it shares with the
// other units, and what it reports to the manager. No fault in it makes a
// unit unready.
type clusterState struct {
	host         *channel.Host
	relay        *busrelay.Relay
	renewNow     chan struct{} // a value in it asks for a renewal ahead of time
	lastHastened atomic.Int64  // when that was last asked for, Unix nanoseconds
	inFlight     atomic.Int64  // requests being served
	serving      atomic.Int64  // calls of Serve that do not end yet
	address      atomic.Pointer[string]
	tasks        sync.WaitGroup // the goroutines below
}

// stepNotifier announces steps that a unit adopts.
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

// cutOffResult is what the newest policy says of an enrolment. It is kept until one of the two
// changes, because it is asked for at every request.
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

// failed counts an attempt that obtained no certificate.
func (c *counters) failed(err error) {
	reason := wire.ReasonOf(err)
	c.lastFailure.Store(&reason)
	c.failures.Add(1)
}

// currentTime returns the unit's time.
func (u *Unit) currentTime() time.Time { return u.clock.Now() }

// newest is the newest policy that the unit has seen.
func (u *Unit) newest() policy.Approved { return u.seen.Load().Policy() }

// provedHead is the newest proved head, to be shown to clients.
func (u *Unit) provedHead() []byte { return u.seen.Load().Proved().Bytes() }

// spread is how long renewals that one step makes necessary are spread, as the authority
// has it.
func (u *Unit) spread() time.Duration { return u.seen.Load().Proved().Spread() }

// pollTime is how long one poll waits: in a group a third of the time that it goes on
// without a proved head, at most.
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

// ID returns the name of this start of this unit.
func (u *Unit) ID() wire.UnitID { return u.id }

// Identity returns the identity of the unit, zero after Close.
func (u *Unit) Identity() identity.Identity {
	if e := u.enrolled.Load(); e != nil {
		return e.identity
	}
	return identity.Identity{}
}

// PolicyHead returns the head of the newest policy that the unit has adopted: peers are checked
// against it, and connections that it refuses have ended.
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

// Stats are counters since Start, and the state of the certificate.
type Stats struct {
	Renewals    uint64      `json:"renewals"`               // certificates obtained, the first included
	Failures    uint64      `json:"failures"`               // attempts without a certificate
	Handshakes  uint64      `json:"handshakes"`             // TLS handshakes a certificate was served to
	LastFailure wire.Reason `json:"last_failure,omitempty"` // of the newest failed attempt
	NotAfter    time.Time   `json:"not_after,omitzero"`     // end of the current certificate
	Sessions    int         `json:"sessions"`               // of the trusted channel, known here
	Manager     bool        `json:"manager"`                // connected to it
	// Refused are requests by the quota that refused them, which its refusal names.
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
