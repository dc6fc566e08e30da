package channel

import (
	"crypto/hpke"
	"crypto/rand"
	"errors"
	"io"
	"net/http"
	"net/url"
	"sync"
	"time"

	"github.com/cohort-tee/cohort/internal/wire"
)

// oneOffWait is how long a one-off request in one piece may take to come, and of
// one in chunks the head.
const oneOffWait = 10 * time.Second

// oneOff serves one-off requests, and the key configuration for them.
func (s *Server) oneOff(w http.ResponseWriter, r *http.Request) error {
	release := sync.OnceFunc(func() { s.oneOffs.Add(-1) })
	defer release()
	if n, most := int(s.oneOffs.Add(1)), s.config.Host.limits.OneOffs; n > most {
		return wire.Refuse(wire.Overload, "unit: one-off requests under way", n, most)
	}
	switch r.Method {
	case http.MethodGet:
		return s.oneOffKeys(w, r)
	case http.MethodPost:
		return s.oneOffRequest(w, r, release)
	}
	return wire.Refuse(wire.BadRequest, "one-off: method", r.Method, "GET or POST")
}

// oneOffKeys answers with the key configuration for the pin of the query.
func (s *Server) oneOffKeys(w http.ResponseWriter, r *http.Request) error {
	pin, err := s.config.Host.pinOf(r.URL.Query())
	if err != nil {
		return err
	}
	signed, plain, err := s.config.Host.OneOffKeys(pin, s.config.Clock())
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
// encapsulated or cut off. One in chunks is from then on as cheap as one in a
// session, and released.
func (s *Server) oneOffRequest(w http.ResponseWriter, r *http.Request, release func()) error {
	f, err := formOf(r.Header.Get("Content-Type"), form.requestType)
	if err != nil {
		return err
	}
	control := http.NewResponseController(w)
	_ = control.SetReadDeadline(time.Now().Add(oneOffWait)) // a server that has none has its own limit
	x, err := s.config.Host.beginOneOff(f, r.Body, s.config.Clock())
	if err != nil {
		return err
	}
	h, rest, err := x.body.head((*parser).request)
	if err != nil && x.opened == nil {
		return err
	}
	_ = control.SetReadDeadline(time.Time{})
	leave := func() {}
	if f.chunked {
		release()
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
	if !x.body.done() {
		lastOn(w, r)
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
	capsule  capsule
	enc      []byte
	body     *uncutter
	opened   *hpke.Recipient // once the first chunk was
}

// beginOneOff reads what stands before the chunks and finds the keys that it may
// mean. It refuses with "ohttp-key" when the unit holds none.
func (h *Host) beginOneOff(f form, body io.Reader, at time.Time) (*inboundOneOff, error) {
	var raw [capsuleSize]byte
	if _, err := io.ReadFull(body, raw[:]); err != nil {
		return nil, wire.Refuse(wire.Malformed, "one-off: header", "cut off", "7 bytes")
	}
	x := &inboundOneOff{host: h, capsule: parseCapsule(raw)}
	i, err := x.capsule.suite()
	if err != nil {
		return nil, err
	}
	held, err := h.oneOffRings(x, i, at)
	if err != nil {
		return nil, err
	}
	x.enc = make([]byte, kems[i].encSize)
	if _, err := io.ReadFull(body, x.enc); err != nil {
		return nil, wire.Refuse(wire.Malformed, "one-off: encapsulated secret", "cut off", len(x.enc))
	}
	x.body = &uncutter{r: body, form: f}
	x.body.open = func(ad, ciphertext []byte) ([]byte, error) { return x.first(f, held, ad, ciphertext) }
	return x, nil
}

// oneOffRings are the private keys that the key id may mean.
func (h *Host) oneOffRings(x *inboundOneOff, i int, at time.Time) (held []hpke.PrivateKey, err error) {
	h.mu.Lock()
	at = h.at(at)
	x.standing, err = h.serving(at)
	h.mu.Unlock()
	if err != nil {
		return nil, err
	}
	for id, r := range x.standing.rings {
		if x.standing.Group != "" || oneOffID(id, i) != x.capsule.key || !at.Before(r.key.End()) {
			continue
		}
		if private, err := r.oneOffKey(i); err == nil { // else it was erased just now
			held = append(held, private)
		}
	}
	if len(held) == 0 {
		return nil, wire.Refuse(wire.OneOffKey, "one-off: key id", x.capsule.key, "that of a key that the unit holds")
	}
	return held, nil
}

// first opens the first chunk under the key that was meant; the next ones follow
// in its context.
func (x *inboundOneOff) first(f form, held []hpke.PrivateKey, ad, ciphertext []byte) (plaintext []byte, err error) {
	aead, _ := aead(x.capsule.aead)
	for _, private := range held {
		var recipient *hpke.Recipient
		wire.Secretly(func() {
			recipient, err = hpke.NewRecipient(x.enc, private, hpke.HKDFSHA256(), aead, f.info(x.capsule))
		})
		if err != nil {
			continue
		}
		if plaintext, err = recipient.Open(ad, ciphertext); err == nil {
			x.opened, x.body.open = recipient, recipient.Open
			return plaintext, nil
		}
	}
	return nil, err
}

// writer is the answer to the request, under a response nonce of its own.
func (x *inboundOneOff) writer(w http.ResponseWriter) (*answerWriter, error) {
	_, size := aead(x.capsule.aead)
	nonce := make([]byte, size)
	rand.Read(nonce) // never returns an error: it ends the program instead
	answer, err := x.body.form.answerCipher(x.opened.Export, x.capsule, x.enc, nonce)
	if err != nil {
		return nil, err
	}
	a := newWriter(w, x.host, &cutter{form: x.body.form, seal: answer.seal})
	a.kind, a.prefix = x.body.form.answer, nonce
	return a, nil
}

// serve lets the app answer. It refuses, with "not-allowed", a request that
// might be replayed to every unit and is not safe to be: at most those that are
// marked may follow, where policy says so.
func (x *inboundOneOff) serve(app http.Handler, a *answerWriter, outer *http.Request, h head, rest []byte) error {
	marked := x.standing.OneOff && h.fields.Get("Idempotency-Key") != ""
	if !safeMethods[h.method] && !marked {
		return wire.Refuse(wire.NotAllowed, "one-off: method", h.method, "a safe one")
	}
	if h.fields.Get("Expect") != "" {
		return wire.Refuse(wire.BadRequest, "one-off: expectation", h.fields.Get("Expect"), "none")
	}
	r, err := h.inner(outer.WithContext(outer.Context()), &source{opener: x.body}, rest)
	if err != nil {
		return err
	}
	a.noContent = h.method == http.MethodHead
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
