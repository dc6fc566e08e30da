package ohttp

import (
	"errors"
	"fmt"
	"io"

	"github.com/cohort-tee/cohort/internal/bhttp"
	"github.com/cohort-tee/cohort/internal/wire"
)

// Writer encrypts a message: whole, which it buffers until the end, or in chunks.
type Writer struct {
	Form Form
	Seal func(ad, plaintext []byte) (ciphertext []byte, err error) // of the next chunk

	buffered []byte
	full     error // nothing more is accepted
}

// Append adds plaintext and returns the ciphertext to send now. It refuses, with "too-large",
// more than a whole message may contain.
func (w *Writer) Append(plaintext []byte) (out []byte, err error) {
	if !w.Form.Chunked {
		return nil, w.buffer(plaintext)
	}
	for len(plaintext) > 0 {
		n := min(len(plaintext), MaxSent)
		if out, err = w.chunk(out, plaintext[:n]); err != nil {
			return nil, err
		}
		plaintext = plaintext[n:]
	}
	return out, nil
}

// Finish is Append for the last plaintext of the message. The length of the final chunk is
// encoded as 0, because it extends to the end.
func (w *Writer) Finish(plaintext []byte) (out []byte, err error) {
	if !w.Form.Chunked {
		if err := w.buffer(plaintext); err != nil {
			return nil, err
		}
		return w.Seal(nil, w.buffered)
	}
	for len(plaintext) > MaxSent {
		if out, err = w.chunk(out, plaintext[:MaxSent]); err != nil {
			return nil, err
		}
		plaintext = plaintext[MaxSent:]
	}
	sealed, err := w.Seal(finalAD, plaintext)
	if err != nil {
		return nil, fmt.Errorf("sealing the final chunk: %w", err)
	}
	return append(append(out, 0), sealed...), nil
}

// Buffered is the number of bytes that wait for the end.
func (w *Writer) Buffered() int { return len(w.buffered) }

func (w *Writer) buffer(plaintext []byte) error {
	if w.full == nil && len(w.buffered)+len(plaintext) > MaxWhole {
		w.full = wire.Refuse(wire.TooLarge, "one-off: size in bytes", len(w.buffered)+len(plaintext), MaxWhole)
	}
	if w.full == nil {
		w.buffered = append(w.buffered, plaintext...)
	}
	return w.full
}

func (w *Writer) chunk(out, plaintext []byte) ([]byte, error) {
	sealed, err := w.Seal(nil, plaintext)
	if err != nil {
		return nil, fmt.Errorf("sealing a chunk: %w", err)
	}
	return append(bhttp.AppendVarint(out, uint64(len(sealed))), sealed...), nil
}

// Reader decrypts a message; one in one piece is a final chunk.
type Reader struct {
	Form Form
	From io.Reader                                                 // the message after the encapsulated secret, or the response nonce
	Open func(ad, ciphertext []byte) (plaintext []byte, err error) // of the next chunk

	ended bool
}

// Next returns the plaintext of the next chunk, and whether it is the final one. After that
// its error is io.EOF. It refuses with "truncated" an end before the final chunk, with
// "signature" a chunk that does not open, and with "too-large" one above its limit; a quota
// that Open finds used up refuses by itself.
func (r *Reader) Next() (plaintext []byte, last bool, err error) {
	if r.ended {
		return nil, true, io.EOF
	}
	ciphertext, last, err := r.readCiphertext()
	if err != nil {
		return nil, false, err
	}
	var ad []byte
	if r.Form.Chunked && last {
		ad = finalAD
	}
	plaintext, err = r.Open(ad, ciphertext)
	if errors.Is(err, wire.Overload) || errors.Is(err, wire.TooMany) { // there is no place to open it
		return nil, false, err
	}
	if err != nil {
		return nil, false, wire.Refuse(wire.BadSignature, "one-off: chunk", fmt.Sprint(len(ciphertext), " bytes that do not decrypt"), "a chunk as the peer sent it")
	}
	r.ended = last
	return plaintext, last, nil
}

// Done reports whether Next returned the final chunk.
func (r *Reader) Done() bool { return r.ended }

// readCiphertext reads the next chunk.
func (r *Reader) readCiphertext() (b []byte, last bool, err error) {
	if !r.Form.Chunked {
		b, err = r.readRest(MaxWhole)
		return b, true, err
	}
	length, err := r.readLength()
	if err != nil {
		return nil, false, err
	}
	if length == 0 {
		b, err = r.readRest(maxChunk)
		return b, true, err
	}
	if length < tagSize || length > maxChunk+tagSize {
		return nil, false, wire.Refuse(wire.TooLarge, "one-off: size of a chunk in bytes", length, "16 to 65552")
	}
	b = make([]byte, length)
	if _, err := io.ReadFull(r.From, b); err != nil {
		return nil, false, truncatedError(err)
	}
	return b, false, nil
}

// readLength reads the length of a chunk. Any encoding will do: nothing
// authenticates it.
func (r *Reader) readLength() (uint64, error) {
	var b [8]byte
	if _, err := io.ReadFull(r.From, b[:1]); err != nil {
		return 0, truncatedError(err)
	}
	size := 1 << (b[0] >> 6)
	if _, err := io.ReadFull(r.From, b[1:size]); err != nil {
		return 0, truncatedError(err)
	}
	v := uint64(b[0] & 0x3f)
	for _, c := range b[1:size] {
		v = v<<8 | uint64(c)
	}
	return v, nil
}

// readRest reads to the end, of at most limit bytes of plaintext.
func (r *Reader) readRest(limit int) ([]byte, error) {
	b, err := io.ReadAll(io.LimitReader(r.From, int64(limit+tagSize+1)))
	switch {
	case err != nil:
		return nil, truncatedError(err)
	case len(b) > limit+tagSize:
		return nil, wire.Refuse(wire.TooLarge, "one-off: size in bytes", fmt.Sprint("more than ", limit+tagSize), limit+tagSize)
	}
	return b, nil
}

// ReadHead reads the head of a message, which may lie across the first chunks, and returns the rest
// of the last of those.
func (r *Reader) ReadHead(parse bhttp.Parse) (bhttp.Head, []byte, error) {
	var b []byte
	for range maxHeads {
		part, last, err := r.Next()
		if err != nil {
			return bhttp.Head{}, nil, err
		}
		b = append(b, part...)
		there := bhttp.Beginning
		if last {
			there = bhttp.Whole
		}
		if h, rest, err := parse(b, there); !errors.Is(err, bhttp.ErrShort) {
			return h, rest, err
		}
		if len(b) > maxChunk {
			break
		}
	}
	return bhttp.Head{}, nil, wire.Refuse(wire.TooLarge, "one-off: size of the head in bytes", fmt.Sprint("more than ", len(b)), fmt.Sprint(maxHeads, " chunks and ", maxChunk, " bytes"))
}

// truncatedError is the error of a message that ends too soon.
func truncatedError(err error) error {
	short := wire.Refuse(wire.Truncated, "one-off", "an end before the final chunk", "a final chunk")
	if err == io.EOF || err == io.ErrUnexpectedEOF {
		return short
	}
	return errors.Join(short, err)
}
