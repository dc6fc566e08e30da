package channel

import (
	"crypto/cipher"
	"crypto/ecdh"
	"crypto/hkdf"
	"crypto/hpke"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"io"
	"slices"

	"github.com/cohort-tee/cohort/internal/wire"
)

// Encapsulation of one-off requests and their answers: RFC 9458, section 4, and
// draft-ietf-ohai-chunked-ohttp. docs/spec/ohttp.md has the profile.

// form is one of the two forms of messages.
type form struct {
	request, answer           string // content types
	requestLabel, answerLabel string // of HPKE info and export
	chunked                   bool
}

var (
	wholeForm = form{wire.TypeOneOff, wire.TypeOneOffAnswer, "message/bhttp request", "message/bhttp response", false}
	chunkForm = form{wire.TypeChunkedOneOff, wire.TypeChunkedOneOffAnswer, "message/bhttp chunked request", "message/bhttp chunked response", true}
)

// formOf is the form that has a content type.
func formOf(kind string, of func(form) string) (form, error) {
	for _, f := range []form{wholeForm, chunkForm} {
		if of(f) == kind {
			return f, nil
		}
	}
	return form{}, wire.Refuse(wire.BadRequest, "one-off: content type", kind, of(wholeForm)+" or "+of(chunkForm))
}

func (f form) requestType() string { return f.request }
func (f form) answerType() string  { return f.answer }

// Sizes in bytes.
const (
	maxWhole    = 256 << 10 // plaintext of a message in one piece
	maxSent     = 16 << 10  // plaintext of a chunk that is sent, which every receiver takes
	maxHeads    = 64        // chunks that a head may lie across
	capsuleSize = 7         // header of a request
	gcmNonce    = 12
)

// finalAD is the associated data of a final chunk.
var finalAD = []byte("final")

// kem is a KEM that one-off requests may use, with what is offered beside it.
type kem struct {
	hpke.KEM
	encSize, keySize int // in bytes
	aeads            []uint16
}

// kems are offered in this order. X25519 alone is for clients that have no other.
var kems = [...]kem{
	{hpke.MLKEM768X25519(), encSize, kemKeySize, []uint16{aes256}},
	{hpke.DHKEM(ecdh.X25519()), 32, 32, []uint16{aes128, aes256}},
}

// The AEADs and the KDF of HPKE, RFC 9180, section 7.
const (
	aes128     = 0x0001
	aes256     = 0x0002
	hkdfSHA256 = 0x0001
)

// aead is one of the AEADs with the size of its keys in bytes.
func aead(id uint16) (hpke.AEAD, int) {
	if id == aes128 {
		return hpke.AES128GCM(), 16
	}
	return hpke.AES256GCM(), 32
}

// capsule is the header of a request: which key, and which algorithms.
type capsule struct {
	key            byte
	kem, kdf, aead uint16
}

func (c capsule) bytes() []byte {
	b := binary.BigEndian.AppendUint16([]byte{c.key}, c.kem)
	return binary.BigEndian.AppendUint16(binary.BigEndian.AppendUint16(b, c.kdf), c.aead)
}

func parseCapsule(b [capsuleSize]byte) capsule {
	return capsule{b[0], binary.BigEndian.Uint16(b[1:]), binary.BigEndian.Uint16(b[3:]), binary.BigEndian.Uint16(b[5:])}
}

// suite is the place of the capsule's KEM in the table. It refuses, with
// "ohttp-key", algorithms that are not offered together.
func (c capsule) suite() (int, error) {
	i := slices.IndexFunc(kems[:], func(k kem) bool { return k.ID() == c.kem })
	if i < 0 || c.kdf != hkdfSHA256 || !slices.Contains(kems[i].aeads, c.aead) {
		return 0, wire.Refuse(wire.OneOffKey, "one-off: algorithms", fmt.Sprintf("%04x %04x %04x", c.kem, c.kdf, c.aead), "those of a key configuration")
	}
	return i, nil
}

// info is what HPKE binds a request to.
func (f form) info(c capsule) []byte {
	return append(append([]byte(f.requestLabel), 0), c.bytes()...)
}

// answerCipher seals or opens the chunks of one answer.
type answerCipher struct {
	aead  cipher.AEAD
	nonce [gcmNonce]byte
	count uint64
}

// answerCipher derives the cipher of the answer with a response nonce from the
// HPKE context of its request.
func (f form) answerCipher(export func(string, int) ([]byte, error), c capsule, enc, nonce []byte) (*answerCipher, error) {
	_, size := aead(c.aead)
	a := &answerCipher{}
	var err error
	wire.Secretly(func() {
		var secret, prk, key, base []byte
		if secret, err = export(f.answerLabel, size); err != nil {
			return
		}
		if prk, err = hkdf.Extract(sha256.New, secret, slices.Concat(enc, nonce)); err != nil {
			return
		}
		if key, err = hkdf.Expand(sha256.New, prk, "key", size); err != nil {
			return
		}
		if base, err = hkdf.Expand(sha256.New, prk, "nonce", gcmNonce); err != nil {
			return
		}
		copy(a.nonce[:], base)
		a.aead, err = newAEAD(key)
	})
	if err != nil {
		return nil, fmt.Errorf("deriving an answer's key: %w", err)
	}
	return a, nil
}

// next is the nonce of the next chunk.
func (a *answerCipher) next() []byte {
	n := a.nonce
	binary.BigEndian.PutUint64(n[4:], binary.BigEndian.Uint64(n[4:])^a.count)
	a.count++
	return n[:]
}

