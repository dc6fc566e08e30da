package manager

import (
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/netip"
	"strings"
	"sync/atomic"
	"time"

	"github.com/cohort-tee/cohort/internal/affinity"
	"github.com/cohort-tee/cohort/internal/api"
	"github.com/cohort-tee/cohort/internal/envelope"
	"github.com/cohort-tee/cohort/internal/limit"
	"github.com/cohort-tee/cohort/internal/relay"
	"github.com/cohort-tee/cohort/internal/tracecontext"
	"github.com/cohort-tee/cohort/internal/wire"
)

// gateway forwards the requests of users to units. It parses only the outer header of a request
// and the pin of an open request, both unauthenticated.
type gateway struct {
	registry        *registry
	copies          *relay.Copies
	metrics         *metrics
	clock           func() time.Time
	log             *slog.Logger
	reading         *limit.Shares  // bytes that incoming requests may buffer
	slots           *limit.Shares  // one for each request in progress
	pages           *limit.Shares  // one for each request that the manager serves itself
	expensive       *limit.Buckets // for requests that cost a unit more than they cost the client
	unknownSessions *limit.Buckets // for requests in sessions that the client may have invented
	knownSessions   sessionSet
	secret          [32]byte // key of the pseudonyms of client addresses

	warmUntil atomic.Pointer[time.Time]
}

func newGateway(c Config, r *registry, stored *relay.Copies) *gateway {
	l := c.Limits
	g := &gateway{
		registry: r, copies: stored, clock: c.Clock, log: c.Log,
		reading: limit.NewShares(quotaReading, l.Reading), slots: limit.NewShares(quotaInFlight, l.InFlight), pages: limit.NewShares(quotaPages, maxPages),
		expensive: limit.NewBuckets(l.PerAddress), unknownSessions: limit.NewBuckets(max(1, l.PerAddress/10)),
	}
	rand.Read(g.secret[:]) // returns no error: on failure it ends the program
	return g
}

// startWarmUp starts the period in which units reconnect to a restarted manager.
func (g *gateway) startWarmUp(now time.Time) {
	until := now.Add(warmUp)
	g.warmUntil.Store(&until)
}

// forwardedRequest is a request that the gateway forwards, with its filter and its state.
type forwardedRequest struct {
	w          http.ResponseWriter
	r          *http.Request
	from       netip.Addr // client address, for quotas
	control    *http.ResponseController
	body       *requestBody
	size       int64 // length of the body in bytes; -1 if unknown
	fullDuplex bool  // the response may start before the end of the request body
	filter     unitFilter
	retryable  bool   // the gateway may send it to a second unit even if the first one may have received it
	query      string // query of the request to the unit
	trace      tracecontext.Context
	// unknownSession is the session of the request, if the gateway does not know whether it
	// exists.
	unknownSession wire.SessionID
	openedSessions *sessionSet // receives the session that an open request opens; nil for other requests
}

// serveSession forwards an open request to a unit of the identity or task in its pin. The
// gateway may send an open request to two units: the second session then stays unused.
func (g *gateway) serveSession(w http.ResponseWriter, r *http.Request) {
	g.serveWithQuotas(w, r, func(x *forwardedRequest) error {
		if err := x.readWhole(maxOpen); err != nil {
			return err
		}
		x.filter.identity, x.filter.task = parsePin(x.body.prefix)
		x.retryable, x.openedSessions = true, &g.knownSessions
		// The TPM challenge of an open request is for one unit: other units cannot serve the
		// request.
		if name := r.Header.Get(wire.FieldUnit); name != "" {
			return x.filter.unit.UnmarshalText([]byte(name))
		}
		return nil
	})
}

