package manager

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptrace"
	"strings"
	"sync/atomic"
	"time"

	"github.com/cohort-tee/cohort/internal/api"
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
	slots    chan struct{} // one for each request under way
	buckets  *api.Buckets  // of what costs a unit more than it costs the client

	warmUntil atomic.Pointer[time.Time]
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
	control *http.ResponseController
	body    *body
	size    int64 // of the body; -1 when it streams
	wanted  wanted
	again   bool   // may go to another unit after one may have seen it
	query   string // that goes on to the unit
}

// session takes an open request to a unit of the identity or task that it is
// pinned to. Opening twice costs a session that nobody uses.
func (g *gateway) session(w http.ResponseWriter, r *http.Request) {
	g.limited(w, r, func(x *exchange) error {
		open, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxOpen))
		var large *http.MaxBytesError
		if errors.As(err, &large) {
			return wire.Refuse(wire.TooLarge, "open request: size in bytes", "more", maxOpen)
		}
		if err != nil {
			return wire.Refuse(wire.BadRequest, "open request", err, "a whole body")
		}
		x.wanted.identity, x.wanted.task = pinOf(open)
		// A unit that introduced itself is asked again, or none.
		if name := r.Header.Get(wire.FieldUnit); name != "" {
			if err := x.wanted.target.UnmarshalText([]byte(name)); err != nil {
				return err
			}
		}
		x.body.source, x.size, x.again = bytes.NewReader(open), int64(len(open)), true
		return g.forward(x)
	})
}

// request takes a request to the unit it is bound to, or, unbound, to any unit
// that shares the session. Unbound requests are safe by the rules of the
// channel, and may go to another unit when one fails.
func (g *gateway) request(w http.ResponseWriter, r *http.Request) {
	g.limited(w, r, func(x *exchange) error {
		first := make([]byte, wire.HeaderSize)
		_ = x.control.SetReadDeadline(time.Now().Add(headerWait))
		if _, err := io.ReadFull(r.Body, first); err != nil {
			return wire.Refuse(wire.BadRequest, "request: header", err, "58 bytes")
		}
		header, err := wire.ParseHeader(first)
		if err != nil {
			return err
		}
		x.body.begin, x.body.read = first, len(first)
		x.wanted.clusters, x.wanted.sealedFor = g.copies.holders(header.Session), g.copies.sealedFor(header.Session)
		x.wanted.target = header.Target
		x.again = header.Target == wire.UnitID{}
		return g.forward(x)
	})
}

// oneOff takes a one-off request, or a question for its keys, to any unit of the
// identity that its query names; where none is ready, of the task. They are safe
// or marked by the rules of the channel, and may go to another unit when one
// fails.
func (g *gateway) oneOff(w http.ResponseWriter, r *http.Request) {
	g.limited(w, r, func(x *exchange) error {
		query := r.URL.Query()
		x.again = true
		if r.Method == http.MethodGet {
			x.query = query.Encode()
		}
		if id := query.Get("id"); id != "" {
			var err error
			if x.wanted.identity, err = wire.ParseDigest(id); err != nil {
				return err
			}
		}
		if task := query.Get("task"); task != "" && (x.wanted.identity.IsZero() || g.registry.find(x.wanted, g.clock()) == nil) {
			x.wanted.identity, x.wanted.task = wire.Digest{}, task
		}
		return g.forward(x)
	})
}

// dear takes a token of the client's address for a request that makes a unit use
// a private key: whoever floods the gateway with those spends his own.
func (g *gateway) dear(r *http.Request) error {
	if r.URL.Path != wire.PathRequest && !g.buckets.Take(r.RemoteAddr, g.clock()) {
		return wire.Refuse(wire.TooMany, "gateway: open and one-off requests a second", "more", "fewer from one address")
	}
	return nil
}

// pinOf reads what an open request is pinned to: an identity, or a task, a role
// (GROUP/ROLE) or a group (GROUP/), or nothing when it cannot be read.
func pinOf(open []byte) (identity wire.Digest, task string) {
	var request [5][]byte // suite, KEM key, nonce, pin, wants
	var pin [3][]byte     // kind, name, genesis
	if wire.UnframeInto(request[:], wire.LabelSessionOpen, open) != nil || wire.UnframeInto(pin[:], wire.LabelPin, request[3]) != nil {
		return identity, ""
	}
	switch name := pin[1]; {
	case string(pin[0]) == "id" && len(name) == len(identity):
		return wire.Digest(name), ""
	case string(pin[0]) == "task" && wire.NameOK(string(name)):
		return identity, string(name)
	case string(pin[0]) == "group" && wire.NameOK(string(name)):
		return identity, string(name) + "/"
	case string(pin[0]) == "role" && len(name) <= 2*63+1:
		return identity, string(name)
	}
	return identity, ""
}

