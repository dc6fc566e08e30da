package channelhttp

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/internal/api"
	"github.com/cohort-tee/cohort/internal/channel"
	"github.com/cohort-tee/cohort/internal/envelope"
	"github.com/cohort-tee/cohort/internal/tracecontext"
	"github.com/cohort-tee/cohort/internal/wire"
)

// Relay forwards sealed sessions and tombstones between the units of a cluster. It is untrusted.
// If it loses a sealed session, the client's ticket replaces that session.
type Relay interface {
	// Number returns the next session number of the range that the manager allocated to
	// this unit or, without a manager, a random number. It must not block.
	Number() uint64
	// Push sends a sealed session or a tombstone to all other units, which pass it to
	// Host.ImportSession or Host.Terminate. It must not block.
	Push(kind envelope.Kind, sealed []byte)
	// RequestCopy fetches the stored copy of a session. Its error has the reason [wire.NotFound] if
	// there is no copy, and [wire.Unavailable] if no response arrives in time.
	RequestCopy(ctx context.Context, id wire.SessionID) ([]byte, error)
}

// ServerConfig configures a server. Every field is required except Attester, Crowded and Heads.
type ServerConfig struct {
	Host  *channel.Host
	App   http.Handler // serves the requests of sessions, and all other paths
	Relay Relay
	// Serves reports whether requests inside the channel may be for an authority (host, or
	// host:port). It must not block.
	Serves func(authority string) bool
	// Attester makes fresh evidence. Without it the server refuses to open sessions with fresh
	// evidence. Only one goroutine calls it at a time. If it is an
	// [attest.CredentialAttester], the unit first sends an introduction to the client.
	Attester attest.Attester
	// RingUnknown is called when a session arrives under a ring key that the host does not
	// have: then the unit should renew soon. It must not block.
	RingUnknown func()
	// Crowded is called with each refusal. It counts refusals that come from a quota
	// ([limit.QuotaOf]). It must not block. Nil counts nothing.
	Crowded func(error)
	// Clock returns the unit's time, which never goes back. It returns an error with "clock" while
	// that time and the host's clock differ too much: then the server serves nothing.
	Clock func() (time.Time, error)
	Heads Heads        // exchange of policy heads with clients
	Log   *slog.Logger // at level debug, reports why a session does not open and which requests are refused
}

// Server serves the trusted channel for a unit. Requests to other paths go to the app. It is an
// [http.Handler] for the unit's own listener.
type Server struct {
	config  ServerConfig
	pending atomic.Int64 // open requests in progress
	intake  *intake
}

// NewServer makes a server. It refuses an incomplete configuration with "request".
func NewServer(c ServerConfig) (*Server, error) {
	if c.Host == nil || c.App == nil || c.Relay == nil || c.Serves == nil || c.RingUnknown == nil || c.Clock == nil || c.Log == nil {
		return nil, wire.Refuse(wire.BadRequest, "channel server: configuration", "a required field is not set", "host, app, relay, serves, ring unknown, clock, log")
	}
	return &Server{config: c, intake: newIntake(c.Host.Limits())}, nil
}

// ServeHTTP serves the paths of the channel; the app serves all others.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	switch r.URL.Path {
	case wire.PathSession:
		s.servePost(w, r, wire.TypeSession, s.serveOpen)
	case wire.PathRequest:
		s.servePost(w, r, wire.TypeRequest, s.serveRequest)
	case wire.PathOneOff:
		if err := s.serveOHTTP(w, r); err != nil {
			s.refuse(w, r, err)
		}
	default:
		s.config.App.ServeHTTP(w, r)
	}
}

// servePost checks the method and content type of a request, calls h, and writes a refusal of h.
func (s *Server) servePost(w http.ResponseWriter, r *http.Request, kind string, h func(http.ResponseWriter, *http.Request) error) {
	if r.Method != http.MethodPost || r.Header.Get("Content-Type") != kind {
		s.refuse(w, r, wire.Refuse(wire.BadRequest, "channel: method and content type", r.Method, kind))
		return
	}
	if err := h(w, r); err != nil {
		s.refuse(w, r, err)
	}
}

// typeOneOffKey is the problem type for an unknown key (RFC 9458, section 5.3).
const typeOneOffKey = "https://iana.org/assignments/http-problem-types#ohttp-key"

