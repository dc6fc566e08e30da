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

// call is one request on its way: it opens connections, sends, and tries again.
// Its fields belong to the goroutine of run; others reach it through events.
type call struct {
	client     *Client
	request    *http.Request
	body       *body
	repeatable bool // may be executed twice: safe or marked, with a body to send again

	events  chan event
	over    chan struct{} // closed when the call has its outcome
	tried   []*replica
	opening int     // connections asked for and not there yet
	wanted  int     // sends that wait for a connection
	active  []*send // sends that wait for an answer
	forced  bool    // went to a replica in its pause already
	sent    bool    // a part of it may have left without an answer
	cause   error   // what to tell when all fails
}

// event is what happened: a connection opened or failed, or a send ended.
type event struct {
	conn   *conn
	send   *send
	answer *http.Response
	err    error
}

// send is one attempt on one connection.
type send struct {
	conn   *conn
	began  time.Time
	writes int64 // of the link, before
	cancel context.CancelFunc
	late   bool
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
	if err := c.enter(); err != nil {
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
	for k.opening+len(k.active) > 0 {
		select {
		case e := <-k.events:
			if answer, err := k.handle(e); answer != nil || err != nil {
				return answer, err
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

// patience is how long to wait for what is under way before something else is
// started beside it.
func (k *call) patience() time.Duration {
	if k.wanted > 0 {
		return stagger
	}
	return k.client.latencies.lateAfter()
}

// open asks for a connection to one more replica. It gives false when there is
// none left to ask.
func (k *call) open() bool {
	pool := k.client.pool
	if len(k.tried) > pool.size() { // each replica once, and one of them again
		return false
	}
	at := k.client.now()
	r, rank := pool.pick(at, k.tried)
	if r == nil || rank == rankPaused && k.forced && !k.client.retries.spend() {
		return false
	}
	k.forced = k.forced || rank == rankPaused
	k.tried = append(k.tried, r)
	if idle := pool.take(r, at); idle != nil {
		k.send(idle)
		return true
	}
	k.opening++
	k.client.tasks.Go(func() { k.connect(r) })
	return true
}

// connect runs beside the call. It takes a new connection, or one that becomes
// free before that. Few new ones to a replica are under way at a time: a
// handshake is what a busy machine can spare least, and while it makes those of
// everybody, nobody is served. Who has waited for long does not heed that, so
// that connections in vain do not hold up each other.
func (k *call) connect(r *replica) {
	pool := k.client.pool
	free := pool.await(r)
	defer pool.forgo(r, free)
	release := func() { <-r.dialing }
	select {
	case c := <-free:
		k.tell(event{conn: c})
		return
	case <-k.over:
		return
	case r.dialing <- struct{}{}:
	case <-time.After(dialWait):
		release = func() {}
	}
	dialed, over := make(chan event), make(chan struct{})
	defer close(over)
	k.client.tasks.Go(func() {
		opened, err := k.client.dial(r)
		release()
		select {
		case dialed <- event{conn: opened, err: err}:
		case <-over:
			if opened != nil {
				pool.put(opened)
			}
		}
	})
	select {
	case c := <-free:
		k.tell(event{conn: c})
	case e := <-dialed:
		k.tell(e)
	case <-k.over:
	}
}

// tell gives the call a connection, or why there is none. One for which it no
// longer waits is kept for others.
func (k *call) tell(e event) {
	select {
	case k.events <- e:
	case <-k.over:
		if e.conn != nil {
			k.client.pool.put(e.conn)
		}
	}
}

func (k *call) handle(e event) (*http.Response, error) {
	if e.send != nil {
		return k.ended(e)
	}
	k.opening--
	switch {
	case e.err != nil:
		k.blame(e.err)
	case k.wanted == 0:
		k.client.pool.put(e.conn)
		return nil, nil
	case k.client.pool.reserve(e.conn, k.client.now()):
		k.send(e.conn)
		return nil, nil
	}
	if k.wanted > 0 {
		k.open()
	}
	return nil, nil
}

// send puts the request on a connection that is reserved for it.
func (k *call) send(on *conn) {
	k.wanted--
	ctx, cancel := context.WithCancel(k.request.Context())
	s := &send{conn: on, began: k.client.now(), writes: on.link.writes.Load(), cancel: cancel}
	k.active = append(k.active, s)
	k.client.counters.sends.Add(1)
	k.client.tasks.Go(func() { k.exchange(s, k.request.WithContext(ctx)) })
}

// exchange runs beside the call.
func (k *call) exchange(s *send, request *http.Request) {
	e := event{send: s}
	if request.Body, e.err = k.body.open(); e.err != nil {
		s.conn.http.Close()
	} else if e.answer, e.err = s.conn.http.RoundTrip(request); e.err == nil {
		e.err = readWhole(e.answer)
	}
	select {
	case k.events <- e:
	case <-k.over:
		s.cancel()
		if e.answer != nil {
			e.answer.Body.Close()
		}
	}
}

// ended judges a send that has an answer or broke.
func (k *call) ended(e event) (*http.Response, error) {
	s, at := e.send, k.client.now()
	k.active = slices.DeleteFunc(k.active, func(other *send) bool { return other == s })
	k.settle(s)
	if e.err != nil {
		s.cancel()
		return nil, k.broke(s, e.err)
	}
	k.client.latencies.add(at.Sub(s.began))
	if k.elsewhere(e.answer) {
		s.cancel()
		e.answer.Body.Close()
		k.client.pool.failed(s.conn.replica, s.began, at)
		k.again()
		return nil, nil
	}
	k.client.pool.succeeded(s.conn.replica)
	if e.answer.StatusCode != http.StatusSwitchingProtocols {
		e.answer.Body = &answerBody{e.answer.Body, s.cancel}
	}
	return e.answer, nil
}

// broke decides what follows a broken connection.
func (k *call) broke(s *send, err error) error {
	left := s.conn.link.wroteSince(s.writes)
	s.conn.http.Close()
	if ctx := k.request.Context(); ctx.Err() != nil {
		k.sent = k.sent || left
		return k.failure(context.Cause(ctx))
	}
	if left {
		k.sent = true
		k.client.pool.failed(s.conn.replica, s.began, k.client.now())
	}
	k.client.pool.drop(s.conn.replica)
	k.blame(err)
	if left && !k.repeatable || !k.body.whole() {
		return k.failure(err)
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
	for _, s := range k.active {
		if !s.late {
			s.late = true
			k.client.pool.late(s.conn.replica, 1)
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
func (k *call) settle(s *send) {
	if s.late {
		k.client.pool.late(s.conn.replica, -1)
	}
}

// end gives up what still runs. A send that was late by then counts as a
// failure of its replica.
func (k *call) end() {
	close(k.over)
	at := k.client.now()
	for _, s := range k.active {
		k.settle(s)
		if s.late {
			k.client.latencies.addLate()
			k.client.pool.failed(s.conn.replica, s.began, at)
		}
		s.cancel()
	}
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
	for _, s := range k.active {
		k.sent = k.sent || s.conn.link.wroteSince(s.writes)
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
