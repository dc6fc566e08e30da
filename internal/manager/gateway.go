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

	"github.com/cohort-tee/cohort/internal/api"
	"github.com/cohort-tee/cohort/internal/envelope"
	"github.com/cohort-tee/cohort/internal/limit"
	"github.com/cohort-tee/cohort/internal/wire"
)

// gateway forwards the requests of users to units. It reads the outer header of a request and
// the pin of an open request, both unauthenticated, and passes everything else on unread.
type gateway struct {
	registry *registry
	copies   *copies
	metrics  *metrics
	clock    func() time.Time
	log      *slog.Logger
	reading  *limit.Shares  // bytes buffered of requests that are being read
	slots    *limit.Shares  // one place for each request in progress
	pages    *limit.Shares  // one place for each request that the manager serves itself
	buckets  *limit.Buckets // for requests that cost a unit more than the client
	unknown  *limit.Buckets // for requests in sessions that the client may have invented
	vouched  vouched
	secret   [32]byte // key of the pseudonyms of client addresses

	warmUntil atomic.Pointer[time.Time]
}

func newGateway(c Config, r *registry, kept *copies) *gateway {
	l := c.Limits
	g := &gateway{
		registry: r, copies: kept, clock: c.Clock, log: c.Log,
		reading: limit.NewShares(quotaReading, l.Reading), slots: limit.NewShares(quotaInFlight, l.InFlight), pages: limit.NewShares(quotaPages, maxPages),
		buckets: limit.NewBuckets(l.PerAddress), unknown: limit.NewBuckets(max(1, l.PerAddress/10)),
	}
	rand.Read(g.secret[:]) // never returns an error: it ends the program instead
	return g
}

// warm starts the time in which units reconnect to a restarted manager.
func (g *gateway) warm(now time.Time) {
	until := now.Add(warmUp)
	g.warmUntil.Store(&until)
}

// exchange is one request that the gateway forwards.
type exchange struct {
	w       http.ResponseWriter
	r       *http.Request
	from    netip.Addr // the address that quotas count
	control *http.ResponseController
	body    *body
	size    int64 // of the body; -1 when it streams
	early   bool  // the response may begin before the body has ended
	wanted  wanted
	again   bool   // may be sent to another unit although one may have received it
	query   string // query that the unit receives
	// unknown is the session of the request, if the gateway does not know that it exists.
	unknown wire.SessionID
	opened  *vouched // records the session that an open request opens; nil for other requests
}

// session forwards an open request to a unit of the identity or task that it is pinned to. An
// open request may be repeated: that costs a session that is never used.
func (g *gateway) session(w http.ResponseWriter, r *http.Request) {
	g.limited(w, r, func(x *exchange) error {
		if err := x.whole(maxOpen); err != nil {
			return err
		}
		x.wanted.identity, x.wanted.task = pinOf(x.body.begin)
		x.again, x.opened = true, &g.vouched
		// The TPM challenge of an open request is for one unit: no other unit can serve the
		// request.
		if name := r.Header.Get(wire.FieldUnit); name != "" {
			return x.wanted.target.UnmarshalText([]byte(name))
		}
		return nil
	})
}

// request forwards a bound request to its unit, and an unbound one to any unit that has the
// session. The channel's rules make unbound requests safe to repeat, so they may be sent to
// another unit when one fails.
func (g *gateway) request(w http.ResponseWriter, r *http.Request) {
	g.limited(w, r, func(x *exchange) error {
		first, err := x.first(wire.HeaderSize)
		if err != nil {
			return err
		}
		header, err := wire.ParseHeader(first)
		if err != nil {
			return err
		}
		x.wanted.clusters, x.wanted.sealedFor = g.copies.holders(header.Session), g.copies.sealedFor(header.Session)
		x.wanted.target = header.Target
		x.again = header.Target == wire.UnitID{}
		if err := g.vouch(x, header.Session); err != nil {
			return err
		}
		return g.route(&x.wanted, header.Session, r.Header.Get(wire.FieldTicket))
	})
}

// vouch charges the client's address for a request in a session that the client may have
// invented: a unit without the session requests its stored copy. A ticket beside the request
// proves nothing here, since the gateway cannot open it.
func (g *gateway) vouch(x *exchange, session wire.SessionID) error {
	if x.wanted.clusters != nil || g.vouched.has(session) {
		return nil
	}
	x.unknown = session
	if !g.unknown.Take(x.r.RemoteAddr, g.clock()) {
		return wire.Refuse(wire.TooMany, quotaUnknown, "too many from one address", "fewer")
	}
	return nil
}