// refuse counts and logs a refusal, and writes it as a problem.
func (s *Server) refuse(w http.ResponseWriter, r *http.Request, err error) {
	s.countRefusal(err)
	s.config.Log.Debug("request of the channel refused", "path", r.URL.Path, "reason", wire.ReasonOf(err), "unauthenticated_trace", tracecontext.FromHeader(r.Header).TraceID())
	writeProblem(w, err)
}

func (s *Server) countRefusal(err error) {
	if s.config.Crowded != nil {
		s.config.Crowded(err)
	}
}

func writeProblem(w http.ResponseWriter, err error) { problemFor(err).Write(w) }

func problemFor(err error) api.Problem {
	p := api.UnitProblem(err)
	if p.Reason == wire.OneOffKey {
		p.Type = typeOneOffKey
	}
	return p
}

// maxReopens is how often an open request restarts because the ring keys were replaced
// meanwhile. Two replacements are at least seconds apart.
const maxReopens = 2

// serveOpen serves an open request.
func (s *Server) serveOpen(w http.ResponseWriter, r *http.Request) error {
	s.config.Heads.receive(r.Header)
	setHead(w.Header(), s.config.Heads.newest())
	body, err := readWhole(w, r, channel.MaxOpenRequest)
	if err != nil {
		return wire.Refuse(wire.Malformed, "open request: body", fmt.Sprint(len(body), " bytes: ", err), "the whole body")
	}
	cookie, _ := base64.RawURLEncoding.DecodeString(r.Header.Get(wire.FieldCookie))
	request := channel.OpenRequest{Body: body, Cookie: cookie, Number: s.config.Relay.Number(), Pending: int(s.pending.Add(1))}
	defer s.pending.Add(-1)
	at, err := s.config.Clock()
	if err != nil {
		return err
	}
	a, err := s.config.Host.Accept(request, at)
	if errors.Is(err, wire.CookieWanted) {
		return s.wantAgain(w, body, at, err)
	}
	if err != nil {
		return err
	}
	response, sealed, err := s.finishOpen(r, a)
	for range maxReopens {
		if !errors.Is(err, wire.UnknownRing) {
			break
		}
		if err = s.acceptAgain(a); err == nil {
			response, sealed, err = s.finishOpen(r, a)
		}
	}
	if err != nil {
		return err
	}
	if sealed != nil {
		s.config.Relay.Push(envelope.Session, sealed)
	}
	w.Header().Set("Content-Type", wire.TypeSession)
	_, _ = w.Write(response) // fails only if the client has disconnected
	return nil
}

// finishOpen makes fresh evidence for an open request, if the client wants it, and installs the
// session.
func (s *Server) finishOpen(r *http.Request, a *channel.ServerHandshake) (response, sealed []byte, err error) {
	evidence, err := s.evidence(r, a)
	if err != nil {
		return nil, nil, err
	}
	at, err := s.config.Clock() // a new reading, because making evidence takes time
	if err != nil {
		return nil, nil, err
	}
	return a.Finish(evidence, at)
}

// acceptAgain calls [channel.ServerHandshake.Again] with the unit's time.
func (s *Server) acceptAgain(a *channel.ServerHandshake) error {
	at, err := s.config.Clock()
	if err != nil {
		return err
	}
	return a.Again(at)
}

// evidence makes fresh evidence if the client wants it. Otherwise it returns the zero Evidence.
func (s *Server) evidence(r *http.Request, a *channel.ServerHandshake) (attest.Evidence, error) {
	data, wanted, err := a.Evidence()
	if err != nil || !wanted {
		return attest.Evidence{}, err
	}
	if s.config.Attester == nil {
		return attest.Evidence{}, wire.Refuse(wire.EvidenceMissing, "unit: TEE", "no TEE configured", "a TEE that makes evidence")
	}
	credential, err := credentialOf(r)
	if err != nil {
		return attest.Evidence{}, err
	}
	done, err := s.intake.waitForEvidence(r)
	if err != nil {
		return attest.Evidence{}, err
	}
	defer done()
	return attest.AttestWithCredential(r.Context(), s.config.Attester, data, credential)
}

