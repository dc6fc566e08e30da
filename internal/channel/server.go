package channel

import (
	"context"
	"encoding/base64"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/internal/api"
	"github.com/cohort-tee/cohort/internal/wire"
)

// Relay carries sealed bytes between the units of a cluster. It is trusted with
// nothing: what it loses the client's ticket replaces.
type Relay interface {
	// Number is the next session number of the range that the manager gave
	// this unit, or a random one without a manager. It does not block.
	Number() uint64
	// Push brings a sealed session or a tombstone to all other units. It does
	// not block.
	Push(kind Pushed, sealed []byte)
	// Pull asks for the stored copy of a session. Its error has the reason
	// [wire.NotFound] where there is none, and [wire.Unavailable] where nobody
	// answers in time.
	Pull(ctx context.Context, id wire.SessionID) ([]byte, error)
}

// Pushed says what is pushed.
type Pushed int

// What is pushed, and which method of [Host] takes it.
const (
	PushSession   Pushed = iota // Host.Join
	PushTombstone               // Host.Bury
)

// ServerConfig says what a server serves. Every field is required but Attester.
type ServerConfig struct {
	Host  *Host
	App   http.Handler // answers the requests of sessions, and all other paths
	Relay Relay
	// Attester gives fresh evidence; without one no session that wants any is
	// opened. It is asked for evidence from one goroutine at a time. One that is
	// [attest.Challenged] introduces itself to the client before.
	Attester attest.Attester
	// RingUnknown is called when a session comes under a ring key that the
	// host does not hold: a reason to renew soon. It does not block.
	RingUnknown func()
	Clock       func() time.Time
	Log         *slog.Logger // at debug, why a session does not open
}

// Server serves the trusted channel for a unit and passes other paths on. It is
// an [http.Handler] for the unit's own listener.
type Server struct {
	config   ServerConfig
	pending  atomic.Int64 // opens under way
	oneOffs  atomic.Int64 // one-off requests under way
	attester sync.Mutex   // one call at a time
}

// NewServer makes a server. It refuses, with "request", a configuration that
// leaves something out.
func NewServer(c ServerConfig) (*Server, error) {
	if c.Host == nil || c.App == nil || c.Relay == nil || c.RingUnknown == nil || c.Clock == nil || c.Log == nil {
		return nil, wire.Refuse(wire.BadRequest, "channel server: configuration", "one with gaps", "host, app, relay, ring unknown, clock, log")
	}
	return &Server{config: c}, nil
}

// ServeHTTP serves the paths of the channel; the app serves all others.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	switch r.URL.Path {
	case wire.PathSession:
		s.post(w, r, wire.TypeSession, s.open)
	case wire.PathRequest:
		s.post(w, r, wire.TypeRequest, s.request)
	case wire.PathOneOff:
		if err := s.oneOff(w, r); err != nil {
			problem(w, err)
		}
	default:
		s.config.App.ServeHTTP(w, r)
	}
}

// post demands method and type, and tells what a handler refuses.
func (s *Server) post(w http.ResponseWriter, r *http.Request, kind string, h func(http.ResponseWriter, *http.Request) error) {
	if r.Method != http.MethodPost || r.Header.Get("Content-Type") != kind {
		problem(w, wire.Refuse(wire.BadRequest, "channel: method and content type", r.Method, kind))
		return
	}
	if err := h(w, r); err != nil {
		problem(w, err)
	}
}

// statuses are the HTTP statuses of what a unit tells without authentication.
// Other reasons are 400.
var statuses = map[wire.Reason]int{
	wire.Misdirected:  http.StatusMisdirectedRequest,
	wire.Rekey:        http.StatusGone,
	wire.TicketWanted: http.StatusPreconditionRequired,
	wire.CookieWanted: http.StatusPreconditionRequired,
	wire.Replayed:     http.StatusConflict,
	wire.TooLarge:     http.StatusRequestEntityTooLarge,
	wire.Overload:     http.StatusServiceUnavailable,
	wire.Unavailable:  http.StatusServiceUnavailable,
	wire.CertExpired:  http.StatusServiceUnavailable,
	wire.NotEnrolled:  http.StatusServiceUnavailable,
	wire.Internal:     http.StatusInternalServerError,
	wire.NotFound:     http.StatusNotFound,
	wire.NotAllowed:   http.StatusForbidden,
}

// typeOneOffKey is the type of the problem that a key is not known, RFC 9458,
// section 5.3.
const typeOneOffKey = "https://iana.org/assignments/http-problem-types#ohttp-key"

func problem(w http.ResponseWriter, err error) { problemFor(err).Write(w) }

