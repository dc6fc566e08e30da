package channel

import (
	"bytes"
	"crypto/hpke"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"

	"github.com/cohort-tee/cohort/internal/wire"
)

// OneOffConfig says where one-off requests go. Every field is required but
// Whole.
type OneOffConfig struct {
	URL   *url.URL          // of the gateway's resource, or of a relay's; trusted with nothing
	Inner http.RoundTripper // sends outer requests
	Keys  OneOffKeys
	// Whole sends requests in one piece, to gateways that know RFC 9458 alone.
	// Requests and answers are then held whole, at most 256 KiB each.
	Whole bool
}

// OneOffs is an [http.RoundTripper] that sends each request for itself, over
// Oblivious HTTP, to whoever holds the private keys. Whatever carries a request
// may deliver it many times. It is safe for concurrent use.
type OneOffs struct {
	config OneOffConfig
	form   form
}

// NewOneOffs makes one. It refuses, with "request", a configuration that leaves
// something out.
func NewOneOffs(c OneOffConfig) (*OneOffs, error) {
	if c.URL == nil || c.Inner == nil || c.Keys.key.public == nil {
		return nil, wire.Refuse(wire.BadRequest, "one-off: configuration", "one with gaps", "URL, inner, keys")
	}
	o := &OneOffs{config: c, form: chunkForm}
	if c.Whole {
		o.form = wholeForm
	}
	return o, nil
}

// RoundTrip sends a request once and gives its answer, which is of somebody who
// holds the private key, unchanged and for this request. It refuses with
// "ohttp-key" when the gateway says that nobody does, with "rate" when it says
// that they are too many, with "unavailable" any other answer of the gateway's own, and with "truncated" what ends early.
func (o *OneOffs) RoundTrip(r *http.Request) (*http.Response, error) {
	answer, err := o.roundTrip(r)
	if err != nil {
		return nil, fmt.Errorf("calling %s %s: %w", r.Method, r.URL.Redacted(), err)
	}
	return answer, nil
}

func (o *OneOffs) roundTrip(r *http.Request) (*http.Response, error) {
	sent, err := o.encapsulate(r)
	if err != nil {
		if r.Body != nil {
			r.Body.Close()
		}
		return nil, err
	}
	outer := (&http.Request{
		Method: http.MethodPost, URL: o.config.URL, Host: o.config.URL.Host, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
		Header: http.Header{"Content-Type": {o.form.request}, "User-Agent": nil}, Body: sent, ContentLength: indeterminate,
	}).WithContext(r.Context())
	if sent.ended { // and may be sent again, when a kept-alive connection is gone
		defer sent.Close()
		whole := sent.out
		outer.GetBody = func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(whole)), nil }
		outer.Body, outer.ContentLength = io.NopCloser(bytes.NewReader(whole)), int64(len(whole))
		outer.Header["X-Idempotency-Key"] = []string{} // says so to net/http and is not sent
	}
	if o.form.chunked {
		outer.Header["Incremental"] = []string{"?1"} // so that no relay waits for the end
	}
	answer, err := o.config.Inner.RoundTrip(outer)
	if err != nil {
		return nil, err
	}
	opened, err := sent.answer(r, answer)
	if err != nil {
		answer.Body.Close()
	}
	return opened, err
}

// sentOneOff is a request on its way: an io.ReadCloser of what is sent.
type sentOneOff struct {
	capsule capsule
	enc     []byte
	sender  *hpke.Sender
	cutter  *cutter
	body    io.ReadCloser
	trailer http.Header
	outbox
	buf []byte
}

// encapsulate begins a request: a small one is whole then.
func (o *OneOffs) encapsulate(r *http.Request) (*sentOneOff, error) {
	key := o.config.Keys.key
	s := &sentOneOff{capsule: key.capsule, body: r.Body, trailer: r.Trailer}
	if s.body == nil {
		s.body = http.NoBody
	}
	var err error
	wire.Secretly(func() {
		aead, _ := aead(key.aead)
		s.enc, s.sender, err = hpke.NewSender(key.public, hpke.HKDFSHA256(), aead, o.form.info(key.capsule))
	})
	if err != nil {
		return nil, fmt.Errorf("encapsulating: %w", err)
	}
	s.cutter = &cutter{form: o.form, seal: s.sender.Seal}
	s.out = append(s.capsule.bytes(), s.enc...)
	h := headOf(r)
	if r.Body == nil || r.Body == http.NoBody {
		h.length = 0
	} else if h.length <= 0 {
		h.length = indeterminate
	}
	if !o.form.chunked || 0 <= h.length && h.length <= maxSmall && len(s.trailer) == 0 {
		return s, s.whole(h)
	}
	h.length = indeterminate
	b, err := appendRequest(nil, h)
	if err != nil {
		return nil, err
	}
	return s, s.add(b, inner)
}