// serveRequest serves a request of a session.
func (s *Server) serveRequest(w http.ResponseWriter, r *http.Request) error {
	var raw [wire.HeaderSize]byte
	if _, err := io.ReadFull(r.Body, raw[:]); err != nil {
		return wire.Refuse(wire.Malformed, "request: header", "cut off", "58 bytes")
	}
	x, err := s.findSession(r, raw)
	if err != nil {
		return err
	}
	if x.Closed() {
		return confirmClose(w, x)
	}
	s.config.Heads.receive(r.Header)
	if err := x.Authenticate(s.config.Heads.newest(), s.config.Clock); err != nil {
		if errors.Is(err, wire.Expired) {
			w.Header().Set(wire.FieldTime, strconv.FormatInt(x.TakenAt().UnixMilli(), 10))
		}
		return err
	}
	setHead(w.Header(), x.HeadToSend())
	switch {
	case x.Closed():
		return confirmClose(w, x)
	case x.Closes() && !x.Empty():
		return notExecuted(w, x, wire.Malformed)
	case x.Closes():
		return s.closeSession(w, x)
	}
	return s.serveApp(w, r, x)
}

// findSession finds the session of a request: in the host's table, in the request's ticket, or
// in the manager's stored copy.
func (s *Server) findSession(r *http.Request, raw [wire.HeaderSize]byte) (*channel.ServerRequest, error) {
	x, err := s.openRequest(r, raw)
	if !errors.Is(err, wire.TicketWanted) {
		return x, err
	}
	header, parseErr := wire.ParseHeader(raw[:])
	if parseErr != nil {
		return nil, parseErr
	}
	ticket, _ := base64.RawURLEncoding.DecodeString(r.Header.Get(wire.FieldTicket))
	byTicket := s.joinSealed(ticket, header.Session)
	if byTicket == nil {
		return s.openRequest(r, raw)
	}
	stored, byCopy := s.pullCopy(r, header.Session)
	if byCopy == nil {
		byCopy = s.joinSealed(stored, header.Session)
	}
	if byCopy == nil {
		return s.openRequest(r, raw)
	}
	switch {
	case len(ticket) > 0 && errors.Is(byCopy, wire.Unavailable): // the manager may have a copy
		err = wire.Refuse(wire.Unavailable, "request: stored copy", "no response", "the copy, or that there is none")
	case len(ticket) > 0:
		err = wire.Refuse(wire.Rekey, "request: ticket", fmt.Sprint(len(ticket), " bytes that do not open"), "a session of this cluster")
	}
	s.config.Log.Debug("session does not open", "unit", s.config.Host.ID(), "session", header.Session, "reason", wire.ReasonOf(err), "ticket", byTicket, "copy", byCopy)
	return nil, err
}

// pullCopy fetches the stored copy of a session. It limits the rate for each address, because
// any client can invent a session id and each fetch costs a round trip.
func (s *Server) pullCopy(r *http.Request, session wire.SessionID) ([]byte, error) {
	if !s.intake.pulls.TakeToken(r.RemoteAddr, s.intake.now()) {
		more, want := fmt.Sprint("more than ", pullsEach), fmt.Sprint("at most ", pullsEach, " from one address")
		s.countRefusal(wire.Refuse(wire.TooMany, quotaPulls, more, want))
		return nil, wire.Refuse(wire.Unavailable, quotaPulls, more, want)
	}
	return s.config.Relay.RequestCopy(r.Context(), session)
}

// openRequest calls [channel.Host.Open] with the unit's time.
func (s *Server) openRequest(r *http.Request, raw [wire.HeaderSize]byte) (*channel.ServerRequest, error) {
	at, err := s.config.Clock()
	if err != nil {
		return nil, err
	}
	return s.config.Host.Open(raw, r.Body, at)
}

// joinSealed imports a sealed session for a request. It refuses, with "not-found", no bytes and
// a session that is not the request's session.
func (s *Server) joinSealed(sealed []byte, id wire.SessionID) error {
	if len(sealed) == 0 {
		return wire.Refuse(wire.NotFound, "sealed session", "no bytes", "a sealed session")
	}
	if u, err := envelope.ParseSealed(envelope.Session, sealed); err == nil && u.Session != id {
		return wire.Refuse(wire.NotFound, "sealed session: session", u.Session, id)
	}
	at, err := s.config.Clock()
	if err != nil {
		return err
	}
	_, err = s.config.Host.ImportSession(sealed, at)
	if errors.Is(err, wire.UnknownRing) {
		s.config.RingUnknown()
	}
	return err
}