// oneOff forwards a one-off request, or a request for the keys of one-off requests, to any
// unit of the identity that its query names, or, if none is ready, of the task. The channel's
// rules make these requests safe to repeat or marked, so they may be sent to another unit when
// one fails.
func (g *gateway) oneOff(w http.ResponseWriter, r *http.Request) {
	g.limited(w, r, func(x *exchange) (err error) {
		query := r.URL.Query()
		x.again = true
		switch {
		case r.Method == http.MethodGet && r.ContentLength != 0:
			err = wire.Refuse(wire.BadRequest, "request: body of a GET in bytes", r.ContentLength, 0)
		case r.Method == http.MethodGet:
			x.query = query.Encode()
			x.body.keep(nil)
			x.size = 0
		case inOnePiece(r):
			err = x.whole(maxOneOff)
		default:
			_, err = x.first(capsuleSize)
		}
		if err != nil {
			return err
		}
		if id := query.Get("id"); id != "" {
			if x.wanted.identity, err = wire.ParseDigest(id); err != nil {
				return err
			}
		}
		if task := query.Get("task"); task != "" && (x.wanted.identity.IsZero() || g.registry.find(x.wanted, g.clock()) == nil) {
			x.wanted.identity, x.wanted.task = wire.Digest{}, task
		}
		return nil
	})
}

// dear charges the client's address for a request that makes a unit use a private key: a
// client that floods the gateway with such requests spends its own tokens.
func (g *gateway) dear(r *http.Request) error {
	if r.URL.Path != wire.PathRequest && !g.buckets.Take(r.RemoteAddr, g.clock()) {
		return wire.Refuse(wire.TooMany, quotaDear, "too many from one address", "fewer")
	}
	return nil
}

