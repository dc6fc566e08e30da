package channel

import (
	"crypto/hpke"
	"crypto/rand"
	"errors"
	"io"
	"net/http"
	"net/url"
	"time"

	"github.com/cohort-tee/cohort/internal/bhttp"
	"github.com/cohort-tee/cohort/internal/limit"
	"github.com/cohort-tee/cohort/internal/ohttp"
	"github.com/cohort-tee/cohort/internal/wire"
)

// bodyWait is how long an open request, or a one-off request in one piece, may take
// to come, and of one in chunks the head.
const bodyWait = 10 * time.Second

// oneOff serves one-off requests, and the key configuration for them.
func (s *Server) oneOff(w http.ResponseWriter, r *http.Request) error {
	at, err := s.config.Clock()
	if err != nil {
		return err
	}
	if _, _, err := s.config.Host.forOneOffs(at); err != nil {
		return err
	}
	switch r.Method {
	case http.MethodGet:
		return s.oneOffKeys(w, r, at)
	case http.MethodPost:
		return s.oneOffRequest(w, r, at)
	}
	return wire.Refuse(wire.BadRequest, "one-off: method", r.Method, "GET or POST")
}

// oneOffKeys answers with the key configuration for the pin of the query.
func (s *Server) oneOffKeys(w http.ResponseWriter, r *http.Request, at time.Time) error {
	pin, err := s.config.Host.pinOf(r.URL.Query())
	if err != nil {
		return err
	}
	place := reserved{shares: s.intake.oneOffs, from: limit.AddressOf(r.RemoteAddr)}
	if err := place.take(1); err != nil {
		return err
	}
	signed, plain, err := s.config.Host.OneOffKeys(pin, at)
	place.give() // the client may take its time
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
	_ = err // the client may be gone, and there is nobody else to tell
	return nil
}

// pinOf is the pin of a query: a task, an identity, or the unit's own task.
func (h *Host) pinOf(query url.Values) (pin Pin, err error) {
	task, id := query["task"], query["id"]
	switch {
	case len(query) == 0:
		h.mu.Lock()
		defer h.mu.Unlock()
		if h.standing != nil {
			pin.Task = h.standing.Task
		}
		return pin, nil
	case len(query) == 1 && len(task) == 1 && wire.NameOK(task[0]):
		return Pin{Task: task[0]}, nil
	case len(query) == 1 && len(id) == 1:
		pin.ID, err = wire.ParseDigest(id[0])
		if err == nil {
			return pin, nil
		}
	}
	return Pin{}, wire.Refuse(wire.BadRequest, "one-off: query", query.Encode(), "task=NAME or id=IDENTITY")
}

// oneOffRequest answers a one-off request. Once it is opened, every answer is
// encapsulated or cut off. It takes a place when its first chunk is there, which
// takes a private key to open, and returns it when the answer is made; one in chunks
// is from its head on as cheap as one in a session, and returns it then.
func (s *Server) oneOffRequest(w http.ResponseWriter, r *http.Request, at time.Time) error {
	f, err := ohttp.RequestForm(r.Header.Get("Content-Type"))
	if err != nil {
		return err
	}
	from := limit.AddressOf(r.RemoteAddr)
	kept, place := reserved{shares: s.intake.reading, from: from}, reserved{shares: s.intake.oneOffs, from: from}
	defer kept.give()
	defer place.give()
	if err := kept.take(oneOffReading(f, r)); err != nil {
		return err
	}
	control := http.NewResponseController(w)
	_ = control.SetReadDeadline(time.Now().Add(bodyWait)) // a server that has none has its own limit
	x, err := s.config.Host.beginOneOff(f, r.Body, at)
	if err != nil {
		return err
	}
	open := x.body.Open
	x.body.Open = func(ad, ciphertext []byte) ([]byte, error) {
		if err := place.take(1); err != nil {
			return nil, err
		}
		return open(ad, ciphertext)
	}
	h, rest, err := x.body.Head(bhttp.ParseRequest)
	if err != nil && x.opened == nil {
		return err
	}
	_ = control.SetReadDeadline(time.Time{})
	leave := func() {}
	if f.Chunked {
		place.give()
		kept.give()
		leave = fullDuplex(w, r)
	}
	answered, sealErr := x.writer(w)
	if sealErr != nil {
		return sealErr
	}
	if err == nil {
		err = x.serve(s.config.App, answered, r, h, rest)
	}
	if err != nil {
		problem(answered, err) // the app was not asked
	}
	if !x.body.Done() {
		lastOn(w, r)
	}
	place.give() // the client may take its time, and what is kept for it counts
	if err := kept.take(answered.kept()); err != nil {
		return err
	}
	if err := x.finish(w, answered); err != nil {
		return err
	}
	leave()
	return nil
}

// inboundOneOff is a one-off request as a unit serves it.
type inboundOneOff struct {
	host     *Host
	standing *standing
	header   ohttp.Header
	enc      []byte
	body     *ohttp.Reader
	opened   *hpke.Recipient // once the first chunk was
}

