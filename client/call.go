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

// ErrMaybeExecuted is wrapped by the error of a request that is not safe and was cut
// off after a part of it may have been sent. The request was executed once or not at
// all. The reason is "outcome-unknown".
var ErrMaybeExecuted = wire.Refuse(wire.OutcomeUnknown, "request", "cut off after it was sent", "a response")

// ErrUnreachable is wrapped by the error of a request that reached no replica. The
// reason is "unavailable".
var ErrUnreachable = wire.Refuse(wire.Unavailable, "replicas", "no response", "one of any replica")

// call is the execution of one request: it starts attempts, decides which of them
// send, and ends with the first response that it accepts. Its fields belong to the
// goroutine of runCall; attempts send events to that goroutine.
type call struct {
	client     *Client
	request    *http.Request
	body       *body
	repeatable bool // safe or with an Idempotency-Key, and the body can be read again

	events       chan event
	done         chan struct{} // closed when the call has its outcome
	tried        []*replica
	wanted       int        // sends that have no connection yet
	waiting      []*attempt // attempts without a connection
	active       []*attempt // attempts that sent, or are sending, and have no response yet
	probedPaused bool       // an attempt went to a replica in its pause
	sent         bool       // an attempt that failed may have written a part of the request
	cause        error      // returned when all attempts fail
}

// event reports that an attempt has a connection or, if conn is nil, that it ended.
type event struct {
	attempt *attempt
	conn    *conn
}

// RoundTrip sends a request to a replica of the cluster and returns its response.
//
// The request's URL must have scheme https and the cluster's server name as host. A
// request is repeatable if it is safe or carries an Idempotency-Key, and its body has
// GetBody or at most 1 MiB. RoundTrip sends a repeatable request again to another replica
// when a connection breaks, and once more when the response is late. It sends any other
// request again only if no byte of it was written; otherwise it returns
// [ErrMaybeExecuted]. Reading the body of a response that ends early returns an error.
//
// RoundTrip blocks until there is a response, no replica is left to try, or the
// request's context is done.
func (c *Client) RoundTrip(r *http.Request) (*http.Response, error) {
	defer closeBody(r)
	if err := c.checkRequest(r); err != nil {
		return nil, err
	}
	if err := c.beginTask(); err != nil {
		return nil, err
	}
	defer c.tasks.Done()
	if newest := c.trust.Load(); !c.pool.enforces(newest.Policy().PolicyHead()) {
		c.enforce(newest) // maintain does this too, but perhaps after this request took a connection
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
	if err := checkHTTPS(r); err != nil {
		return err
	}
	if name := r.URL.Hostname(); name != c.config.ServerName {
		return wire.Refuse(wire.WrongName, "request: host", name, c.config.ServerName)
	}
	return nil
}

// checkHTTPS refuses a URL without the scheme https.
func checkHTTPS(r *http.Request) error {
	if r.URL == nil || r.URL.Scheme != "https" {
		return wire.Refuse(wire.BadRequest, "request: URL", r.URL, "scheme https")
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

// raceDelay returns how long to wait for the attempts in progress before the next attempt starts.
func (k *call) raceDelay() time.Duration {
	if k.wanted > 0 {
		return stagger
	}
	return k.client.latencies.lateAfter()
}

// startAttempt starts an attempt on the next replica. It returns false when no replica
// is left to try.
func (k *call) startAttempt() bool {
	pool := k.client.pool
	if len(k.tried) > pool.replicaCount() { // one attempt per replica, and one more
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

// admit decides whether an attempt sends on the connection that it got. Then it cancels
// the attempts that are no longer needed. Their dials continue, so that other calls can
// use the connections.
func (k *call) admit(a *attempt, on *conn) bool {
	switch i := slices.Index(k.waiting, a); {
	case a.conn != nil: // that connection ended before a response; the transport tries again on another
		if a.wrote = a.mayHaveSent(); a.wrote && !k.repeatable { // net/http would allow the repetition
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

// handleEnded handles an attempt that ended. It returns the call's response or error, or
// neither if the call continues.
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

// handleBroken retries after an attempt that failed, or returns the call's error.
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

// retry starts an attempt on another replica to send the request again.
func (k *call) retry() {
	k.client.counters.retries.Add(1)
	k.wanted++
	k.startAttempt()
}

// shouldTryElsewhere reports whether to send to another replica, because this replica,
// or the program behind it, responds with status 502 or 503.
func (k *call) shouldTryElsewhere(response *http.Response) bool {
	if response.StatusCode != http.StatusBadGateway && response.StatusCode != http.StatusServiceUnavailable {
		return false
	}
	return k.repeatable && k.client.pool.hasUntried(k.client.currentTime(), k.tried) && k.client.retries.spend()
}

// handleOverdue starts a race after a delay. While no connection is there to send on, it
// starts an attempt on another replica. While a response is late, it sends a repeatable
// request once more, within the hedge budget.
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

// clearLate stops counting a late attempt against its replica.
func (k *call) clearLate(a *attempt) {
	if a.late {
		k.client.pool.addLate(a.replica, -1)
	}
}

// finish cancels the attempts in progress. A late attempt counts as a failure of its replica.
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

// cancelWaiting cancels the attempts without a connection and removes their replicas
// from the tried ones.
func (k *call) cancelWaiting() {
	for _, a := range k.waiting {
		a.cancel(nil)
		i := slices.Index(k.tried, a.replica)
		k.tried = slices.Delete(k.tried, i, i+1)
	}
	k.waiting = nil
}

// recordCause keeps the error of an attempt for finalError. A later error replaces the
// kept one unless that is a refusal.
func (k *call) recordCause(err error) {
	if k.cause == nil || !isRefusal(k.cause) {
		k.cause = err
	}
}

// finalError returns the error of the call.
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

// isRefusal reports whether an error comes from a failed check, an [attest.Refusal].
func isRefusal(err error) bool {
	var r *attest.Refusal
	return errors.As(err, &r)
}