// closeSession closes the session of a request and confirms that to the client.
func (s *Server) closeSession(w http.ResponseWriter, x *channel.ServerRequest) error {
	tombstone, err := x.Close()
	if err != nil {
		return err
	}
	if tombstone != nil {
		s.config.Relay.Push(envelope.Tombstone, tombstone)
	}
	return confirmClose(w, x)
}

func confirmClose(w http.ResponseWriter, x *channel.ServerRequest) error {
	b, err := x.ConfirmClose()
	return writeWhole(w, b, err)
}

func notExecuted(w http.ResponseWriter, x *channel.ServerRequest, reason wire.Reason) error {
	b, err := x.NotExecuted(reason)
	return writeWhole(w, b, err)
}

// writeWhole writes a response in one piece. It returns err, the error of making the response, if
// that is set.
func writeWhole(w http.ResponseWriter, b []byte, err error) error {
	if err != nil {
		return err
	}
	w.Header().Set("Content-Type", wire.TypeResponse)
	_, _ = w.Write(b) // fails only if the client has disconnected
	return nil
}

// serveApp calls the app. From then on the request may have been executed, and every response
// is either authenticated or cut off.
func (s *Server) serveApp(w http.ResponseWriter, r *http.Request, x *channel.ServerRequest) error {
	inner, err := innerRequest(r, x)
	if err == nil {
		err = s.checkTarget(inner)
	}
	if err != nil {
		return notExecuted(w, x, wire.ReasonOf(err))
	}
	a, err := newResponseWriter(w, x)
	if err != nil {
		return err
	}
	leave := func() {}
	if !x.Whole() {
		leave = fullDuplex(w, r)
	}
	a.noContent = inner.Method == http.MethodHead
	s.config.App.ServeHTTP(a, inner)
	if !x.Whole() {
		closeConnection(w, r)
	}
	if err := a.finish(); err != nil {
		panic(http.ErrAbortHandler) // cuts off the response; the client detects that
	}
	leave()
	return nil
}

// unreadWait is the time limit for reading the part of a request that the app left unread.
const unreadWait = time.Second

// fullDuplex allows a response to begin before its request has ended. For HTTP/1.1 net/http
// requires that explicitly. The handler must call leave at its end: leave flushes the response
// and discards some of the unread request. Otherwise net/http does that after the handler, and
// then panics at the next request (go.dev/issue/68560).
func fullDuplex(w http.ResponseWriter, r *http.Request) (leave func()) {
	control := http.NewResponseController(w)
	_ = control.EnableFullDuplex()
	return func() {
		_ = control.Flush()
		_ = control.SetReadDeadline(time.Now().Add(unreadWait))
		_ = r.Body.Close()
	}
}

// closeConnection makes a request that was not read to its end the last request on its HTTP/1.1
// connection, if the response has not begun. Otherwise the client might send the next request
// while the server closes the connection, and would not know the outcome of that request.
func closeConnection(w http.ResponseWriter, r *http.Request) {
	if r.ProtoMajor == 1 {
		w.Header().Set("Connection", "close")
	}
}

// innerRequest returns the inner request, for the app.
func innerRequest(outer *http.Request, x *channel.ServerRequest) (*http.Request, error) {
	head, err := x.RequestHead()
	if err != nil {
		return nil, err
	}
	rest, next := x.Plaintext()
	return head.Request(outer.WithContext(context.WithValue(outer.Context(), callerKey{}, x.Caller())), next, rest)
}

// checkTarget refuses a request for another origin than the unit's: with "malformed" a scheme
// that is not https, and with "name" a host that is none of the unit's. The port is free.
func (s *Server) checkTarget(inner *http.Request) error {
	if inner.URL.Scheme != "https" {
		return wire.Refuse(wire.Malformed, "request: scheme", inner.URL.Scheme, "https")
	}
	if !s.config.Serves(inner.Host) {
		return wire.Refuse(wire.WrongName, "request: authority", inner.Host, "the unit's task or group by name, or a DNS name of it")
	}
	return nil
}