// limited runs f while there is room, and tells the problem when f refuses.
func (g *gateway) limited(w http.ResponseWriter, r *http.Request, f func(*exchange) error) {
	start := time.Now()
	x := &exchange{w: w, r: r, control: http.NewResponseController(w), size: r.ContentLength}
	x.body = &body{source: r.Body, deadline: x.control.SetReadDeadline}
	x.wanted.host = hostOf(r)
	defer x.body.release()
	err := g.slotted(x, f)
	if err != nil {
		g.log.Debug("request not forwarded", "path", r.URL.Path, "error", err)
		x.setHint(g.registry)
		problem(err).Write(w)
	}
	g.metrics.forwarded(r.URL.Path, err, time.Since(start))
}

func (g *gateway) slotted(x *exchange, f func(*exchange) error) error {
	select {
	case g.slots <- struct{}{}:
		defer func() { <-g.slots }()
	default:
		return wire.Refuse(wire.Overload, "gateway: requests under way", "more", cap(g.slots))
	}
	if asks := x.r.Method == http.MethodGet && x.r.URL.Path == wire.PathOneOff; x.r.Method != http.MethodPost && !asks {
		return wire.Refuse(wire.BadRequest, "request: method", x.r.Method, http.MethodPost)
	}
	if err := g.dear(x.r); err != nil {
		return err
	}
	// An answer may begin before its request has ended. HTTP/2 always can.
	if err := x.control.EnableFullDuplex(); err != nil && x.r.ProtoMajor == 1 {
		return err
	}
	return f(x)
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
	m.inFlight.Add(1)
	defer m.inFlight.Add(-1)
	ctx, done := m.during(x.r.Context())
	defer done()
	answer, err := x.send(ctx, m)
	if err != nil {
		if x.r.Context().Err() != nil {
			panic(http.ErrAbortHandler) // nobody waits for an answer
		}
		m.failed(g.clock())
		g.metrics.failures.Inc()
		g.log.Debug("unit does not answer", "unit", m.id, "error", err)
		retry := x.wanted.target == wire.UnitID{} && (x.again || neverSent(err)) && x.body.whole()
		return retry, wire.Refuse(wire.Unavailable, "gateway: answer of unit", "none", m.id)
	}
	defer answer.Body.Close()
	m.answered()
	x.setHint(g.registry)
	x.answer(answer)
	return false, nil
}

// send sends the request to one unit. A kept-alive connection may turn out to
// be dead, so what failed on one is sent once more on a fresh one: the same
// unit executes the same request at most once.
func (x *exchange) send(ctx context.Context, m *member) (*http.Response, error) {
	answer, reused, err := x.sendOnce(ctx, m)
	if err == nil || !reused || ctx.Err() != nil || !x.body.whole() {
		return answer, err
	}
	m.close()
	answer, _, err = x.sendOnce(ctx, m)
	return answer, err
}

func (x *exchange) sendOnce(ctx context.Context, m *member) (answer *http.Response, reused bool, err error) {
	trace := &httptrace.ClientTrace{GotConn: func(c httptrace.GotConnInfo) { reused = c.Reused }}
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
	answer, err = m.transport.RoundTrip(out)
	return answer, reused, err
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

// statuses is the HTTP status of what the gateway itself refuses.
var statuses = map[wire.Reason]int{
	wire.Malformed: http.StatusBadRequest, wire.BadRequest: http.StatusBadRequest, wire.TooLarge: http.StatusRequestEntityTooLarge,
	wire.NotFound: http.StatusNotFound, wire.Misdirected: http.StatusMisdirectedRequest,
	wire.TooMany: http.StatusTooManyRequests, wire.Overload: http.StatusServiceUnavailable, wire.Unavailable: http.StatusServiceUnavailable,
}

// problem is what tells err to a client.
func problem(err error) api.Problem {
	refusal := &wire.Refusal{Reason: wire.Internal}
	errors.As(err, &refusal)
	status, known := statuses[refusal.Reason]
	if !known {
		refusal, status = &wire.Refusal{Reason: wire.Internal}, http.StatusInternalServerError
	}
	return api.Problem{
		Type: "urn:cohort:problem:" + string(refusal.Reason), Title: "refused: " + string(refusal.Reason), Status: status,
		Reason: refusal.Reason, Rule: refusal.Rule, Got: refusal.Got, Want: refusal.Want,
	}
}
