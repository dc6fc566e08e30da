package client

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"time"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/internal/wire"
)

// ErrMaybeExecuted is in the error of a request that is not safe and was cut
// off after a part of it may have left: it was executed once or not at all. Its
// reason is "outcome-unknown".
var ErrMaybeExecuted = wire.Refuse(wire.OutcomeUnknown, "request", "cut off after it was sent", "a response")

// ErrUnreachable is in the error of a request that no replica took. Its reason
// is "unavailable".
var ErrUnreachable = wire.Refuse(wire.Unavailable, "replicas", "no response", "one of any replica")

// call is one request on its way: it starts attempts, decides which of them
// send, and ends with the first response that it accepts. Its fields belong to
// the goroutine of runCall; attempts reach it through events.
type call struct {
	client     *Client
	request    *http.Request
	body       *body
	repeatable bool // may be executed twice: safe or marked, with a body to send again

	events       chan event
	done         chan struct{} // closed when the call has its outcome
	tried        []*replica
	wanted       int        // sends that have no connection yet
	waiting      []*attempt // for a connection
	active       []*attempt // that wait for a response
	probedPaused bool       // an attempt went to a replica in its pause
	sent         bool       // an attempt without a response may have written a part of it
	cause        error      // returned when all attempts fail
}

// event reports that an attempt has a connection or, without conn, that it ended.
type event struct {
	attempt *attempt
	conn    *conn
}

// RoundTrip sends a request to a replica of the cluster and returns its response.
//
// The request's URL must have scheme https and the cluster's server name. A
// request that is safe, or carries an Idempotency-Key and a body of at most
// 1 MiB or with GetBody, is sent again to another replica when a connection
// breaks, and once more when its response is late. Any other request is sent
// again only if nothing of it was written; otherwise the error is
// [ErrMaybeExecuted]. A response that ends early is an error of its body.
//
// It blocks until there is a response, no replica is left to try, or the
// request's context is done.
func (c *Client) RoundTrip(r *http.Request) (*http.Response, error) {
	if r.Body != nil {
		defer r.Body.Close()
	}
	if err := c.checkRequest(r); err != nil {
		return nil, err
	}
	if err := c.beginTask(); err != nil {
		return nil, err
	}
	defer c.tasks.Done()
	if newest := c.trust.Load(); !c.pool.enforces(newest.Policy().PolicyHead()) {
		c.enforce(newest) // maintain does so soon, but the request must not use a connection before that
	}
	if err := c.ensureAddresses(r.Context()); err != nil {
		return nil, err
	}
	keep := int64(0)
	again := isSafe(r) || hasIdempotencyKey(r)
	if again {
		keep = maxKeptBody
	}
	body, err := newBody(r, keep)
	if err != nil {
		return nil, err
	}
	c.counters.requests.Add(1)
	c.hedges.refill()
	c.retries.refill()
	k := &call{client: c, request: r, body: body, repeatable: again && body.reopen != nil,
		events: make(chan event), done: make(chan struct{})}
	return k.runCall()
}

// checkRequest refuses requests that are not for this cluster.
func (c *Client) checkRequest(r *http.Request) error {
	if r.URL == nil || r.URL.Scheme != "https" {
		return wire.Refuse(wire.BadRequest, "request: URL", r.URL, "scheme https")
	}
	if name := r.URL.Hostname(); name != c.config.ServerName {
		return wire.Refuse(wire.WrongName, "request: host", name, c.config.ServerName)
	}
	return nil
}

func (k *call) runCall() (*http.Response, error) {
	defer k.finish()
	k.wanted = 1
	k.startAttempt()
	timer := time.NewTimer(k.raceDelay())
	defer timer.Stop()
	for len(k.waiting)+len(k.active) > 0 {
		select {
		case e := <-k.events:
			if e.conn != nil {
				e.attempt.admitted <- k.admit(e.attempt, e.conn)
			} else if response, err := k.handleEnded(e.attempt); response != nil || err != nil {
				return response, err
			}
		case <-timer.C:
			k.handleOverdue()
		case <-k.request.Context().Done():
			return nil, k.finalError(context.Cause(k.request.Context()))
		case <-k.client.lifetime.Done():
			return nil, k.finalError(ErrClosed)
		}
		timer.Reset(k.raceDelay())
	}
	return nil, k.finalError(k.cause)
}

// raceDelay returns how long to wait for the attempts under way before another
// one starts.
func (k *call) raceDelay() time.Duration {
	if k.wanted > 0 {
		return stagger
	}
	return k.client.latencies.lateAfter()
}

// startAttempt starts an attempt at one more replica. It returns false when there is
// none left to try.
func (k *call) startAttempt() bool {
	pool := k.client.pool
	if len(k.tried) > pool.replicaCount() { // each replica once, and one of them again
		return false
	}
	r, rank := pool.choose(k.client.currentTime(), k.tried)
	if r == nil || rank == rankPaused && k.probedPaused && !k.client.retries.spend() {
		return false
	}
	k.probedPaused = k.probedPaused || rank == rankPaused
	k.tried = append(k.tried, r)
	a := k.newAttempt(r)
	k.waiting = append(k.waiting, a)
	k.client.tasks.Go(a.runAttempt)
	return true
}

