// Package ohttp is the encapsulation of Oblivious HTTP: key configurations, and messages in one
// piece (RFC 9458) or in chunks (draft-ietf-ohai-chunked-ohttp). docs/spec/ohttp.md has the
// profile.
//
// A request is encrypted under a public key, and its response under a key that both sides
// export from the request. The package trusts nothing that it reads: sizes and counts are
// bounded, and a chunk that is changed, missing, moved or repeated does not open. It does not
// know whose keys they are, and does not notice a request that is delivered again.
//
// Files, each using those before it: ohttp.go, keys.go, message.go.
package ohttp

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/ecdh"
	"crypto/hkdf"
	"crypto/hpke"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"slices"

	"github.com/cohort-tee/cohort/internal/wire"
)

// Form is one of the two forms of messages.
type Form struct {
	RequestType, ResponseType string // content types
	requestLabel              string // of the HPKE info
	responseLabel             string // of the HPKE export
	Chunked                   bool
}

// The forms: a message in one piece (RFC 9458, section 4), and in chunks
// (draft-ietf-ohai-chunked-ohttp).
var (
	Whole  = Form{wire.TypeOneOff, wire.TypeOneOffResponse, "message/bhttp request", "message/bhttp response", false}
	Chunks = Form{wire.TypeChunkedOneOff, wire.TypeChunkedOneOffResponse, "message/bhttp chunked request", "message/bhttp chunked response", true}
)

// RequestForm returns the form of requests of a content type. It refuses, with "request",
// another type.
func RequestForm(contentType string) (Form, error) {
	return formOf(contentType, func(f Form) string { return f.RequestType })
}

// ResponseForm is [RequestForm] for responses.
func ResponseForm(contentType string) (Form, error) {
	return formOf(contentType, func(f Form) string { return f.ResponseType })
}

func formOf(contentType string, of func(Form) string) (Form, error) {
	for _, f := range []Form{Whole, Chunks} {
		if of(f) == contentType {
			return f, nil
		}
	}
	return Form{}, wire.Refuse(wire.BadRequest, "one-off: content type", contentType, of(Whole)+" or "+of(Chunks))
}

// Sizes in bytes, and a count.
const (
	HeaderSize = 7         // header of a request
	MaxWhole   = 256 << 10 // plaintext of a message in one piece
	MaxSent    = 16 << 10  // plaintext of a chunk that is sent, which every receiver accepts
	maxChunk   = 64 << 10  // plaintext of a chunk that is received
	maxHeads   = 64        // chunks that a head may lie across
	tagSize    = 16        // of AES-GCM
	gcmNonce   = 12
)

// finalAD is the associated data of a final chunk.
var finalAD = []byte("final")

// KEM is a KEM that requests may use, with the AEADs that are offered with it.
type KEM struct {
	hpke.KEM
	EncSize, keySize int // of the encapsulated secret and of a public key, in bytes
	aeads            []uint16
}

// KEMs are offered in this order. X25519 alone is for clients that have no other.
var KEMs = [...]KEM{
	{hpke.MLKEM768X25519(), 1120, 1216, []uint16{aes256}},
	{hpke.DHKEM(ecdh.X25519()), 32, 32, []uint16{aes128, aes256}},
}

// The AEADs and the KDF of HPKE, RFC 9180, section 7.
const (
	aes128     = 0x0001
	aes256     = 0x0002
	hkdfSHA256 = 0x0001
)

// aeadByID is one of the AEADs with the size of its keys in bytes.
func aeadByID(id uint16) (hpke.AEAD, int) {
	if id == aes128 {
		return hpke.AES128GCM(), 16
	}
	return hpke.AES256GCM(), 32
}

// Header is the header of a request: the id of the key, and the algorithms.
type Header struct {
	Key            byte
	kem, kdf, aead uint16
}