// pinOf parses the pin of an open request: an identity, or a task, a role (GROUP/ROLE) or a
// group (GROUP/). It returns neither if the pin is malformed.
func pinOf(open []byte) (identity wire.Digest, task string) {
	pin, err := envelope.PinOf(open)
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

// limited forwards a request within the quotas, and responds with a problem when the request
// is refused. The function read reads the start of the request and sets the filter.
func (g *gateway) limited(w http.ResponseWriter, r *http.Request, read func(*exchange) error) {
	start := time.Now()
	x := &exchange{w: w, r: r, from: limit.AddressOf(r.RemoteAddr), control: http.NewResponseController(w), size: r.ContentLength}
	x.body = &body{source: r.Body, deadline: x.control.SetReadDeadline}
	x.wanted.host = hostOf(r)
	defer x.body.release()
	err := g.admitted(x, read)
	if err != nil {
		g.log.Debug("request not forwarded", "path", r.URL.Path, "error", err)
		x.setHint(g.registry)
		x.lastOn()
		api.GatewayProblem(err).Write(w)
	}
	g.metrics.forwarded(r.URL.Path, err, time.Since(start))
}

// admitted reads the start of a request before it takes a place and forwards the request.
func (g *gateway) admitted(x *exchange, read func(*exchange) error) error {
	if asks := x.r.Method == http.MethodGet && x.r.URL.Path == wire.PathOneOff; x.r.Method != http.MethodPost && !asks {
		return wire.Refuse(wire.BadRequest, "request: method", x.r.Method, http.MethodPost)
	}
	if err := g.dear(x.r); err != nil {
		return err
	}
	done, err := g.read(x, read)
	defer done()
	if err != nil {
		return err
	}
	return placed(g.slots, x, func() error { return g.forward(x) })
}

// duplex lets the response begin before the request has ended, as HTTP/2 always does. It is
// called only for admitted requests: after it, the server of net/http panics at the next
// request if this one was not read to its end (go.dev/issue/68560), and refused requests are
// not.
func (x *exchange) duplex() error {
	if err := x.control.EnableFullDuplex(); err != nil && x.r.ProtoMajor == 1 {
		return err
	}
	x.early = true
	return nil
}

// hostOf returns the host that the client requested, without the port.
func hostOf(r *http.Request) string {
	host, _, err := net.SplitHostPort(r.Host)
	if err != nil {
		host = r.Host
	}
	return strings.ToLower(strings.TrimSuffix(host, "."))
}

// forward tries units until one responds, and copies its response.
func (g *gateway) forward(x *exchange) error {
	m := g.registry.wait(x.r.Context(), x.wanted, g.clock, *g.warmUntil.Load())
	if m == nil {
		return nobody(x.wanted)
	}
	if err := x.duplex(); err != nil {
		return err
	}
	for {
		again, err := g.try(x, m)
		if !again {
			return err
		}
		x.wanted.tried = append(x.wanted.tried, m)
		if m = g.registry.find(x.wanted, g.clock()); m == nil || len(x.wanted.tried) == maxAttempts {
			return err
		}
		g.metrics.retries.Inc()
	}
}

// nobody returns the refusal when no unit can be tried.
func nobody(w wanted) error {
	if w.target != (wire.UnitID{}) {
		return wire.Refuse(wire.Misdirected, "request: target unit", w.target, "a unit that the gateway knows")
	}
	return wire.Refuse(wire.Unavailable, "gateway: units ready", 0, "at least one")
}

// try sends the request to one unit and copies the response. It reports whether there was no
// response and another unit may be tried.
func (g *gateway) try(x *exchange, m *member) (again bool, err error) {
	if err := m.places.Take(x.from, 1); err != nil {
		return x.wanted.target == wire.UnitID{}, err
	}
	defer m.places.Give(x.from, 1)
	m.inFlight.Add(1)
	defer m.inFlight.Add(-1)
	ctx, done := m.during(x.r.Context())
	defer done()
	answer, err := g.send(ctx, x, m)
	if err != nil {
		if x.r.Context().Err() != nil {
			panic(http.ErrAbortHandler) // the client is gone
		}
		if errors.Is(err, wire.Overload) { // a limit of this gateway, not a failure of the unit
			return x.wanted.target == wire.UnitID{}, err
		}
		m.failed(g.clock())
		g.metrics.failures.Inc()
		g.log.Debug("unit does not respond", "unit", m.id, "error", err)
		retry := x.wanted.target == wire.UnitID{} && (x.again || neverSent(err)) && x.body.whole()
		return retry, wire.Refuse(wire.Unavailable, "gateway: unit", m.id.String()+", which does not respond", "a unit that responds")
	}
	defer answer.Body.Close()
	m.answered()
	if x.unknown != (wire.SessionID{}) && answer.StatusCode == http.StatusOK {
		g.vouched.add(x.unknown)
	}
	x.setHint(g.registry)
	x.answer(answer)
	return false, nil
}

// send sends the request to one unit. A kept-alive connection may be dead, so a request that
// failed on one is sent once more on a new connection: the same unit executes the same request
// at most once.
func (g *gateway) send(ctx context.Context, x *exchange, m *member) (*http.Response, error) {
	answer, reused, err := g.sendOnce(ctx, x, m)
	if err == nil || !reused || ctx.Err() != nil || !x.body.whole() {
		return answer, err
	}
	m.close()
	answer, _, err = g.sendOnce(ctx, x, m)
	return answer, err
}

func (g *gateway) sendOnce(ctx context.Context, x *exchange, m *member) (answer *http.Response, reused bool, err error) {
	done, err := m.turn(ctx, x.from)
	if err != nil {
		return nil, false, err
	}
	defer done()
	trace := &httptrace.ClientTrace{GotConn: func(c httptrace.GotConnInfo) { reused = c.Reused; done() }}
	out, err := http.NewRequestWithContext(httptrace.WithClientTrace(ctx, trace), x.r.Method, "https://unit"+x.r.URL.Path, x.body.reader())
	if err != nil {
		return nil, false, wire.Refuse(wire.BadRequest, "request", err, "a request that can be forwarded")
	}
	out.Host, out.ContentLength, out.URL.RawQuery = x.r.Host, x.size, x.query
	if x.size == 0 {
		out.Body = http.NoBody
	}
	copyFields(out.Header, x.r.Header)
	out.Header["User-Agent"] = nil
	delete(out.Header, wire.FieldSender) // set by the gateway alone
	if x.r.URL.Path == wire.PathSession {
		out.Header.Set(wire.FieldSender, g.nameOf(x.from))
	}
	answer, err = m.transport.RoundTrip(out)
	return answer, reused, err
}

// nameOf returns a pseudonym of a client's address. Units distinguish clients by it without
// learning addresses.
func (g *gateway) nameOf(from netip.Addr) string {
	mac := hmac.New(sha256.New, g.secret[:])
	mac.Write(from.AsSlice())
	return hex.EncodeToString(mac.Sum(nil)[:8])
}

// copyFields copies the header fields that belong to the channel. Others may contain the
// client's secrets, such as cookies, or apply to one connection.
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

// setHint lists units that the client may try instead.
func (x *exchange) setHint(r *registry) {
	if ids := r.hint(x.wanted); ids != "" {
		x.w.Header().Set(wire.FieldUnits, ids)
	}
}