// beginOneOff reads what stands before the chunks and finds the keys that it may
// mean. It refuses with "ohttp-key" when the unit holds none.
func (h *Host) beginOneOff(f ohttp.Form, body io.Reader, at time.Time) (*inboundOneOff, error) {
	var raw [ohttp.HeaderSize]byte
	if _, err := io.ReadFull(body, raw[:]); err != nil {
		return nil, wire.Refuse(wire.Malformed, "one-off: header", "cut off", "7 bytes")
	}
	st, k, err := h.forOneOffs(at)
	if err != nil {
		return nil, err
	}
	x := &inboundOneOff{host: h, standing: st, header: ohttp.ParseHeader(raw)}
	i, err := x.header.KEM()
	if err != nil {
		return nil, err
	}
	held, err := x.rings(i, k, at)
	if err != nil {
		return nil, err
	}
	x.enc = make([]byte, ohttp.KEMs[i].EncSize)
	if _, err := io.ReadFull(body, x.enc); err != nil {
		return nil, wire.Refuse(wire.Malformed, "one-off: encapsulated secret", "cut off", len(x.enc))
	}
	x.body = &ohttp.Reader{Form: f, From: body}
	x.body.Open = func(ad, ciphertext []byte) ([]byte, error) { return x.first(f, held, ad, ciphertext) }
	return x, nil
}

// forOneOffs is what the unit is and knows, if it serves one-off requests at all. It
// refuses, with "not-found", a unit of a group.
func (h *Host) forOneOffs(at time.Time) (*standing, known, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	st, err := h.serving(h.at(at))
	if err != nil {
		return nil, known{}, err
	}
	if st.Group != "" {
		return nil, known{}, wire.Refuse(wire.NotFound, "one-off", "a unit of group "+st.Group, "one of a task")
	}
	return st, h.known, nil
}

// rings are the private keys that the key id may mean, but for those that a unit
// which was cut off may hold.
func (x *inboundOneOff) rings(i int, k known, at time.Time) (held []hpke.PrivateKey, err error) {
	for id, r := range x.standing.rings {
		if oneOffID(id, i) != x.header.Key || !at.Before(r.key.End()) || k.old[id] {
			continue
		}
		if private, err := r.oneOffKey(i); err == nil { // else it was erased just now
			held = append(held, private)
		}
	}
	if len(held) == 0 {
		return nil, wire.Refuse(wire.OneOffKey, "one-off: key id", x.header.Key, "that of a key that the unit holds")
	}
	return held, nil
}

// first opens the first chunk under the key that was meant; the next ones follow
// in its context.
func (x *inboundOneOff) first(f ohttp.Form, held []hpke.PrivateKey, ad, ciphertext []byte) (plaintext []byte, err error) {
	for _, private := range held {
		var recipient *hpke.Recipient
		if recipient, err = f.NewRecipient(x.header, x.enc, private); err != nil {
			continue
		}
		if plaintext, err = recipient.Open(ad, ciphertext); err == nil {
			x.opened, x.body.Open = recipient, recipient.Open
			return plaintext, nil
		}
	}
	return nil, err
}

// writer is the answer to the request, under a response nonce of its own.
func (x *inboundOneOff) writer(w http.ResponseWriter) (*answerWriter, error) {
	nonce := make([]byte, x.header.NonceSize())
	rand.Read(nonce) // never returns an error: it ends the program instead
	answer, err := x.body.Form.ResponseCipher(x.opened.Export, x.header, x.enc, nonce)
	if err != nil {
		return nil, err
	}
	a := newWriter(w, x.host, oneOffOutlet{&ohttp.Writer{Form: x.body.Form, Seal: answer.Seal}})
	a.kind, a.prefix = x.body.Form.ResponseType, nonce
	return a, nil
}

// serve lets the app answer. It refuses, with "not-allowed", a request that
// might be replayed to every unit and is not safe to be: at most those that are
// marked may follow, where policy says so.
func (x *inboundOneOff) serve(app http.Handler, a *answerWriter, outer *http.Request, h bhttp.Head, rest []byte) error {
	if !safeMethods[h.Method] && !(x.standing.OneOff && marked(h.Fields)) {
		return wire.Refuse(wire.NotAllowed, "one-off: method", h.Method, "a safe one")
	}
	if h.Fields.Get("Expect") != "" {
		return wire.Refuse(wire.BadRequest, "one-off: expectation", h.Fields.Get("Expect"), "none")
	}
	r, err := h.Request(outer.WithContext(outer.Context()), &source{opener: oneOffChunks{x.body}}, rest)
	if err != nil {
		return err
	}
	a.noContent = h.Method == http.MethodHead
	app.ServeHTTP(a, r)
	return nil
}

// finish ends the answer. In place of one that is more than one piece may hold,
// of which nothing was sent, it says so.
func (x *inboundOneOff) finish(w http.ResponseWriter, a *answerWriter) error {
	err := a.finish()
	if err == nil {
		return nil
	}
	if a.begun || !errors.Is(err, wire.TooLarge) {
		panic(http.ErrAbortHandler) // cuts the answer off, which the client notices
	}
	p := problemFor(err)
	p.Status = http.StatusInternalServerError
	if a, err = x.writer(w); err != nil {
		return err
	}
	p.Write(a)
	return a.finish()
}

// oneOffChunks are the chunks of a message as [source] reads them.
type oneOffChunks struct{ *ohttp.Reader }

func (c oneOffChunks) next() ([]byte, place, error) {
	b, last, err := c.Next()
	if last {
		return b, final, err
	}
	return b, inner, err
}

func (c oneOffChunks) done() bool { return c.Done() }
func (c oneOffChunks) release()   {}

// oneOffOutlet encrypts a response as [answerWriter] writes it.
type oneOffOutlet struct{ *ohttp.Writer }

func (o oneOffOutlet) put(b []byte, at place) ([]byte, error) {
	if at == final {
		return o.End(b[lengthSize:])
	}
	return o.Add(b[lengthSize:])
}