// serveRequest forwards a bound request to its unit, and an unbound request to any unit that has
// the session. The channel protocol makes unbound requests safe to repeat, so the gateway may
// send one to another unit when the first unit fails.
func (g *gateway) serveRequest(w http.ResponseWriter, r *http.Request) {
	g.serveWithQuotas(w, r, func(x *forwardedRequest) error {
		first, err := x.readPrefix(wire.HeaderSize)
		if err != nil {
			return err
		}
		header, err := wire.ParseHeader(first)
		if err != nil {
			return err
		}
		x.filter.clusters, x.filter.sealedFor = g.copies.ClustersWith(header.Session), g.copies.SealedFor(header.Session)
		x.filter.unit = header.Target
		x.retryable = header.Target == wire.UnitID{}
		if err := g.chargeUnknownSession(x, header.Session); err != nil {
			return err
		}
		return g.routeByTicket(&x.filter, header.Session, r.Header.Get(wire.FieldTicket))
	})
}

// chargeUnknownSession charges the client's address for a request in a session that the client
// may have invented, since such a request makes a unit request the session's stored copy. The
// ticket of the request proves nothing to the gateway, which cannot open it.
func (g *gateway) chargeUnknownSession(x *forwardedRequest, session wire.SessionID) error {
	if x.filter.clusters != nil || g.knownSessions.contains(session) {
		return nil
	}
	x.unknownSession = session
	if !g.unknownSessions.TakeToken(x.r.RemoteAddr, g.clock()) {
		return wire.Refuse(wire.TooMany, quotaUnknown, "too many from one address", "fewer")
	}
	return nil
}

// serveOneOff forwards a one-off request, or a request for the keys of one-off requests, to any
// unit of the identity in its query or, if none is ready, of the task in its query. The channel
// protocol makes these requests safe to repeat or marks them, so the gateway may send one to
// another unit when the first unit fails.
func (g *gateway) serveOneOff(w http.ResponseWriter, r *http.Request) {
	g.serveWithQuotas(w, r, func(x *forwardedRequest) (err error) {
		query := r.URL.Query()
		x.retryable = true
		switch {
		case r.Method == http.MethodGet && r.ContentLength != 0:
			err = wire.Refuse(wire.BadRequest, "request: body of a GET in bytes", r.ContentLength, 0)
		case r.Method == http.MethodGet:
			x.query = query.Encode()
			x.body.setBuffered(nil)
			x.size = 0
		case inOnePiece(r):
			err = x.readWhole(maxOneOff)
		default:
			_, err = x.readPrefix(capsuleSize)
		}
		if err != nil {
			return err
		}
		if id := query.Get("id"); id != "" {
			if x.filter.identity, err = wire.ParseDigest(id); err != nil {
				return err
			}
		}
		if task := query.Get("task"); task != "" && (x.filter.identity.IsZero() || g.registry.selectUnit(x.filter, g.clock()) == nil) {
			x.filter.identity, x.filter.task = wire.Digest{}, task
		}
		return nil
	})
}

// chargeAddress charges the client's address for a request that makes a unit use a private key,
// so that a client that floods the gateway with such requests uses up only its own quota.
func (g *gateway) chargeAddress(r *http.Request) error {
	if r.URL.Path != wire.PathRequest && !g.expensive.TakeToken(r.RemoteAddr, g.clock()) {
		return wire.Refuse(wire.TooMany, quotaExpensive, "too many from one address", "fewer")
	}
	return nil
}

// parsePin parses the pin of an open request: an identity, or a task, a role (GROUP/ROLE) or a
// group (GROUP/). For a malformed pin it returns zero values.
func parsePin(open []byte) (identity wire.Digest, task string) {
	pin, err := envelope.ParsePin(open)
	switch {
	case err != nil:
		return identity, ""
	case pin.Kind == envelope.PinID:
		return wire.Digest([]byte(pin.Name)), ""
	case pin.Kind == envelope.PinGroup:
		return identity, pin.Name + "/"
	}
	return identity, pin.Name
}

