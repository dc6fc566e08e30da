package channelhttp

import (
	"context"
	"math/rand/v2"
	"net/http"
	"net/url"
	"slices"
	"sync"
	"time"

	"github.com/cohort-tee/cohort/internal/bhttp"
	"github.com/cohort-tee/cohort/internal/channel"
	"github.com/cohort-tee/cohort/internal/chunk"
	"github.com/cohort-tee/cohort/internal/unitauth"
	"github.com/cohort-tee/cohort/internal/wire"
)

// Times of a client.
const (
	openTime       = 30 * time.Second       // for opening one session
	openPause      = 100 * time.Millisecond // after a failed try, growing
	openTries      = 6
	openWrongUnits = 4                      // of these, with responses of other units than the pin's
	retryPause     = 20 * time.Millisecond  // before an attempt after one that found no unit, doubling
	probeTime      = 100 * time.Millisecond // how long such an attempt keeps its probe slot
	probeWait      = 10 * time.Second       // for a probe slot
	renewPause     = 5 * time.Second        // after opening ahead of expiry failed
)

// TrustSource provides the trust that responses are verified by.
type TrustSource interface {
	// Trust returns the newest trust. It does not block.
	Trust() unitauth.Trust
	// Renew fetches trust again, after a response that the newest does not accept, and
	// returns the newest.
	Renew(ctx context.Context) unitauth.Trust
}

// TransportConfig configures a transport for a cluster. Every field is required but
// Options, Heads and NotAfter.
type TransportConfig struct {
	Gateway *url.URL          // any server that reaches the units; untrusted
	Inner   http.RoundTripper // sends outer requests to the gateway
	Pin     unitauth.Pin
	Options channel.SessionOptions
	Trust   TrustSource
	Heads   Heads // that travel beside sessions
	Clock   func() time.Time
	// NotAfter is how long after its sending a unit may begin to execute a
	// request, 2 minutes at most. 0 is 30 seconds. A unit whose clock is not
	// known yet may take longer.
	NotAfter time.Duration
}

// Transport is an [http.RoundTripper] that sends requests through the trusted
// channel. It opens a session when it needs one, and the next ahead of the
// expiry. As soon as trust has a cut, sessions that the unit which was cut off may read
// end, with their responses. It is safe for concurrent use and is
// closed by its owner.
type Transport struct {
	config     TransportConfig
	sessionURL *url.URL
	requestURL *url.URL

	times      times         // of units
	chunks     chunk.Pool    // of responses, and of requests in several
	probeSlots chan struct{} // of calls that look for a unit that responds

	lifetime context.Context // ends with Close
	stop     context.CancelFunc
	tasks    sync.WaitGroup // every goroutine started

	mu      sync.Mutex // guards all below
	active  *activeSession
	opening *flight       // under way; nil: none
	units   []wire.UnitID // of the newest hint, without those that are cut off
	wary    bool          // there were such: an unbound request may reach one
	cut     cutUnits
	opens   uint64
	closed  bool
}

// activeSession is a session in use.
type activeSession struct {
	*channel.Session
	renew time.Time // when the next is opened
	last  time.Time // when it takes no further request
	users int       // calls that still derive keys from it
}

// flight is one opening, for all calls that wait for it.
type flight struct {
	done chan struct{} // closed when err is set
	err  error
}

// NewTransport makes a transport. It opens no session. It refuses, with
// "request", a configuration that leaves something out.
func NewTransport(c TransportConfig) (*Transport, error) {
	if c.Gateway == nil || c.Inner == nil || c.Trust == nil || c.Clock == nil {
		return nil, wire.Refuse(wire.BadRequest, "channel transport: configuration", "a required field is not set", "gateway, inner, trust, clock")
	}
	if err := c.Pin.Validate(); err != nil {
		return nil, err
	}
	if c.NotAfter < 0 || c.NotAfter > channel.MaxAhead {
		return nil, wire.Refuse(wire.BadRequest, "channel transport: not after", c.NotAfter, "up to 2m")
	}
	if c.NotAfter == 0 {
		c.NotAfter = defaultNotAfter
	}
	gateway := c.Gateway.JoinPath("/") // JoinPath of an empty path is relative
	t := &Transport{config: c, sessionURL: gateway.JoinPath(wire.PathSession), requestURL: gateway.JoinPath(wire.PathRequest), probeSlots: make(chan struct{}, maxProbes)}
	t.lifetime, t.stop = context.WithCancel(context.Background())
	return t, nil
}

// Session returns the open session, and opens one if there is none. It blocks until then,
// or until ctx is done.
func (t *Transport) Session(ctx context.Context) (*channel.Session, error) {
	h, err := t.acquire(ctx)
	if err != nil {
		return nil, err
	}
	defer t.release(h)
	return h.Session, nil
}

// Opens returns the number of sessions opened so far.
func (t *Transport) Opens() uint64 {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.opens
}

