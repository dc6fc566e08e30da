package channel

import (
	"crypto/hpke"
	"crypto/rand"
	"io"
	"time"

	"github.com/cohort-tee/cohort/internal/bhttp"
	"github.com/cohort-tee/cohort/internal/chunk"
	"github.com/cohort-tee/cohort/internal/ohttp"
	"github.com/cohort-tee/cohort/internal/wire"
)

// OHTTPServerRequest is a one-off request at the unit that serves it. Only one goroutine may
// use it at a time.
type OHTTPServerRequest struct {
	host        *Host
	credentials *credentials
	header      ohttp.Header
	enc         []byte
	body        *ohttp.Reader
	opened      *hpke.Recipient // nil before the first chunk is opened
}

// OpenOHTTP reads the header and the encapsulated secret of a request, and finds the private
// keys that match the key id. It refuses with "ohttp-key" if the unit has no such key.
func (h *Host) OpenOHTTP(f ohttp.Form, body io.Reader, at time.Time) (*OHTTPServerRequest, error) {
	var raw [ohttp.HeaderSize]byte
	if _, err := io.ReadFull(body, raw[:]); err != nil {
		return nil, wire.Refuse(wire.Malformed, "one-off: header", "cut off", "7 bytes")
	}
	st, k, err := h.forOHTTP(at)
	if err != nil {
		return nil, err
	}
	x := &OHTTPServerRequest{host: h, credentials: st, header: ohttp.ParseHeader(raw)}
	i, err := x.header.KEMIndex()
	if err != nil {
		return nil, err
	}
	known, err := x.rings(i, k, at)
	if err != nil {
		return nil, err
	}
	x.enc = make([]byte, ohttp.KEMs[i].EncSize)
	if _, err := io.ReadFull(body, x.enc); err != nil {
		return nil, wire.Refuse(wire.Malformed, "one-off: encapsulated secret", "cut off", len(x.enc))
	}
	x.body = &ohttp.Reader{Form: f, From: body}
	x.body.Open = func(ad, ciphertext []byte) ([]byte, error) { return x.openFirst(f, known, ad, ciphertext) }
	return x, nil
}

// ServesOHTTP returns the refusal of [Host.OpenOHTTP] while the unit serves no one-off requests.
func (h *Host) ServesOHTTP(at time.Time) error {
	_, _, err := h.forOHTTP(at)
	return err
}

// forOHTTP returns credentials and known policy for serving one-off requests. It refuses with
// "not-found" if the unit belongs to a group.
func (h *Host) forOHTTP(at time.Time) (*credentials, knownPolicy, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	st, err := h.serving(h.advanceClock(at))
	if err != nil {
		return nil, knownPolicy{}, err
	}
	if st.Group != "" {
		return nil, knownPolicy{}, wire.Refuse(wire.NotFound, "one-off", "a unit of group "+st.Group, "a unit of a task")
	}
	return st, h.known, nil
}

// rings returns the private keys that match the request's key id, without keys that a cut-off unit
// may have.
func (x *OHTTPServerRequest) rings(i int, k knownPolicy, at time.Time) (known []hpke.PrivateKey, err error) {
	for id, r := range x.credentials.rings {
		if oneOffID(id, i) != x.header.Key || !at.Before(r.key.Expires()) || k.old[id] {
			continue
		}
		if private, err := r.oneOffKey(i); err == nil { // on an error the ring key was just erased
			known = append(known, private)
		}
	}
	if len(known) == 0 {
		return nil, wire.Refuse(wire.OneOffKey, "one-off: key id", x.header.Key, "the id of a key of the unit")
	}
	return known, nil
}

// openFirst tries the known private keys on the first chunk. The HPKE context of the key that
// opens it opens the next chunks.
func (x *OHTTPServerRequest) openFirst(f ohttp.Form, known []hpke.PrivateKey, ad, ciphertext []byte) (plaintext []byte, err error) {
	for _, private := range known {
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

// OpenHead reads and opens the first chunk and returns the head; rest is the content after it.
// Opening needs an expensive private-key operation. Just before that, OpenHead calls admit,
// which refuses a request for which the unit has no room.
func (x *OHTTPServerRequest) OpenHead(admit func() error) (h bhttp.Head, rest []byte, err error) {
	open := x.body.Open
	x.body.Open = func(ad, ciphertext []byte) ([]byte, error) {
		if err := admit(); err != nil {
			return nil, err
		}
		return open(ad, ciphertext)
	}
	return x.body.ReadHead(bhttp.ParseRequest)
}

// Opened reports whether the first chunk was opened. Only then can a response be encrypted.
func (x *OHTTPServerRequest) Opened() bool { return x.opened != nil }

// MessageForm returns the form of the request, which its response has too.
func (x *OHTTPServerRequest) MessageForm() ohttp.Form { return x.body.Form }

// Whole reports whether the final chunk of the request was read.
func (x *OHTTPServerRequest) Whole() bool { return x.body.Done() }

// Plaintext returns the chunks after the first one.
func (x *OHTTPServerRequest) Plaintext() bhttp.Chunks { return chunk.Decrypted(ohttpChunks{x.body}) }

// Allowed refuses, with "not-allowed", a request whose method is not safe, because an intermediary
// can replay it to every unit. Policy can allow unsafe requests with an Idempotency-Key. Allowed
// also refuses, with "request", a request that has an Expect field.
func (x *OHTTPServerRequest) Allowed(h bhttp.Head) error {
	if !IsSafe(h.Method) && !(x.credentials.OneOff && HasIdempotencyKey(h.Fields)) {
		return wire.Refuse(wire.NotAllowed, "one-off: method", h.Method, "a safe method")
	}
	if h.Fields.Get("Expect") != "" {
		return wire.Refuse(wire.BadRequest, "one-off: expectation", h.Fields.Get("Expect"), "no expectation")
	}
	return nil
}

// Responder makes a responder that writes to w, with a random response nonce.
func (x *OHTTPServerRequest) Responder(w io.Writer) (*Responder, error) {
	nonce := make([]byte, x.header.NonceSize())
	rand.Read(nonce) // never returns an error: it ends the program instead
	response, err := x.body.Form.ResponseCipher(x.opened.Export, x.header, x.enc, nonce)
	if err != nil {
		return nil, err
	}
	return newResponder(w, x.host, ohttpSink{&ohttp.Writer{Form: x.body.Form, Seal: response.Seal}}, nonce), nil
}

// ohttpChunks adapts the chunks of a message to [chunk.Plaintext].
type ohttpChunks struct{ *ohttp.Reader }

func (c ohttpChunks) Next() ([]byte, chunk.Flag, error) {
	b, last, err := c.Reader.Next()
	if last {
		return b, chunk.Final, err
	}
	return b, chunk.More, err
}

// Release does nothing: the reader keeps its buffer.
func (c ohttpChunks) Release() {}

// ohttpSink encrypts the chunks of the response to a one-off request.
type ohttpSink struct{ *ohttp.Writer }

func (o ohttpSink) encrypt(b []byte, at chunk.Flag) ([]byte, error) {
	if at == chunk.Final {
		return o.Finish(b[chunk.LengthSize:])
	}
	return o.Append(b[chunk.LengthSize:])
}
