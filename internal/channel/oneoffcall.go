package channel

import (
	"bytes"
	"crypto/hpke"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"

	"github.com/cohort-tee/cohort/internal/bhttp"
	"github.com/cohort-tee/cohort/internal/ohttp"
	"github.com/cohort-tee/cohort/internal/wire"
)

// OneOffConfig says where one-off requests go. Every field is required but
// Stands and Whole.
type OneOffConfig struct {
	URL   *url.URL          // of the gateway's resource, or of a relay's; trusted with nothing
	Inner http.RoundTripper // sends outer requests
	Keys  OneOffKeys
	// Stands refuses once policy has cut off a unit that may hold the keys: what comes
	// of an answer from then on is not taken. Nil takes all.
	Stands func() error
	// Whole sends requests in one piece, to gateways that know RFC 9458 alone.
	// Requests and answers are then held whole, at most 256 KiB each.
	Whole bool
}

// OneOffs is an [http.RoundTripper] that sends each request for itself, over
// Oblivious HTTP, to whoever holds the private keys. Whatever carries a request
// may deliver it many times. It is safe for concurrent use.
type OneOffs struct {
	config OneOffConfig
	form   ohttp.Form
}

// NewOneOffs makes one. It refuses, with "request", a configuration that leaves
// something out.
func NewOneOffs(c OneOffConfig) (*OneOffs, error) {
	if c.URL == nil || c.Inner == nil || c.Keys.key.Public == nil {
		return nil, wire.Refuse(wire.BadRequest, "one-off: configuration", "one with gaps", "URL, inner, keys")
	}
	o := &OneOffs{config: c, form: ohttp.Chunks}
	if c.Whole {
		o.form = ohttp.Whole
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
		Header: http.Header{"Content-Type": {o.form.RequestType}, "User-Agent": nil}, Body: sent, ContentLength: bhttp.Indeterminate,
	}).WithContext(r.Context())
	if sent.ended { // and may be sent again, when a kept-alive connection is gone
		defer sent.Close()
		whole := sent.out
		outer.GetBody = func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(whole)), nil }
		outer.Body, outer.ContentLength = io.NopCloser(bytes.NewReader(whole)), int64(len(whole))
		outer.Header["X-Idempotency-Key"] = []string{} // says so to net/http and is not sent
	}
	if o.form.Chunked {
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
	header  ohttp.Header
	enc     []byte
	stands  func() error // nil: nobody asks
	sender  *hpke.Sender
	writer  *ohttp.Writer
	body    io.ReadCloser
	trailer http.Header
	outbox
	buf []byte
}

// encapsulate begins a request: a small one is whole then.
func (o *OneOffs) encapsulate(r *http.Request) (*sentOneOff, error) {
	key := o.config.Keys.key
	s := &sentOneOff{header: key.Header, stands: o.config.Stands, body: r.Body, trailer: r.Trailer}
	if s.body == nil {
		s.body = http.NoBody
	}
	var err error
	if s.enc, s.sender, err = o.form.NewSender(key); err != nil {
		return nil, fmt.Errorf("encapsulating: %w", err)
	}
	s.writer = &ohttp.Writer{Form: o.form, Seal: s.sender.Seal}
	s.out = append(s.header.Encode(), s.enc...)
	h := headOf(r)
	if r.Body == nil || r.Body == http.NoBody {
		h.Length = 0
	} else if h.Length <= 0 {
		h.Length = bhttp.Indeterminate
	}
	if !o.form.Chunked || 0 <= h.Length && h.Length <= maxSmall && len(s.trailer) == 0 {
		return s, s.whole(h)
	}
	h.Length = bhttp.Indeterminate
	b, err := bhttp.AppendRequest(nil, h)
	if err != nil {
		return nil, err
	}
	return s, s.add(b)
}

// add seals more of the request.
func (s *sentOneOff) add(plaintext []byte) error {
	sealed, err := s.writer.Add(plaintext)
	s.out = append(s.out, sealed...)
	return err
}

// end seals the last of the request.
func (s *sentOneOff) end(plaintext []byte) error {
	sealed, err := s.writer.End(plaintext)
	s.out, s.ended = append(s.out, sealed...), true
	return err
}

// whole is a request whose content is read before it is sent.
func (s *sentOneOff) whole(h bhttp.Head) error {
	content, err := io.ReadAll(io.LimitReader(s.body, ohttp.MaxWhole+1))
	if err != nil {
		return fmt.Errorf("reading the request's body: %w", err)
	}
	if h.Length != bhttp.Indeterminate && int64(len(content)) != h.Length {
		return fmt.Errorf("reading the request's body: %w", io.ErrUnexpectedEOF)
	}
	h.Length = int64(len(content))
	b, err := bhttp.AppendRequest(nil, h)
	if err != nil {
		return err
	}
	if b, err = bhttp.AppendTrailers(append(b, content...), s.trailer, h.Length); err != nil {
		return err
	}
	return s.end(pad(b, 0))
}

// Read gives the request's bytes.
func (s *sentOneOff) Read(p []byte) (int, error) { return s.take(p, s.fill) }

// Close closes the request's body.
func (s *sentOneOff) Close() error { return s.body.Close() }

// fill seals the next part of the content, or after it the trailers.
func (s *sentOneOff) fill() error {
	if s.buf == nil {
		s.buf = make([]byte, partRoom+ohttp.MaxSent-4)
	}
	n, err := s.body.Read(s.buf[partRoom:])
	switch {
	case n > 0:
		return s.add(indeterminatePart(s.buf, n)[lengthSize:])
	case err == io.EOF:
		end, err := bhttp.AppendTrailers([]byte{0}, s.trailer, bhttp.Indeterminate)
		if err != nil {
			return err
		}
		return s.end(end)
	}
	return err
}

// answer opens the answer in an outer one. Other gateways than ours may give it in
// the other form than the request has.
func (s *sentOneOff) answer(r *http.Request, outer *http.Response) (*http.Response, error) {
	f, err := ohttp.ResponseForm(outer.Header.Get("Content-Type"))
	if outer.StatusCode != http.StatusOK || err != nil {
		return nil, gatewaySaid(outer)
	}
	nonce := make([]byte, s.header.NonceSize())
	if _, err := io.ReadFull(outer.Body, nonce); err != nil {
		return nil, cutOff(err)
	}
	key, err := f.ResponseCipher(s.sender.Export, s.header, s.enc, nonce)
	if err != nil {
		return nil, err
	}
	u := &ohttp.Reader{Form: f, From: outer.Body, Open: key.Open}
	h, rest, err := u.Head(bhttp.ParseResponse)
	if err == nil && s.stands != nil {
		err = s.stands()
	}
	if err != nil {
		return nil, err
	}
	// rest is of a buffer that is nobody else's.
	c := bhttp.NewContent(&source{opener: oneOffChunks{u}, stands: s.stands}, h, rest)
	c.Closer = outer.Body
	return h.Response(r, c)
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
		return wire.Refuse(wire.TooMany, "one-off: requests of this address", "more than its quota", "fewer")
	}
	return wire.Refuse(wire.Unavailable, "one-off: outer answer", outer.StatusCode, http.StatusOK)
}