// Encode returns the header as RFC 9458, section 4.1, has it.
func (h Header) Encode() []byte {
	b := binary.BigEndian.AppendUint16([]byte{h.Key}, h.kem)
	return binary.BigEndian.AppendUint16(binary.BigEndian.AppendUint16(b, h.kdf), h.aead)
}

// ParseHeader is the inverse of Encode.
func ParseHeader(b [HeaderSize]byte) Header {
	return Header{b[0], binary.BigEndian.Uint16(b[1:]), binary.BigEndian.Uint16(b[3:]), binary.BigEndian.Uint16(b[5:])}
}

// KEMIndex returns the index in [KEMs] of the header's KEM. It refuses, with "ohttp-key",
// algorithms that are not offered together.
func (h Header) KEMIndex() (int, error) {
	i := slices.IndexFunc(KEMs[:], func(k KEM) bool { return k.ID() == h.kem })
	if i < 0 || h.kdf != hkdfSHA256 || !slices.Contains(KEMs[i].aeads, h.aead) {
		return 0, wire.Refuse(wire.OneOffKey, "one-off: algorithms", fmt.Sprintf("%04x %04x %04x", h.kem, h.kdf, h.aead), "those of a key configuration")
	}
	return i, nil
}

// NewRecipient opens the encapsulated secret of a request with a private key.
func (f Form) NewRecipient(h Header, enc []byte, key hpke.PrivateKey) (recipient *hpke.Recipient, err error) {
	wire.Secretly(func() {
		aead, _ := aeadByID(h.aead)
		recipient, err = hpke.NewRecipient(enc, key, hpke.HKDFSHA256(), aead, f.hpkeInfo(h))
	})
	return recipient, err
}

// NewSender encapsulates a secret for a public key.
func (f Form) NewSender(key PublicKey) (enc []byte, sender *hpke.Sender, err error) {
	wire.Secretly(func() {
		aead, _ := aeadByID(key.aead)
		enc, sender, err = hpke.NewSender(key.Public, hpke.HKDFSHA256(), aead, f.hpkeInfo(key.Header))
	})
	return enc, sender, err
}

// hpkeInfo binds a request to its form and header.
func (f Form) hpkeInfo(h Header) []byte {
	return append(append([]byte(f.requestLabel), 0), h.Encode()...)
}

// NonceSize is the size of the response nonce in bytes.
func (h Header) NonceSize() int {
	_, size := aeadByID(h.aead)
	return size
}

// ResponseCipher seals or opens the chunks of one response.
type ResponseCipher struct {
	aead  cipher.AEAD
	nonce [gcmNonce]byte
	count uint64
}

// ResponseCipher derives the cipher of a response from its nonce, and the exporter and the
// encapsulated secret of its request.
func (f Form) ResponseCipher(export func(string, int) ([]byte, error), h Header, enc, nonce []byte) (*ResponseCipher, error) {
	size := h.NonceSize()
	a := &ResponseCipher{}
	var err error
	wire.Secretly(func() {
		var secret, prk, key, base []byte
		if secret, err = export(f.responseLabel, size); err != nil {
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
		return nil, fmt.Errorf("deriving the key of a response: %w", err)
	}
	return a, nil
}

// nextNonce is the nonce of the next chunk.
func (a *ResponseCipher) nextNonce() []byte {
	n := a.nonce
	binary.BigEndian.PutUint64(n[4:], binary.BigEndian.Uint64(n[4:])^a.count)
	a.count++
	return n[:]
}

// Seal encrypts the next chunk.
func (a *ResponseCipher) Seal(ad, plaintext []byte) ([]byte, error) {
	return a.aead.Seal(nil, a.nextNonce(), plaintext, ad), nil
}

// Open decrypts the next chunk.
func (a *ResponseCipher) Open(ad, ciphertext []byte) ([]byte, error) {
	return a.aead.Open(nil, a.nextNonce(), ciphertext, ad)
}

func newAEAD(key []byte) (cipher.AEAD, error) {
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, err
	}
	return cipher.NewGCM(block)
}