func (a *answerCipher) seal(ad, plaintext []byte) ([]byte, error) {
	return a.aead.Seal(nil, a.next(), plaintext, ad), nil
}

func (a *answerCipher) open(ad, ciphertext []byte) ([]byte, error) {
	return a.aead.Open(nil, a.next(), ciphertext, ad)
}

// cutter seals the plaintext of a message: in one piece, which it keeps back
// until it is whole, or in chunks.
type cutter struct {
	form form
	seal func(ad, plaintext []byte) ([]byte, error)
	kept []byte
	full error // of what one piece may hold; nothing more is taken
}

// put seals what stands behind room for a length in b. It refuses with
// "too-large" more than one piece may hold.
func (c *cutter) put(b []byte, at place) ([]byte, error) { return c.add(b[lengthSize:], at) }

func (c *cutter) add(plaintext []byte, at place) ([]byte, error) {
	if c.form.chunked {
		return c.chunks(plaintext, at)
	}
	if c.full == nil && len(c.kept)+len(plaintext) > maxWhole {
		c.full = wire.Refuse(wire.TooLarge, "one-off: size in bytes", "more", maxWhole)
	}
	if c.full != nil {
		return nil, c.full
	}
	c.kept = append(c.kept, plaintext...)
	if at != final {
		return nil, nil
	}
	return c.seal(nil, c.kept)
}

// chunks seals plaintext in chunks of what every receiver takes. The length of
// the final one is said to be 0: it extends to the end.
func (c *cutter) chunks(plaintext []byte, at place) (out []byte, err error) {
	for last := false; !last; {
		part := plaintext[:min(len(plaintext), maxSent)]
		plaintext = plaintext[len(part):]
		last = len(plaintext) == 0
		var ad, sealed []byte
		if last && at == final {
			ad = finalAD
		}
		if sealed, err = c.seal(ad, part); err != nil {
			return nil, fmt.Errorf("sealing a chunk: %w", err)
		}
		length := len(sealed)
		if ad != nil {
			length = 0
		}
		out = append(appendVarint(out, uint64(length)), sealed...)
	}
	return out, nil
}

// uncutter opens the chunks of a message; one in one piece is a final chunk.
type uncutter struct {
	r     io.Reader
	form  form
	open  func(ad, ciphertext []byte) ([]byte, error)
	ended bool
}

// next is the plaintext of the next chunk. It refuses with "truncated" an end
// before the final chunk, with "signature" what does not open, and with
// "too-large" what is over its limit.
func (u *uncutter) next() ([]byte, place, error) {
	if u.ended {
		return nil, final, io.EOF
	}
	ciphertext, at, err := u.ciphertext()
	if err != nil {
		return nil, inner, err
	}
	var ad []byte
	if u.form.chunked && at == final {
		ad = finalAD
	}
	plaintext, err := u.open(ad, ciphertext)
	if err != nil {
		return nil, inner, wire.Refuse(wire.BadSignature, "one-off: chunk", "bytes that were changed", "what the other side sent")
	}
	u.ended = at == final
	return plaintext, at, nil
}

func (u *uncutter) done() bool { return u.ended }
func (u *uncutter) release()   {}

// ciphertext reads the next chunk.
func (u *uncutter) ciphertext() ([]byte, place, error) {
	if !u.form.chunked {
		b, err := u.rest(maxWhole)
		return b, final, err
	}
	length, err := u.length()
	if err != nil {
		return nil, inner, err
	}
	if length == 0 {
		b, err := u.rest(maxPlaintext)
		return b, final, err
	}
	if length < tagSize || length > maxPlaintext+tagSize {
		return nil, inner, wire.Refuse(wire.TooLarge, "one-off: size of a chunk in bytes", length, "16 to 65552")
	}
	b := make([]byte, length)
	if _, err := io.ReadFull(u.r, b); err != nil {
		return nil, inner, cutOff(err)
	}
	return b, inner, nil
}

// length reads the length of a chunk. Any encoding will do: nothing
// authenticates it.
func (u *uncutter) length() (uint64, error) {
	var b [8]byte
	if _, err := io.ReadFull(u.r, b[:1]); err != nil {
		return 0, cutOff(err)
	}
	size := 1 << (b[0] >> 6)
	if _, err := io.ReadFull(u.r, b[1:size]); err != nil {
		return 0, cutOff(err)
	}
	v := uint64(b[0] & 0x3f)
	for _, c := range b[1:size] {
		v = v<<8 | uint64(c)
	}
	return v, nil
}

// rest reads to the end, of at most limit bytes of plaintext.
func (u *uncutter) rest(limit int) ([]byte, error) {
	b, err := io.ReadAll(io.LimitReader(u.r, int64(limit+tagSize+1)))
	switch {
	case err != nil:
		return nil, cutOff(err)
	case len(b) > limit+tagSize:
		return nil, wire.Refuse(wire.TooLarge, "one-off: size in bytes", "more", limit+tagSize)
	}
	return b, nil
}

// head reads the head of a message, which in chunks may lie across the first
// ones, and gives the rest of the last of those.
func (u *uncutter) head(parse func(*parser) head) (head, []byte, error) {
	var b []byte
	for range maxHeads {
		part, at, err := u.next()
		if err != nil {
			return head{}, nil, err
		}
		b = append(b, part...)
		p := &parser{rest: b, more: at != final}
		h := parse(p)
		if !p.short {
			return h, p.rest, p.err
		}
		if len(b) > maxPlaintext {
			break
		}
	}
	return head{}, nil, wire.Refuse(wire.TooLarge, "one-off: head", "more", fmt.Sprint(maxHeads, " chunks and ", maxPlaintext, " bytes"))
}
