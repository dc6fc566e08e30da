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
var ErrMaybeExecuted = wire.Refuse(wire.OutcomeUnknown, "request", "cut off after it was sent", "an answer")

// ErrUnreachable is in the error of a request that no replica took. Its reason
// is "unavailable".
var ErrUnreachable = wire.Refuse(wire.Unavailable, "replicas", "none answers", "at least one")

// call is one request on its way: it starts attempts, decides which of them
// send, and ends with the first response that it accepts. Its fields belong to
// the goroutine of run; attempts reach it through events.
type call struct {
	client     *Client
	request    *http.Request
	body       *body
	repeatable bool // may be executed twice: safe or marked, with a body to send again

	events  chan event
	over    chan struct{} // closed when the call has its outcome
	tried   []*replica
	wanted  int        // sends that have no connection yet
	waiting []*attempt // for a connection
	active  []*attempt // that wait for a response
	forced  bool       // went to a replica in its pause already
	sent    bool       // a part of it may have left without a response
	cause   error      // reported when all attempts fail
}

// event is one of an attempt: it has a connection, or, without conn, it ended.
type event struct {
	attempt *attempt
	conn    *conn
}

// RoundTrip sends a request to a replica of the cluster and gives its answer.
//
// The request's URL must have scheme https and the cluster's server name. A
// request that is safe, or carries an Idempotency-Key and a body of at most
// 1 MiB or with GetBody, is sent again to another replica when a connection
// breaks, and once more when its answer is late. Any other request is sent
// again only if nothing of it has left; otherwise the error is
// [ErrMaybeExecuted]. An answer that ends early is an error of its body.
//
// It blocks until there is an answer, no replica is left to try, or the
// request's context is done.
func (c *Client) RoundTrip(r *http.Request) (*http.Response, error) {
	if r.Body != nil {
		defer r.Body.Close()
	}
	if err := c.accept(r); err != nil {
		return nil, err
	}
	if err := c.beginTask(); err != nil {
		return nil, err
	}
	defer c.tasks.Done()
	if newest := c.trust.Load(); !c.pool.under(newest.Policy().Head()) {
		c.enforce(newest) // maintain is about to, and the request must not be ahead of it
	}
	if err := c.locate(r.Context()); err != nil {
		return nil, err
	}
	keep := int64(0)
	again := safe(r) || marked(r)
	if again {
		keep = bodyMost
	}
	body, err := newBody(r, keep)
	if err != nil {
		return nil, err
	}
	c.counters.requests.Add(1)
	c.hedges.earn()
	c.retries.earn()
	k := &call{client: c, request: r, body: body, repeatable: again && body.again != nil,
		events: make(chan event), over: make(chan struct{})}
	return k.run()
}

// accept refuses requests that are not for this cluster.
func (c *Client) accept(r *http.Request) error {
	if r.URL == nil || r.URL.Scheme != "https" {
		return wire.Refuse(wire.BadRequest, "request: URL", r.URL, "scheme https")
	}
	if name := r.URL.Hostname(); name != c.config.ServerName {
		return wire.Refuse(wire.WrongName, "request: host", name, c.config.ServerName)
	}
	return nil
}

func (k *call) run() (*http.Response, error) {
	defer k.end()
	k.wanted = 1
	k.open()
	timer := time.NewTimer(k.patience())
	defer timer.Stop()
	for len(k.waiting)+len(k.active) > 0 {
		select {
		case e := <-k.events:
			if e.conn != nil {
				e.attempt.verdict <- k.admit(e.attempt, e.conn)
			} else if response, err := k.ended(e.attempt); response != nil || err != nil {
				return response, err
			}
		case <-timer.C:
			k.overdue()
		case <-k.request.Context().Done():
			return nil, k.failure(context.Cause(k.request.Context()))
		case <-k.client.life.Done():
			return nil, k.failure(ErrClosed)
		}
		timer.Reset(k.patience())
	}
	return nil, k.failure(k.cause)
}

// patience is how long to wait for the attempts under way before another starts.
func (k *call) patience() time.Duration {
	if k.wanted > 0 {
		return stagger
	}
	return k.client.latencies.lateAfter()
}

// open starts an attempt at one more replica. It returns false when there is
// none left to try.
func (k *call) open() bool {
	pool := k.client.pool
	if len(k.tried) > pool.size() { // each replica once, and one of them again
		return false
	}
	r, rank := pool.pick(k.client.now(), k.tried)
	if r == nil || rank == rankPaused && k.forced && !k.client.retries.spend() {
		return false
	}
	k.forced = k.forced || rank == rankPaused
	k.tried = append(k.tried, r)
	a := k.newAttempt(r)
	k.waiting = append(k.waiting, a)
	k.client.tasks.Go(a.run)
	return true
}