// serveWithQuotas forwards a request within the quotas, or writes a problem response (RFC 9457)
// if the request is refused. The function read reads the start of the request and sets the
// filter.
func (g *gateway) serveWithQuotas(w http.ResponseWriter, r *http.Request, read func(*forwardedRequest) error) {
	start := time.Now()
	x := &forwardedRequest{w: w, r: r, from: limit.AddressOf(r.RemoteAddr), control: http.NewResponseController(w), size: r.ContentLength}
	x.trace = tracecontext.FromHeader(r.Header)
	x.body = &requestBody{source: r.Body, deadline: x.control.SetReadDeadline}
	x.filter.host, x.filter.affinity = requestedHost(r), affinity.ParseKey(r.Header.Get(wire.FieldAffinity))
	defer x.body.detach()
	err := g.admit(x, read)
	if err != nil {
		g.log.Debug("request not forwarded", "path", r.URL.Path, "trace", x.trace.TraceID(), "error", err)
		x.setHint(g.registry)
		x.closeUnreadConnection()
		api.GatewayProblem(err).Write(w)
	}
	g.metrics.observeRequest(r.URL.Path, err, time.Since(start))
}

// admit reads the start of a request, then takes a place among the requests in progress and
// forwards the request.
func (g *gateway) admit(x *forwardedRequest, read func(*forwardedRequest) error) error {
	if asks := x.r.Method == http.MethodGet && x.r.URL.Path == wire.PathOneOff; x.r.Method != http.MethodPost && !asks {
		return wire.Refuse(wire.BadRequest, "request: method", x.r.Method, http.MethodPost)
	}
	if err := g.chargeAddress(x.r); err != nil {
		return err
	}
	done, err := g.readWithQuota(x, read)
	defer done()
	if err != nil {
		return err
	}
	return withPlace(g.slots, x, func() error { return g.forward(x) })
}

// enableFullDuplex permits the response to start before the end of the request, as HTTP/2 always
// does. Call it for admitted requests only: after it, the server of net/http panics at the next
// request on the connection if this request was not read to its end (go.dev/issue/68560), and
// refused requests are not read to their end.
func (x *forwardedRequest) enableFullDuplex() error {
	if err := x.control.EnableFullDuplex(); err != nil && x.r.ProtoMajor == 1 {
		return err
	}
	x.fullDuplex = true
	return nil
}

// requestedHost returns the host that the client requested, without the port.
func requestedHost(r *http.Request) string {
	host, _, err := net.SplitHostPort(r.Host)
	if err != nil {
		host = r.Host
	}
	return strings.ToLower(strings.TrimSuffix(host, "."))
}

// forward tries units until one responds, and copies its response.
func (g *gateway) forward(x *forwardedRequest) error {
	m := g.registry.waitForUnit(x.r.Context(), x.filter, g.clock, *g.warmUntil.Load())
	if m == nil {
		return noUnitError(x.filter)
	}
	if err := x.enableFullDuplex(); err != nil {
		return err
	}
	for {
		again, err := g.tryUnit(x, m)
		if !again {
			return err
		}
		x.filter.exclude = append(x.filter.exclude, m)
		if m = g.registry.selectUnit(x.filter, g.clock()); m == nil || len(x.filter.exclude) == maxAttempts {
			return err
		}
		g.metrics.retries.Inc()
	}
}

// noUnitError returns the refusal of a request that no known unit can serve.
func noUnitError(w unitFilter) error {
	if w.unit != (wire.UnitID{}) {
		return wire.Refuse(wire.Misdirected, "request: target unit", w.unit, "a unit that the gateway knows")
	}
	return wire.Refuse(wire.Unavailable, "gateway: units ready", 0, "at least one")
}