// add seals more of the request.
func (s *sentOneOff) add(plaintext []byte, at place) error {
	sealed, err := s.cutter.add(plaintext, at)
	s.out, s.ended = append(s.out, sealed...), at == final
	return err
}

// whole is a request whose content is read before it is sent.
func (s *sentOneOff) whole(h head) error {
	content, err := io.ReadAll(io.LimitReader(s.body, maxWhole+1))
	if err != nil {
		return fmt.Errorf("reading the request's body: %w", err)
	}
	if h.length != indeterminate && int64(len(content)) != h.length {
		return fmt.Errorf("reading the request's body: %w", io.ErrUnexpectedEOF)
	}
	h.length = int64(len(content))
	b, err := appendRequest(nil, h)
	if err != nil {
		return err
	}
	if b, err = appendEnd(append(b, content...), s.trailer, h.length); err != nil {
		return err
	}
	return s.add(pad(b, 0), final)
}

// Read gives the request's bytes.
func (s *sentOneOff) Read(p []byte) (int, error) { return s.take(p, s.fill) }

// Close closes the request's body.
func (s *sentOneOff) Close() error { return s.body.Close() }

// fill seals the next part of the content, or after it the trailers.
func (s *sentOneOff) fill() error {
	if s.buf == nil {
		s.buf = make([]byte, partRoom+maxSent-4)
	}
	n, err := s.body.Read(s.buf[partRoom:])
	switch {
	case n > 0:
		return s.add(indeterminatePart(s.buf, n)[lengthSize:], inner)
	case err == io.EOF:
		end, err := appendEnd([]byte{0}, s.trailer, indeterminate)
		if err != nil {
			return err
		}
		return s.add(end, final)
	}
	return err
}

// answer opens the answer in an outer one. Other gateways than ours may give it in
// the other form than the request has.
func (s *sentOneOff) answer(r *http.Request, outer *http.Response) (*http.Response, error) {
	f, err := formOf(outer.Header.Get("Content-Type"), form.answerType)
	if outer.StatusCode != http.StatusOK || err != nil {
		return nil, gatewaySaid(outer)
	}
	_, size := aead(s.capsule.aead)
	nonce := make([]byte, size)
	if _, err := io.ReadFull(outer.Body, nonce); err != nil {
		return nil, cutOff(err)
	}
	key, err := f.answerCipher(s.sender.Export, s.capsule, s.enc, nonce)
	if err != nil {
		return nil, err
	}
	u := &uncutter{r: outer.Body, form: f, open: key.open}
	h, rest, err := u.head((*parser).response)
	if err != nil {
		return nil, err
	}
	// rest is of a buffer that is nobody else's.
	c := newContent(&source{opener: u}, h, rest)
	c.closer = outer.Body
	return h.response(r, c), nil
}

// maxSaid bounds in bytes what is read of an answer of the gateway's own.
const maxSaid = 16 << 10

// gatewaySaid is the error of an outer answer that holds no inner one. Nobody
// authenticates it.
func gatewaySaid(outer *http.Response) error {
	b, _ := io.ReadAll(io.LimitReader(outer.Body, maxSaid))
	var p struct{ Type string }
	if json.Unmarshal(bytes.TrimSpace(b), &p) == nil && p.Type == typeOneOffKey {
		return wire.Refuse(wire.OneOffKey, "one-off: key", "not known to the units", "one of a key configuration that is in force")
	}
	if outer.StatusCode == http.StatusTooManyRequests {
		return wire.Refuse(wire.TooMany, "one-off: requests a second", "more", "fewer from this address")
	}
	return wire.Refuse(wire.Unavailable, "one-off: outer answer", outer.StatusCode, http.StatusOK)
}
