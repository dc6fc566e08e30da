package channelhttp

import (
	"context"
	"math/rand/v2"
	"net/http"
	"net/url"
	"slices"
	"sync"
	"time"

	"github.com/cohort-tee/cohort/internal/affinity"
	"github.com/cohort-tee/cohort/internal/bhttp"
	"github.com/cohort-tee/cohort/internal/channel"
	"github.com/cohort-tee/cohort/internal/chunk"
	"github.com/cohort-tee/cohort/internal/unitauth"
	"github.com/cohort-tee/cohort/internal/wire"
)

// Times of a client.
const (
	openTime       = 30 * time.Second       // for opening one session
	openPause      = 100 * time.Millisecond // after the first failed try; later pauses grow
	openTries      = 6                      // tries to open one session
	openWrongUnits = 4                      // tries, of these, that may reach a unit outside the pin
	retryPause     = 20 * time.Millisecond  // after the first attempt without a unit; later pauses double
	probeTime      = 100 * time.Millisecond // longest time for which an attempt keeps its probe slot
	probeWait      = 10 * time.Second       // longest wait for a probe slot
	renewPause     = 5 * time.Second        // after failing to open the next session ahead of expiry
)

// TrustSource provides the trust under which responses are verified.
type TrustSource interface {
	// Trust returns the newest trust. It must not block.
	Trust() unitauth.Trust
	// Renew fetches trust again, after a response that the newest trust does not accept. It
	// returns the newest trust.
	Renew(ctx context.Context) unitauth.Trust
}

// TransportConfig configures a transport for a cluster. Every field is required except Options,
// Heads and NotAfter.
type TransportConfig struct {
	Gateway *url.URL          // any server that reaches the units; untrusted
	Inner   http.RoundTripper // sends outer requests to the gateway
	Pin     unitauth.Pin
	Options channel.SessionOptions
	Trust   TrustSource
	Heads   Heads // exchange of policy heads with units
	Clock   func() time.Time
	// NotAfter limits the time from the sending of a request until a unit may begin to
	// execute it. It is at most 2 minutes; 0 means 30 seconds. For a unit whose clock is not
	// known yet, the limit may be longer.
	NotAfter time.Duration
}

// Blinder makes the affinity keys of requests.
type Blinder = affinity.Blinder

// Transport is an [http.RoundTripper] that sends requests through the trusted channel. It opens a
// session when it needs one, and opens the next session ahead of the expiry. As soon as trust
// contains a cut-off, the transport ends the sessions, and their responses, that the cut-off unit
// may read. A Transport is safe for concurrent use. The caller of [NewTransport] closes it.
type Transport struct {
	config     TransportConfig
	sessionURL *url.URL
	requestURL *url.URL

	times      times         // clocks of units
	chunks     chunk.Pool    // buffers for responses, and for requests of several chunks
	probeSlots chan struct{} // a value for each call that probes: see acquireProbe
	blinder    Blinder

	lifetime context.Context // canceled by Close
	stop     context.CancelFunc
	tasks    sync.WaitGroup // goroutines of the transport

	mu      sync.Mutex // guards all below
	active  *activeSession
	opening *flight       // opening in progress; nil: none
	units   []wire.UnitID // units of the newest hint, without those that are cut off
	wary    bool          // the hint named a cut-off unit: an unbound request may reach it
	cut     cutUnits
	opens   uint64
	closed  bool
}

// activeSession is a session in use.
type activeSession struct {
	*channel.Session
	renew time.Time // when to open the next session
	last  time.Time // from then on, no further request uses the session
	users int       // calls that still derive keys from the session
}

// flight is the opening of one session, for all calls that wait for it.
type flight struct {
	done chan struct{} // closed when err is set
	err  error
}

// NewTransport makes a transport. It opens no session. It refuses an incomplete configuration
// with "request".
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
	gateway := c.Gateway.JoinPath("/") // for an empty path, JoinPath would return a relative path
	t := &Transport{config: c, sessionURL: gateway.JoinPath(wire.PathSession), requestURL: gateway.JoinPath(wire.PathRequest), probeSlots: make(chan struct{}, maxProbes)}
	t.lifetime, t.stop = context.WithCancel(context.Background())
	return t, nil
}

// Session returns the session in use. If there is none, it opens one and blocks until the
// session is open or ctx is done.
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

// acquire returns the session to use. The caller calls release after using it.
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

// current returns the session to use now or, if there is none, the opening to wait for. It
// starts an opening when one is due.
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

// replace makes h the active session. It closes the previous session if no call uses it;
// otherwise release closes it later. The caller holds the mutex.
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

// dropSession stops using a session that the cluster no longer accepts.
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
	if s.Alone() { // open a shared session soon, once units have certificate reports since the cut-off
		h.renew = now.Add(renewPause)
	}
	t.replace(h)
	t.opens++
}

// noteUnits stores the units in a hint, without those that are cut off.
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

// isWary reports whether safe requests must be bound to a unit too, because the newest hint
// names a unit that is cut off.
func (t *Transport) isWary() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.wary
}

// chooseUnit returns the unit to which to bind a request. It prefers an untried unit of the hint,
// the first one for the affinity key or, without a key, a random one. Then it prefers the unit
// that opened the session if it is untried, then the unit that was tried longest ago.
func (t *Transport) chooseUnit(h *activeSession, tried []wire.UnitID, key affinity.Key) (unit wire.UnitID) {
	t.mu.Lock()
	units := slices.Clone(t.units)
	t.mu.Unlock()
	if key != "" {
		affinity.Sort(key, units, func(id wire.UnitID) wire.UnitID { return id })
	} else {
		rand.Shuffle(len(units), func(i, j int) { units[i], units[j] = units[j], units[i] })
	}
	when := len(tried)
	consider := func(id wire.UnitID) {
		if last := lastIndex(tried, id); last < when {
			unit, when = id, last
		}
	}
	for _, id := range units {
		consider(id)
	}
	consider(h.OpenedBy().UnitID())
	return unit
}

// lastIndex returns the index of a unit's last occurrence in tried, or -1.
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
	Confirmed []wire.UnitID // units that confirmed, authenticated, that they erased the session
	Others    time.Time     // until then, other units may have the session
}

// Close closes the session at all known units, as far as ctx allows, erases its secret, and
// waits for the transport's goroutines. Responses that have begun continue. Later calls fail
// with [channel.ErrClosed].
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

// notAfter returns the NotAfter of an attempt that is bound to a unit, or to none: at the
// latest the session's expiry.
func (t *Transport) notAfter(h *activeSession, unit wire.UnitID) time.Time {
	end := t.times.notAfter(unit, t.config.Clock(), t.config.NotAfter)
	if end.After(h.Expires()) {
		return h.Expires()
	}
	return end
}