// tryUnit sends the request to one unit and copies the response. It returns again = true if the
// unit did not respond and the gateway may try another unit.
func (g *gateway) tryUnit(x *forwardedRequest, m *backend) (again bool, err error) {
	if err := m.places.Acquire(x.from, 1); err != nil {
		return x.filter.unit == wire.UnitID{}, err
	}
	defer m.places.Release(x.from, 1)
	m.inFlight.Add(1)
	defer m.inFlight.Add(-1)
	ctx, done := m.requestContext(x.r.Context())
	defer done()
	response, err := g.sendWithRetry(ctx, x, m)
	if err != nil {
		if x.r.Context().Err() != nil {
			panic(http.ErrAbortHandler) // the client has disconnected
		}
		if errors.Is(err, wire.Overload) { // a limit of this gateway, not a fault of the unit
			return x.filter.unit == wire.UnitID{}, err
		}
		m.recordFailure(g.clock())
		g.metrics.failures.Inc()
		g.log.Debug("unit does not respond", "unit", m.id, "trace", x.trace.TraceID(), "error", err)
		retry := x.filter.unit == wire.UnitID{} && (x.retryable || neverSent(err)) && x.body.replayable()
		return retry, wire.Refuse(wire.Unavailable, "gateway: unit", m.id.String()+", which does not respond", "a unit that responds")
	}
	defer response.Body.Close()
	m.recordSuccess()
	if x.unknownSession != (wire.SessionID{}) && response.StatusCode == http.StatusOK {
		g.knownSessions.insert(x.unknownSession)
	}
	x.setHint(g.registry)
	x.copyResponse(response)
	return false, nil
}

// sendWithRetry sends the request to one unit. An idle connection may be dead, so a request that
// failed on a reused connection is sent again on a new one. This is safe, since a unit executes
// the same request at most once.
func (g *gateway) sendWithRetry(ctx context.Context, x *forwardedRequest, m *backend) (*http.Response, error) {
	response, reused, err := g.roundTrip(ctx, x, m)
	if err == nil || !reused || ctx.Err() != nil || !x.body.replayable() {
		return response, err
	}
	m.closeIdle()
	response, _, err = g.roundTrip(ctx, x, m)
	return response, err
}

func (g *gateway) roundTrip(ctx context.Context, x *forwardedRequest, m *backend) (response *http.Response, reused bool, err error) {
	done, err := m.waitForConnection(ctx, x.from)
	if err != nil {
		return nil, false, err
	}
	defer done()
	trace := &httptrace.ClientTrace{GotConn: func(c httptrace.GotConnInfo) { reused = c.Reused; done() }}
	out, err := http.NewRequestWithContext(httptrace.WithClientTrace(ctx, trace), x.r.Method, "https://unit"+x.r.URL.Path, x.body.newReader())
	if err != nil {
		return nil, false, wire.Refuse(wire.BadRequest, "request", err, "a request that can be forwarded")
	}
	out.Host, out.ContentLength, out.URL.RawQuery = x.r.Host, x.size, x.query
	if x.size == 0 {
		out.Body = http.NoBody
	}
	copyFields(out.Header, x.r.Header)
	x.trace.Apply(out.Header)
	out.Header["User-Agent"] = nil
	delete(out.Header, wire.FieldSender)   // only the gateway sets it
	delete(out.Header, wire.FieldAffinity) // no unit needs it
	if x.r.URL.Path == wire.PathSession {
		out.Header.Set(wire.FieldSender, g.senderName(x.from))
	}
	response, err = m.transport.RoundTrip(out)
	return response, reused, err
}

// senderName returns a pseudonym of a client's address, with which units distinguish clients
// without learning their addresses.
func (g *gateway) senderName(from netip.Addr) string {
	mac := hmac.New(sha256.New, g.secret[:])
	mac.Write(from.AsSlice())
	return hex.EncodeToString(mac.Sum(nil)[:8])
}

// copyFields copies the header fields that the channel uses. Other fields may contain the
// client's secrets, such as cookies, or apply to one connection only.
func copyFields(to, from http.Header) {
	for name, values := range from {
		switch name {
		case "Accept", "Content-Type", "Content-Length", "Cache-Control", "Retry-After":
		default:
			if !strings.HasPrefix(name, "Cohort-") {
				continue
			}
		}
		to[name] = values
	}
}

// setHint sets the Cohort-Units field: ids of units that the client may try next.
func (x *forwardedRequest) setHint(r *registry) {
	if ids := r.alternatives(x.filter); ids != "" {
		x.w.Header().Set(wire.FieldUnits, ids)
	}
}
