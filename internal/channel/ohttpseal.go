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
	Body    io.ReadCloser       // the content, of the head's length
	Trailer map[string][]string // filled in by the time Body has ended
	Valid   func() error        // refuses once policy has cut off a unit that may have the keys; nil: never
}

// OHTTPClientRequest is a one-off request at its client: an [io.ReadCloser] of the sealed
// bytes. It opens the response too.
type OHTTPClientRequest struct {
	header  ohttp.Header
	enc     []byte
	valid   func() error // nil: never
	sender  *hpke.Sender
	writer  *ohttp.Writer
	body    io.ReadCloser
	trailer map[string][]string
	pending
	buf []byte
}

// SealOHTTP begins a request: a small one is whole then.
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

// Whole returns the whole request, if all of it is sealed; nil otherwise. It is called
// before the first Read.
func (s *OHTTPClientRequest) Whole() []byte {
	if !s.ended {
		return nil
	}
	return s.out
}

// sealPart seals more of the request.
func (s *OHTTPClientRequest) sealPart(plaintext []byte) error {
	sealed, err := s.writer.Append(plaintext)
	s.out = append(s.out, sealed...)
	return err
}

// sealFinal seals the last of the request.
func (s *OHTTPClientRequest) sealFinal(plaintext []byte) error {
	sealed, err := s.writer.Finish(plaintext)
	s.out, s.ended = append(s.out, sealed...), true
	return err
}

// sealWhole seals a request whose content is read before it is sent.
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

// Read returns the request's bytes.
func (s *OHTTPClientRequest) Read(p []byte) (int, error) { return s.readPending(p, s.sealNext) }

// Close closes the request's body.
func (s *OHTTPClientRequest) Close() error { return s.body.Close() }

// sealNext seals the next part of the content, or after it the trailers.
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

// Open opens a response up to the end of its head. Its form may differ from that of
// the request: gateways of other projects do that.
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
	p := chunk.Decrypted(ohttpChunks{u}) // rest needs no copy: ReadHead allocates it
	p.Valid = s.valid
	return h, bhttp.NewContent(p, h, rest), nil
}