// problemFor is the reason alone: nobody can check what it says.
func problemFor(err error) api.Problem {
	reason := wire.ReasonOf(err)
	status := http.StatusBadRequest
	if s, ok := statuses[reason]; ok {
		status = s
	}
	kind := "urn:cohort:problem:" + string(reason)
	if reason == wire.OneOffKey {
		kind = typeOneOffKey
	}
	return api.Problem{Type: kind, Title: "refused: " + string(reason), Status: status, Reason: reason}
}

// open answers an open request.
func (s *Server) open(w http.ResponseWriter, r *http.Request) error {
	body, err := io.ReadAll(io.LimitReader(r.Body, maxOpen+1))
	if err != nil {
		return wire.Refuse(wire.Malformed, "open request: body", "cut off", "a whole one")
	}
	cookie, _ := base64.RawURLEncoding.DecodeString(r.Header.Get(wire.FieldCookie))
	request := OpenRequest{Body: body, Cookie: cookie, Number: s.config.Relay.Number(), Pending: int(s.pending.Add(1))}
	defer s.pending.Add(-1)
	at := s.config.Clock()
	a, err := s.config.Host.Accept(request, at)
	if errors.Is(err, wire.CookieWanted) {
		return s.wantAgain(w, body, at, err)
	}
	if err != nil {
		return err
	}
	evidence, err := s.evidence(r, a)
	if err != nil {
		return err
	}
	answer, sealed, err := a.Finish(evidence)
	if err != nil {
		return err
	}
	s.config.Relay.Push(PushSession, sealed)
	w.Header().Set("Content-Type", wire.TypeSession)
	_, _ = w.Write(answer) // the client may be gone, and there is nobody else to tell
	return nil
}

// evidence is the fresh evidence that the client wants, if it wants any.
func (s *Server) evidence(r *http.Request, a *Acceptance) (attest.Evidence, error) {
	data, wanted, err := a.Evidence()
	if err != nil || !wanted {
		return attest.Evidence{}, err
	}
	if s.config.Attester == nil {
		return attest.Evidence{}, wire.Refuse(wire.EvidenceMissing, "unit: TEE", "none", "one that gives evidence")
	}
	credential, err := credentialOf(r)
	if err != nil {
		return attest.Evidence{}, err
	}
	s.attester.Lock()
	defer s.attester.Unlock()
	return attest.Answer(r.Context(), s.config.Attester, data, credential)
}

// request answers a request of a session.
func (s *Server) request(w http.ResponseWriter, r *http.Request) error {
	var raw [wire.HeaderSize]byte
	if _, err := io.ReadFull(r.Body, raw[:]); err != nil {
		return wire.Refuse(wire.Malformed, "request: header", "cut off", "58 bytes")
	}
	x, err := s.find(r, raw)
	if err != nil {
		return err
	}
	if x.closed {
		return s.plain(w, x, kindClosed, "")
	}
	if err := x.open(r.Body); err != nil {
		return err
	}
	switch {
	case x.closed:
		return s.plain(w, x, kindClosed, "")
	case x.late(s.config.Clock()):
		return s.plain(w, x, kindNotExecuted, wire.Expired)
	case x.header.Flags&wire.FlagClose != 0:
		return s.close(w, x)
	}
	return s.serve(w, r, x)
}

// find finds the session of a request: in the table, in the ticket that came
// along, in the manager's stored copy.
func (s *Server) find(r *http.Request, raw [wire.HeaderSize]byte) (*inbound, error) {
	x, err := s.config.Host.begin(raw, s.config.Clock())
	if !errors.Is(err, wire.TicketWanted) {
		return x, err
	}
	ticket, _ := base64.RawURLEncoding.DecodeString(r.Header.Get(wire.FieldTicket))
	byTicket := s.join(ticket)
	if byTicket == nil {
		return s.config.Host.begin(raw, s.config.Clock())
	}
	header, parseErr := wire.ParseHeader(raw[:])
	if parseErr != nil {
		return nil, parseErr
	}
	stored, byCopy := s.config.Relay.Pull(r.Context(), header.Session)
	if byCopy == nil {
		byCopy = s.join(stored)
	}
	if byCopy == nil {
		return s.config.Host.begin(raw, s.config.Clock())
	}
	switch {
	case len(ticket) > 0 && errors.Is(byCopy, wire.Unavailable): // there may be one
		err = wire.Refuse(wire.Unavailable, "request: stored copy", "no answer", "one, or that there is none")
	case len(ticket) > 0:
		err = wire.Refuse(wire.Rekey, "request: ticket", "one that does not open", "a session of this cluster")
	}
	s.config.Log.Debug("session does not open", "unit", s.config.Host.ID(), "session", header.Session, "answer", wire.ReasonOf(err), "ticket", byTicket, "copy", byCopy)
	return nil, err
}