// acquire returns the session to use; the caller releases it.
func (t *Transport) acquire(ctx context.Context) (*activeSession, error) {
	for {
		h, wait, err := t.current()
		if h != nil || err != nil {
			return h, err
		}
		select {
		case <-wait.done:
			if wait.err != nil {
				return nil, wait.err
			}
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}

// current returns the session to use now, or the opening of one to wait for. It begins an
// opening when that is due.
func (t *Transport) current() (*activeSession, *flight, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return nil, nil, channel.ErrClosed
	}
	now := t.config.Clock()
	if t.active != nil && (!now.Before(t.active.last) || t.cutOff(t.active.Session) != nil) {
		t.replace(nil)
	}
	if t.opening == nil && (t.active == nil || !now.Before(t.active.renew)) {
		f := &flight{done: make(chan struct{})}
		t.opening = f
		t.tasks.Go(func() { t.openSession(f) })
	}
	if t.active != nil {
		t.active.users++
		return t.active, nil, nil
	}
	return nil, t.opening, nil
}

// replace makes h the active session, and erases the previous one as soon as no call uses
// it. The caller holds the mutex.
func (t *Transport) replace(h *activeSession) {
	old := t.active
	t.active = h
	if old != nil && old.users == 0 {
		old.Close()
	}
}

// release ends a call's use of a session.
func (t *Transport) release(h *activeSession) {
	t.mu.Lock()
	defer t.mu.Unlock()
	h.users--
	if h.users == 0 && t.active != h {
		h.Close()
	}
}

// dropSession drops a session that the cluster no longer opens.
func (t *Transport) dropSession(h *activeSession) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.active == h {
		t.replace(nil)
	}
}

// openSession opens a session for a flight.
func (t *Transport) openSession(f *flight) {
	ctx, cancel := context.WithTimeout(t.lifetime, openTime)
	defer cancel()
	s, err := t.negotiate(ctx)
	t.mu.Lock()
	defer t.mu.Unlock()
	defer close(f.done)
	t.opening, f.err = nil, err
	if t.closed && err == nil {
		s.Close()
		f.err = channel.ErrClosed
		return
	}
	now := t.config.Clock()
	if err != nil {
		if t.active != nil {
			t.active.renew = now.Add(renewPause)
		}
		return
	}
	lifetime := s.Expires().Sub(s.OpenedAt())
	h := &activeSession{Session: s, renew: now.Add(lifetime * 3 / 4), last: s.Expires().Add(-min(lifetime/10, 5*time.Second))}
	if s.Alone() { // until units have certificate reports since the cut
		h.renew = now.Add(renewPause)
	}
	t.replace(h)
	t.opens++
}

// noteUnits keeps the units that a hint names.
func (t *Transport) noteUnits(h hint) {
	if h.Units == nil {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	cut := t.cut.idsUnder(t.config.Trust.Trust().Policy)
	t.units = slices.DeleteFunc(h.Units, func(id wire.UnitID) bool { return cut[id] })
	t.wary = len(t.units) < len(h.Units)
}

// isWary reports whether safe requests are bound to units too, because the hint names a
// unit that is cut off.
func (t *Transport) isWary() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.wary
}

// chooseUnit returns the unit to bind a request to: any unit of the hint that was not
// tried, then the one that opened the session, which was there once, then the one that was
// tried longest ago.
func (t *Transport) chooseUnit(h *activeSession, tried []wire.UnitID) (unit wire.UnitID) {
	t.mu.Lock()
	units := t.units
	t.mu.Unlock()
	when := len(tried)
	consider := func(id wire.UnitID) {
		if last := lastIndex(tried, id); last < when {
			unit, when = id, last
		}
	}
	for _, i := range rand.Perm(len(units)) {
		consider(units[i])
	}
	consider(h.OpenedBy().UnitID())
	return unit
}

// lastIndex returns the index of the last attempt at a unit, or -1.
func lastIndex(tried []wire.UnitID, unit wire.UnitID) int {
	for i, id := range slices.Backward(tried) {
		if id == unit {
			return i
		}
	}
	return -1
}

// Closed is the result of closing a session.
type Closed struct {
	Confirmed []wire.UnitID // units that erased it, each authenticated
	Others    time.Time     // until then, units that did not confirm may have it
}

// Close closes the session at the units that are known, as far as ctx lets it,
// erases its secret, and waits for what the transport started. Responses
// that have begun continue; later calls fail with [channel.ErrClosed].
func (t *Transport) Close(ctx context.Context) Closed {
	t.mu.Lock()
	h, units := t.active, t.units
	t.closed, t.active = true, nil
	t.mu.Unlock()
	t.stop()
	t.tasks.Wait()
	if h == nil {
		return Closed{}
	}
	defer h.Close()
	if opener := h.OpenedBy().UnitID(); !slices.Contains(units, opener) {
		units = append(slices.Clone(units), opener)
	}
	confirmed := make([]error, len(units))
	var all sync.WaitGroup
	for i, unit := range units {
		all.Go(func() { confirmed[i] = t.closeAt(ctx, h, unit) })
	}
	all.Wait()
	c := Closed{Others: h.Expires()}
	for i, unit := range units {
		if confirmed[i] == nil {
			c.Confirmed = append(c.Confirmed, unit)
		}
	}
	return c
}

// closeAt asks one unit to close the session.
func (t *Transport) closeAt(ctx context.Context, h *activeSession, unit wire.UnitID) error {
	x, err := h.NewRequest(channel.RequestConfig{Target: unit, NotAfter: t.notAfter(h, unit), Flags: wire.FlagClose})
	if err != nil {
		return err
	}
	body, err := x.Whole(bhttp.Head{}, nil)
	if err != nil {
		return err
	}
	response, err := t.config.Inner.RoundTrip(t.outer(new(http.Request).WithContext(ctx), h, &outgoing{raw: body}, ""))
	if err != nil {
		return err
	}
	defer response.Body.Close()
	a, err := x.Open(response.Body)
	if err == nil && a.Kind != channel.KindClosed {
		err = ErrNotExecuted
	}
	return err
}

// notAfter is the end of an attempt that is bound to a unit, or to none.
func (t *Transport) notAfter(h *activeSession, unit wire.UnitID) time.Time {
	end := t.times.notAfter(unit, t.config.Clock(), t.config.NotAfter)
	if end.After(h.Expires()) {
		return h.Expires()
	}
	return end
}