// admit decides whether an attempt sends on a connection that it has. Attempts
// that are not needed after that are canceled; the dials they began complete,
// for other calls.
func (k *call) admit(a *attempt, on *conn) bool {
	switch i := slices.Index(k.waiting, a); {
	case a.conn != nil: // it ended before a response, and the transport took another
		if a.wrote = a.mayHaveSent(); a.wrote && !k.repeatable { // by the rules of net/http it may be
			a.cancel(errCut)
			return false
		}
	case i < 0 || k.wanted == 0:
		return false
	default:
		k.wanted--
		k.waiting = slices.Delete(k.waiting, i, i+1)
		k.active = append(k.active, a)
	}
	a.conn, a.began, a.writes = on, k.client.currentTime(), on.writes.Load()
	k.client.counters.sends.Add(1)
	if k.wanted == 0 {
		k.cancelWaiting()
	}
	return true
}

// handleEnded handles an attempt that has a response or broke.
func (k *call) handleEnded(a *attempt) (*http.Response, error) {
	if i := slices.Index(k.waiting, a); i >= 0 {
		k.waiting = slices.Delete(k.waiting, i, i+1)
		k.recordCause(a.err)
		if k.wanted > 0 {
			k.startAttempt()
		}
		return nil, nil
	}
	i := slices.Index(k.active, a)
	if i < 0 {
		return nil, nil // canceled by admit
	}
	k.active = slices.Delete(k.active, i, i+1)
	k.clearLate(a)
	if a.err != nil {
		return nil, k.handleBroken(a)
	}
	at := k.client.currentTime()
	k.client.latencies.addSample(at.Sub(a.began))
	if k.shouldTryElsewhere(a.response) {
		a.cancel(nil)
		a.response.Body.Close()
		k.client.pool.failed(a.replica, a.began, at)
		k.retry()
		return nil, nil
	}
	k.client.pool.succeeded(a.replica)
	if a.response.StatusCode != http.StatusSwitchingProtocols {
		a.response.Body = &responseBody{a.response.Body, func() { a.cancel(nil) }}
	}
	return a.response, nil
}

// handleBroken retries after a broken connection, or returns the call's error.
func (k *call) handleBroken(a *attempt) error {
	left := a.mayHaveSent()
	if ctx := k.request.Context(); ctx.Err() != nil {
		k.sent = k.sent || left
		return k.finalError(context.Cause(ctx))
	}
	if left {
		k.sent = true
		k.client.pool.failed(a.replica, a.began, k.client.currentTime())
	}
	a.replica.transport.CloseIdleConnections() // they may be dead too
	k.recordCause(a.err)
	if left && !k.repeatable || !k.body.isUnread() {
		return k.finalError(a.err)
	}
	k.retry()
	return nil
}

// retry sends once more, on a connection to another replica.
func (k *call) retry() {
	k.client.counters.retries.Add(1)
	k.wanted++
	k.startAttempt()
}

// shouldTryElsewhere reports whether to send to another replica, because this
// one, or the program behind it, responds that it is unavailable.
func (k *call) shouldTryElsewhere(response *http.Response) bool {
	if response.StatusCode != http.StatusBadGateway && response.StatusCode != http.StatusServiceUnavailable {
		return false
	}
	return k.repeatable && k.client.pool.hasUntried(k.client.currentTime(), k.tried) && k.client.retries.spend()
}

// handleOverdue starts a race after a delay: it asks for a connection to another
// replica or, if the request may be executed twice, sends it once more.
func (k *call) handleOverdue() {
	if k.wanted > 0 {
		k.startAttempt()
		return
	}
	for _, a := range k.active {
		if !a.late {
			a.late = true
			k.client.pool.addLate(a.replica, 1)
		}
	}
	if !k.repeatable || !k.client.pool.hasUntried(k.client.currentTime(), k.tried) || !k.client.hedges.spend() {
		return
	}
	k.wanted++
	if !k.startAttempt() {
		k.wanted--
		return
	}
	k.client.counters.hedges.Add(1)
}

// clearLate no longer counts an attempt as late.
func (k *call) clearLate(a *attempt) {
	if a.late {
		k.client.pool.addLate(a.replica, -1)
	}
}

// finish cancels the attempts under way. One that was late counts as a failure
// of its replica.
func (k *call) finish() {
	close(k.done)
	at := k.client.currentTime()
	for _, a := range k.active {
		k.clearLate(a)
		if a.late {
			k.client.latencies.addLate()
			k.client.pool.failed(a.replica, a.began, at)
		}
		a.cancel(nil)
	}
	k.cancelWaiting()
}

// cancelWaiting ends the attempts without a connection, as if their replicas had
// not been tried.
func (k *call) cancelWaiting() {
	for _, a := range k.waiting {
		a.cancel(nil)
		i := slices.Index(k.tried, a.replica)
		k.tried = slices.Delete(k.tried, i, i+1)
	}
	k.waiting = nil
}

// recordCause keeps the error of an attempt for finalError. A refusal is kept
// rather than a broken connection.
func (k *call) recordCause(err error) {
	if k.cause == nil || !isRefusal(k.cause) {
		k.cause = err
	}
}

// finalError is the error of the whole call.
func (k *call) finalError(cause error) error {
	for _, a := range k.active {
		k.sent = a.mayHaveSent() || k.sent
	}
	switch {
	case k.sent && !isSafe(k.request):
		return fmt.Errorf("%w: %w", ErrMaybeExecuted, cause)
	case isRefusal(cause), errors.Is(cause, ErrClosed), k.request.Context().Err() != nil:
		return fmt.Errorf("calling %s: %w", k.client.config.ServerName, cause)
	case cause == nil:
		return ErrUnreachable
	}
	return fmt.Errorf("%w: %w", ErrUnreachable, cause)
}

// isRefusal reports whether an error is a failed check.
func isRefusal(err error) bool {
	var r *attest.Refusal
	return errors.As(err, &r)
}
