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

// gateway brings the requests of users to units. It reads the outer header of a
// request and the pin of an open request, both of them without proof, and
// passes everything else on as it comes.
type gateway struct {
	registry *registry
	copies   *copies
	metrics  *metrics
	clock    func() time.Time
	log      *slog.Logger
	reading  *limit.Shares  // bytes of requests that are read
	slots    *limit.Shares  // one place for each request under way
	pages    *limit.Shares  // one for each of what is no request to a unit
	buckets  *limit.Buckets // of what costs a unit more than it costs the client
	unknown  *limit.Buckets // of requests in sessions that may be made up
	vouched  vouched
	secret   [32]byte // of the other names of addresses

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

// warm begins the time in which units find a restarted manager.
func (g *gateway) warm(now time.Time) {
	until := now.Add(warmUp)
	g.warmUntil.Store(&until)
}

// exchange is one request on its way.
type exchange struct {
	w       http.ResponseWriter
	r       *http.Request
	from    netip.Addr // that quotas count
	control *http.ResponseController
	body    *body
	size    int64 // of the body; -1 when it streams
	early   bool  // the answer may begin before the body has ended
	wanted  wanted
	again   bool   // may go to another unit after one may have seen it
	query   string // that goes on to the unit
	// unknown is the session of a request, where it has to be vouched for.
	unknown wire.SessionID
	opened  *vouched // of an open request: where the session that it opens is noted; else nil
}

// session takes an open request to a unit of the identity or task that it is
// pinned to. Opening twice costs a session that nobody uses.
func (g *gateway) session(w http.ResponseWriter, r *http.Request) {
	g.limited(w, r, func(x *exchange) error {
		if err := x.whole(maxOpen); err != nil {
			return err
		}
		x.wanted.identity, x.wanted.task = pinOf(x.body.begin)
		x.again, x.opened = true, &g.vouched
		// A unit that introduced itself is asked again, or none.
		if name := r.Header.Get(wire.FieldUnit); name != "" {
			return x.wanted.target.UnmarshalText([]byte(name))
		}
		return nil
	})
}

// request takes a request to the unit it is bound to, or, unbound, to any unit
// that shares the session. Unbound requests are safe by the rules of the
// channel, and may go to another unit when one fails.
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

// vouch takes a token of the client's address for a request in a session that may
// be made up: a unit that does not hold it asks for the stored copy. A ticket beside
// the request vouches for nothing, since the gateway cannot open it.
func (g *gateway) vouch(x *exchange, session wire.SessionID) error {
	if x.wanted.clusters != nil || g.vouched.has(session) {
		return nil
	}
	x.unknown = session
	if !g.unknown.Take(x.r.RemoteAddr, g.clock()) {
		return wire.Refuse(wire.TooMany, quotaUnknown, "more", "fewer from one address")
	}
	return nil
}

// oneOff takes a one-off request, or a question for its keys, to any unit of the
// identity that its query names; where none is ready, of the task. They are safe
// or marked by the rules of the channel, and may go to another unit when one
// fails.
func (g *gateway) oneOff(w http.ResponseWriter, r *http.Request) {
	g.limited(w, r, func(x *exchange) (err error) {
		query := r.URL.Query()
		x.again = true
		switch {
		case r.Method == http.MethodGet && r.ContentLength != 0:
			err = wire.Refuse(wire.BadRequest, "request: body of a GET", "one", "none")
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

// dear takes a token of the client's address for a request that makes a unit use
// a private key: whoever floods the gateway with those spends his own.
func (g *gateway) dear(r *http.Request) error {
	if r.URL.Path != wire.PathRequest && !g.buckets.Take(r.RemoteAddr, g.clock()) {
		return wire.Refuse(wire.TooMany, quotaDear, "more", "fewer from one address")
	}
	return nil
}

// pinOf reads the units that an open request is pinned to: an identity, or a task, a role
// (GROUP/ROLE) or a group (GROUP/); neither where it cannot be read.
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

// limited brings a request to a unit within the quotas, and responds with the
// problem when it is refused. Read reads what is needed of it, and sets what is
// wanted.
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

// admitted reads what is needed of a request, and only then takes a place and
// forwards it.
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

// duplex lets the answer begin before its request has ended, as HTTP/2 always can.
// It is called late: after it, the server of net/http panics at the next request
// when this one was not read to its end (go.dev/issue/68560), and one that is refused
// is not.
func (x *exchange) duplex() error {
	if err := x.control.EnableFullDuplex(); err != nil && x.r.ProtoMajor == 1 {
		return err
	}
	x.early = true
	return nil
}

// hostOf is the name that the client asked for, without a port.
func hostOf(r *http.Request) string {
	host, _, err := net.SplitHostPort(r.Host)
	if err != nil {
		host = r.Host
	}
	return strings.ToLower(strings.TrimSuffix(host, "."))
}

// forward tries units until one answers, and passes its answer on.
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

// nobody is the refusal when there is no unit to try.
func nobody(w wanted) error {
	if w.target != (wire.UnitID{}) {
		return wire.Refuse(wire.Misdirected, "request: target unit", w.target, "a unit that the gateway knows")
	}
	return wire.Refuse(wire.Unavailable, "gateway: units", "none ready", "one")
}

// try sends the request to one unit and streams the answer back. again says
// that there is no answer and that another unit may be tried.
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
			panic(http.ErrAbortHandler) // nobody waits for an answer
		}
		if errors.Is(err, wire.Overload) { // of this gateway, and not the unit's fault
			return x.wanted.target == wire.UnitID{}, err
		}
		m.failed(g.clock())
		g.metrics.failures.Inc()
		g.log.Debug("unit does not answer", "unit", m.id, "error", err)
		retry := x.wanted.target == wire.UnitID{} && (x.again || neverSent(err)) && x.body.whole()
		return retry, wire.Refuse(wire.Unavailable, "gateway: answer of unit", "none", m.id)
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

// send sends the request to one unit. A kept-alive connection may turn out to
// be dead, so what failed on one is sent once more on a fresh one: the same
// unit executes the same request at most once.
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
		return nil, false, wire.Refuse(wire.BadRequest, "request", err, "one that can be sent on")
	}
	out.Host, out.ContentLength, out.URL.RawQuery = x.r.Host, x.size, x.query
	if x.size == 0 {
		out.Body = http.NoBody
	}
	copyFields(out.Header, x.r.Header)
	out.Header["User-Agent"] = nil
	delete(out.Header, wire.FieldSender) // the gateway's own word
	if x.r.URL.Path == wire.PathSession {
		out.Header.Set(wire.FieldSender, g.nameOf(x.from))
	}
	answer, err = m.transport.RoundTrip(out)
	return answer, reused, err
}

// nameOf is another name of a client's address. By it a unit distinguishes clients,
// and learns no address.
func (g *gateway) nameOf(from netip.Addr) string {
	mac := hmac.New(sha256.New, g.secret[:])
	mac.Write(from.AsSlice())
	return hex.EncodeToString(mac.Sum(nil)[:8])
}

// copyFields copies the fields that belong to the channel. Others are the
// client's secrets, such as cookies, or mean one connection.
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

// setHint tells the client of units that it may ask instead.
func (x *exchange) setHint(r *registry) {
	if ids := r.hint(x.wanted); ids != "" {
		x.w.Header().Set(wire.FieldUnits, ids)
	}
}
