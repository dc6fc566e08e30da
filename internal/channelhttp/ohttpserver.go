package channelhttp

import (
	"errors"
	"net/http"
	"net/url"
	"time"

	"github.com/cohort-tee/cohort/internal/bhttp"
	"github.com/cohort-tee/cohort/internal/channel"
	"github.com/cohort-tee/cohort/internal/limit"
	"github.com/cohort-tee/cohort/internal/ohttp"
	"github.com/cohort-tee/cohort/internal/unitauth"
	"github.com/cohort-tee/cohort/internal/wire"
)

// serveOHTTP serves one-off requests, and the key configuration for them.
func (s *Server) serveOHTTP(w http.ResponseWriter, r *http.Request) error {
	at, err := s.config.Clock()
	if err != nil {
		return err
	}
	if err := s.config.Host.ServesOHTTP(at); err != nil {
		return err
	}
	switch r.Method {
	case http.MethodGet:
		return s.serveOHTTPKeys(w, r, at)
	case http.MethodPost:
		return s.serveOHTTPRequest(w, r, at)
	}
	return wire.Refuse(wire.BadRequest, "one-off: method", r.Method, "GET or POST")
}

// serveOHTTPKeys serves the key configuration for the pin of the query.
func (s *Server) serveOHTTPKeys(w http.ResponseWriter, r *http.Request, at time.Time) error {
	pin, err := s.pinOf(r.URL.Query())
	if err != nil {
		return err
	}
	place := reserved{shares: s.intake.oneOffs, from: limit.AddressOf(r.RemoteAddr)}
	if err := place.takeShare(1); err != nil {
		return err
	}
	signed, plain, err := s.config.Host.OHTTPKeys(pin, at)
	place.giveBack() // a client that reads slowly must not keep the share
	if err != nil {
		return err
	}
	w.Header().Set("Cache-Control", "no-store")
	if r.Header.Get("Accept") == wire.TypeKeys {
		w.Header().Set("Content-Type", wire.TypeKeys)
		_, err = w.Write(plain)
	} else {
		w.Header().Set("Content-Type", wire.TypeSignedKeys)
		_, err = w.Write(signed)
	}
	_ = err // set only if the client has disconnected
	return nil
}

// pinOf returns the pin in a query: a task or an identity. Without a query it is the unit's own
// task.
func (s *Server) pinOf(query url.Values) (pin unitauth.Pin, err error) {
	task, id := query["task"], query["id"]
	switch {
	case len(query) == 0:
		return unitauth.Pin{Task: s.config.Host.TaskName()}, nil
	case len(query) == 1 && len(task) == 1 && wire.ValidName(task[0]):
		return unitauth.Pin{Task: task[0]}, nil
	case len(query) == 1 && len(id) == 1:
		pin.ID, err = wire.ParseDigest(id[0])
		if err == nil {
			return pin, nil
		}
	}
	return unitauth.Pin{}, wire.Refuse(wire.BadRequest, "one-off: query", query.Encode(), "task=NAME or id=IDENTITY")
}

// serveOHTTPRequest responds to a one-off request. Once the request is opened, every response is
// either encapsulated or cut off. The request counts in the quota of one-off requests from the
// arrival of its first chunk, which needs an expensive private-key operation, until its response
// is made. A request in chunks counts only until its head is opened: after that it is as cheap
// as a request in a session.
func (s *Server) serveOHTTPRequest(w http.ResponseWriter, r *http.Request, at time.Time) error {
	f, err := ohttp.RequestForm(r.Header.Get("Content-Type"))
	if err != nil {
		return err
	}
	from := limit.AddressOf(r.RemoteAddr)
	kept, place := reserved{shares: s.intake.reading, from: from}, reserved{shares: s.intake.oneOffs, from: from}
	defer kept.giveBack()
	defer place.giveBack()
	if err := kept.takeShare(ohttpReading(f, r)); err != nil {
		return err
	}
	control := http.NewResponseController(w)
	_ = control.SetReadDeadline(time.Now().Add(bodyWait)) // a server without deadlines has its own limit
	x, err := s.config.Host.OpenOHTTP(f, r.Body, at)
	if err != nil {
		return err
	}
	h, rest, err := x.OpenHead(func() error { return place.takeShare(1) })
	if err != nil && !x.Opened() {
		return err
	}
	_ = control.SetReadDeadline(time.Time{})
	leave := func() {}
	if f.Chunked {
		place.giveBack()
		kept.giveBack()
		leave = fullDuplex(w, r)
	}
	writer, sealErr := newOHTTPWriter(w, x)
	if sealErr != nil {
		return sealErr
	}
	if err == nil {
		err = s.serveOHTTPApp(writer, r, x, h, rest)
	}
	if err != nil {
		writeProblem(writer, err) // the app was not called for this request
	}
	if !x.Whole() {
		closeConnection(w, r)
	}
	place.giveBack() // from here on, only the buffered bytes of the response count
	if err := kept.takeShare(writer.responder.SizeBuffered()); err != nil {
		return err
	}
	if err := finishOHTTP(w, x, writer); err != nil {
		return err
	}
	leave()
	return nil
}

// newOHTTPWriter makes the writer of the response to a one-off request.
func newOHTTPWriter(w http.ResponseWriter, x *channel.OHTTPServerRequest) (*responseWriter, error) {
	r, err := x.Responder(w)
	if err != nil {
		return nil, err
	}
	return newWriterOf(w, x.MessageForm().ResponseType, r), nil
}

// serveOHTTPApp calls the app. It refuses as [channel.OHTTPServerRequest.Allowed] and
// [Server.checkTarget] do.
func (s *Server) serveOHTTPApp(a *responseWriter, outer *http.Request, x *channel.OHTTPServerRequest, h bhttp.Head, rest []byte) error {
	if err := x.Allowed(h); err != nil {
		return err
	}
	r, err := h.Request(outer.WithContext(outer.Context()), x.Plaintext(), rest)
	if err == nil {
		err = s.checkTarget(r)
	}
	if err != nil {
		return err
	}
	a.noContent = h.Method == http.MethodHead
	s.config.App.ServeHTTP(a, r)
	return nil
}

// finishOHTTP ends the response. If the response is too large for one piece and nothing of it
// was sent, finishOHTTP sends a problem instead.
func finishOHTTP(w http.ResponseWriter, x *channel.OHTTPServerRequest, a *responseWriter) error {
	err := a.finish()
	if err == nil {
		return nil
	}
	if a.responder.Begun() || !errors.Is(err, wire.TooLarge) {
		panic(http.ErrAbortHandler) // cuts off the response; the client detects that
	}
	p := problemFor(err)
	p.Status = http.StatusInternalServerError
	if a, err = newOHTTPWriter(w, x); err != nil {
		return err
	}
	p.Write(a)
	return a.finish()
}
