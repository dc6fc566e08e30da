package channel

import (
	"crypto/hpke"
	"fmt"
	"io"

	"github.com/cohort-tee/cohort/internal/bhttp"
	"github.com/cohort-tee/cohort/internal/chunk"
	"github.com/cohort-tee/cohort/internal/ohttp"
	"github.com/cohort-tee/cohort/internal/unitauth"
)

// OHTTPRequestConfig configures a one-off request.
type OHTTPRequestConfig struct {
	Form    ohttp.Form
	Body    io.ReadCloser       // content, with the length in the head
	Trailer map[string][]string // complete when Body has ended
	Valid   func() error        // returns an error once policy cuts off a unit that may have the keys; nil: never does
}

// OHTTPClientRequest is a one-off request at the client: an [io.ReadCloser] of the sealed bytes.
// It also opens the response.
type OHTTPClientRequest struct {
	header  ohttp.Header
	enc     []byte
	valid   func() error // Valid of the configuration; may be nil
	sender  *hpke.Sender
	writer  *ohttp.Writer
	body    io.ReadCloser
	trailer map[string][]string
	pending
	buf []byte
}

// SealOHTTP seals the beginning of a request, or all of a small request.
func SealOHTTP(k unitauth.OHTTPKeys, h bhttp.Head, c OHTTPRequestConfig) (*OHTTPClientRequest, error) {
	s := &OHTTPClientRequest{header: k.Key.Header, valid: c.Valid, body: c.Body, trailer: c.Trailer}
	var err error
	if s.enc, s.sender, err = c.Form.NewSender(k.Key); err != nil {
		return nil, fmt.Errorf("encapsulating: %w", err)
	}
	s.writer = &ohttp.Writer{Form: c.Form, Seal: s.sender.Seal}
	s.out = append(s.header.Encode(), s.enc...)
	if !c.Form.Chunked || 0 <= h.Length && h.Length <= MaxSmall && len(s.trailer) == 0 {
		return s, s.sealWhole(h)
	}
	h.Length = bhttp.Indeterminate
	b, err := bhttp.AppendRequest(nil, h)
	if err != nil {
		return nil, err
	}
	return s, s.sealPart(b)
}

// Whole returns the whole request if all of it is sealed, and nil otherwise. The caller must
// call it before the first Read.
func (s *OHTTPClientRequest) Whole() []byte {
	if !s.ended {
		return nil
	}
	return s.out
}

// sealPart seals the next part of the request.
func (s *OHTTPClientRequest) sealPart(plaintext []byte) error {
	sealed, err := s.writer.Append(plaintext)
	s.out = append(s.out, sealed...)
	return err
}

// sealFinal seals the last part of the request.
func (s *OHTTPClientRequest) sealFinal(plaintext []byte) error {
	sealed, err := s.writer.Finish(plaintext)
	s.out, s.ended = append(s.out, sealed...), true
	return err
}

// sealWhole reads all content and seals the whole request.
func (s *OHTTPClientRequest) sealWhole(h bhttp.Head) error {
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
	return s.sealFinal(chunk.PadToBucket(b, 0))
}

// Read reads the request's sealed bytes.
func (s *OHTTPClientRequest) Read(p []byte) (int, error) { return s.readPending(p, s.sealNext) }

// Close closes the request's body.
func (s *OHTTPClientRequest) Close() error { return s.body.Close() }

// sealNext seals the next part of the content or, at its end, the trailers.
func (s *OHTTPClientRequest) sealNext() error {
	if s.buf == nil {
		s.buf = make([]byte, partRoom+ohttp.MaxSent-4)
	}
	n, err := s.body.Read(s.buf[partRoom:])
	switch {
	case n > 0:
		return s.sealPart(indeterminatePart(s.buf, n)[chunk.LengthSize:])
	case err == io.EOF:
		end, err := bhttp.AppendTrailers([]byte{0}, s.trailer, bhttp.Indeterminate)
		if err != nil {
			return err
		}
		return s.sealFinal(end)
	}
	return err
}

// Open opens a response up to the end of its head. The form of the response may differ from
// that of the request, because gateways of other projects respond in a different form.
func (s *OHTTPClientRequest) Open(f ohttp.Form, r io.Reader) (bhttp.Head, *bhttp.Content, error) {
	nonce := make([]byte, s.header.NonceSize())
	if _, err := io.ReadFull(r, nonce); err != nil {
		return bhttp.Head{}, nil, chunk.TruncatedError(err)
	}
	key, err := f.ResponseCipher(s.sender.Export, s.header, s.enc, nonce)
	if err != nil {
		return bhttp.Head{}, nil, err
	}
	u := &ohttp.Reader{Form: f, From: r, Open: key.Open}
	h, rest, err := u.ReadHead(bhttp.ParseResponse)
	if err == nil && s.valid != nil {
		err = s.valid()
	}
	if err != nil {
		return bhttp.Head{}, nil, err
	}
	p := chunk.Decrypted(ohttpChunks{u}) // rest needs no copy: ReadHead has allocated it
	p.Valid = s.valid
	return h, bhttp.NewContent(p, h, rest), nil
}