// admit decides whether an attempt sends on a connection that it has. Attempts
// that are not needed after that are canceled; the dials they began complete,
// for other calls.
func (k *call) admit(a *attempt, on *conn) bool {
	switch i := slices.Index(k.waiting, a); {
	case a.conn != nil: // nothing came of a connection, and the transport took another
		a.wrote = a.sent()
	case i < 0 || k.wanted == 0:
		return false
	default:
		k.wanted--
		k.waiting = slices.Delete(k.waiting, i, i+1)
		k.active = append(k.active, a)
	}
	a.conn, a.began, a.writes = on, k.client.now(), on.writes.Load()
	k.client.counters.sends.Add(1)
	if k.wanted == 0 {
		k.cancelWaiting()
	}
	return true
}

// ended handles an attempt that has a response or broke.
func (k *call) ended(a *attempt) (*http.Response, error) {
	if i := slices.Index(k.waiting, a); i >= 0 {
		k.waiting = slices.Delete(k.waiting, i, i+1)
		k.blame(a.err)
		if k.wanted > 0 {
			k.open()
		}
		return nil, nil
	}
	i := slices.Index(k.active, a)
	if i < 0 {
		return nil, nil // was not needed
	}
	k.active = slices.Delete(k.active, i, i+1)
	k.settle(a)
	if a.err != nil {
		return nil, k.broke(a)
	}
	at := k.client.now()
	k.client.latencies.add(at.Sub(a.began))
	if k.elsewhere(a.response) {
		a.cancel(nil)
		a.response.Body.Close()
		k.client.pool.failed(a.replica, a.began, at)
		k.again()
		return nil, nil
	}
	k.client.pool.succeeded(a.replica)
	if a.response.StatusCode != http.StatusSwitchingProtocols {
		a.response.Body = &answerBody{a.response.Body, func() { a.cancel(nil) }}
	}
	return a.response, nil
}

// broke decides what follows a broken connection.
func (k *call) broke(a *attempt) error {
	left := a.sent()
	if ctx := k.request.Context(); ctx.Err() != nil {
		k.sent = k.sent || left
		return k.failure(context.Cause(ctx))
	}
	if left {
		k.sent = true
		k.client.pool.failed(a.replica, a.began, k.client.now())
	}
	a.replica.transport.CloseIdleConnections() // they may be dead too
	k.blame(a.err)
	if left && !k.repeatable || !k.body.whole() {
		return k.failure(a.err)
	}
	k.again()
	return nil
}

// again sends once more, on a connection to another replica.
func (k *call) again() {
	k.client.counters.retries.Add(1)
	k.wanted++
	k.open()
}

// elsewhere reports whether another replica is asked because this one says that
// it, or the program behind it, cannot answer.
func (k *call) elsewhere(answer *http.Response) bool {
	if answer.StatusCode != http.StatusBadGateway && answer.StatusCode != http.StatusServiceUnavailable {
		return false
	}
	return k.repeatable && k.client.pool.fresh(k.client.now(), k.tried) && k.client.retries.spend()
}

// overdue starts something beside what takes too long: a connection to another
// replica, or, if it may be executed twice, the request itself.
func (k *call) overdue() {
	if k.wanted > 0 {
		k.open()
		return
	}
	for _, a := range k.active {
		if !a.late {
			a.late = true
			k.client.pool.addLate(a.replica, 1)
		}
	}
	if !k.repeatable || !k.client.pool.fresh(k.client.now(), k.tried) || !k.client.hedges.spend() {
		return
	}
	k.wanted++
	if !k.open() {
		k.wanted--
		return
	}
	k.client.counters.hedges.Add(1)
}

// settle ends the lateness of a send.
func (k *call) settle(a *attempt) {
	if a.late {
		k.client.pool.addLate(a.replica, -1)
	}
}

// end gives up what still runs. A send that was late by then counts as a
// failure of its replica.
func (k *call) end() {
	close(k.over)
	at := k.client.now()
	for _, a := range k.active {
		k.settle(a)
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

// blame remembers why an attempt failed; a refusal says more than a broken
// connection.
func (k *call) blame(err error) {
	if k.cause == nil || !refused(k.cause) {
		k.cause = err
	}
}

// failure is the error of the whole call.
func (k *call) failure(cause error) error {
	for _, a := range k.active {
		k.sent = a.sent() || k.sent
	}
	switch {
	case k.sent && !safe(k.request):
		return fmt.Errorf("%w: %w", ErrMaybeExecuted, cause)
	case refused(cause), errors.Is(cause, ErrClosed), k.request.Context().Err() != nil:
		return fmt.Errorf("calling %s: %w", k.client.config.ServerName, cause)
	case cause == nil:
		return ErrUnreachable
	}
	return fmt.Errorf("%w: %w", ErrUnreachable, cause)
}

// refused reports whether an error is a check that did not hold.
func refused(err error) bool {
	var r *attest.Refusal
	return errors.As(err, &r)
}