// join takes a sealed session over, if there is one.
func (s *Server) join(sealed []byte) error {
	if len(sealed) == 0 {
		return wire.Refuse(wire.NotFound, "sealed session", "none", "one")
	}
	_, err := s.config.Host.Join(sealed, s.config.Clock())
	if errors.Is(err, wire.UnknownRing) {
		s.config.RingUnknown()
	}
	return err
}

// close ends the session of a request and confirms it.
func (s *Server) close(w http.ResponseWriter, x *inbound) error {
	tombstone, err := x.close()
	if err != nil {
		return err
	}
	if tombstone != nil {
		s.config.Relay.Push(PushTombstone, tombstone)
	}
	return s.plain(w, x, kindClosed, "")
}

func (s *Server) plain(w http.ResponseWriter, x *inbound, kind byte, reason wire.Reason) error {
	b, err := x.plain(kind, reason)
	if err != nil {
		return err
	}
	w.Header().Set("Content-Type", wire.TypeAnswer)
	_, _ = w.Write(b) // as above
	return nil
}

// serve lets the app answer. From here on the request may have been executed,
// and every answer is authenticated or cut off.
func (s *Server) serve(w http.ResponseWriter, r *http.Request, x *inbound) error {
	inner, err := x.request(r)
	if err != nil {
		return s.plain(w, x, kindNotExecuted, wire.ReasonOf(err))
	}
	a, err := newAnswerWriter(w, x)
	if err != nil {
		return err
	}
	leave := func() {}
	if !x.whole() {
		leave = fullDuplex(w, r)
	}
	a.noContent = inner.Method == http.MethodHead
	s.config.App.ServeHTTP(a, inner)
	if !x.whole() {
		lastOn(w, r)
	}
	if err := a.finish(); err != nil {
		panic(http.ErrAbortHandler) // cuts the answer off, which the client notices
	}
	leave()
	return nil
}

// unreadWait is how long the rest of a request is waited for that the app has left.
const unreadWait = time.Second

// fullDuplex lets an answer begin before its request has ended, where a protocol has
// to be told so. The handler ends with leave: what it wrote goes out, and some of
// what it did not read is read and forgotten. The server of net/http does that too,
// after the handler, but panics then at the next request (go.dev/issue/68560).
func fullDuplex(w http.ResponseWriter, r *http.Request) (leave func()) {
	control := http.NewResponseController(w)
	_ = control.EnableFullDuplex()
	return func() {
		_ = control.Flush()
		_ = control.SetReadDeadline(time.Now().Add(unreadWait))
		_ = r.Body.Close()
	}
}

// lastOn says of a request that nobody reads to its end that it is the last on its
// connection, where that is of HTTP/1.1 and the answer has not begun. Else the client
// might send the next one while the connection is closed, and not know its outcome.
func lastOn(w http.ResponseWriter, r *http.Request) {
	if r.ProtoMajor == 1 {
		w.Header().Set("Connection", "close")
	}
}

// request is the request in the session, for the app.
func (x *inbound) request(outer *http.Request) (*http.Request, error) {
	h, rest, err := parseRequest(x.first)
	if err != nil {
		return nil, err
	}
	caller := Caller{Unit: x.host.id, session: x.header.Session}
	return h.inner(outer.WithContext(context.WithValue(outer.Context(), callerKey{}, caller)), x.source, rest)
}

// inner makes r, a copy of the outer request, the one whose head was read; rest
// is what followed that in its chunk.
func (h head) inner(r *http.Request, s *source, rest []byte) (*http.Request, error) {
	u, err := url.ParseRequestURI(h.path)
	if err != nil || h.method == http.MethodConnect || !strings.HasPrefix(h.path, "/") && h.path != "*" {
		return nil, wire.Refuse(wire.Malformed, "request: path", h.path, "an absolute path")
	}
	u.Scheme, u.Host = h.scheme, h.authority
	host := h.authority
	if host == "" {
		host = h.fields.Get("Host")
	}
	delete(h.fields, "Host")
	if said := h.fields.Values("Content-Length"); len(said) > 0 && (len(said) > 1 || said[0] != strconv.FormatInt(h.length, 10)) {
		return nil, wire.Refuse(wire.Malformed, "request: content length", said, h.length)
	}
	delete(h.fields, "Content-Length")
	body := newContent(s, h, rest)
	r.Method, r.URL, r.Host, r.RequestURI, r.Pattern = h.method, u, host, h.path, ""
	r.Proto, r.ProtoMajor, r.ProtoMinor, r.TransferEncoding = "HTTP/1.1", 1, 1, nil
	r.Header, r.Body, r.ContentLength, r.Trailer = h.fields, body, h.length, body.trailer
	if h.length == 0 && s.opener.done() && len(rest) == 0 {
		r.Body = http.NoBody
	}
	return r, nil
}
