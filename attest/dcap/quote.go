package dcap

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"math/big"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/internal/wire"
)

// Sizes in bytes, from Intel's quote formats 3, 4 and 5.
const (
	headerSize    = 48
	enclaveSize   = 384 // SGX report
	guestSize     = 584 // TD report of TDX 1.0
	guest15Size   = 648 // TD report of TDX 1.5
	signatureSize = 64
	keySize       = 64
)

// Values of the header and of the certification data.
const (
	ecdsaP256    = 2 // attestation key type
	teeSGX       = 0x00
	teeTDX       = 0x81
	certQEReport = 6 // a QE report with its own certification data
	certPCKChain = 5 // PCK certificate chain in PEM
)

// intelQE is the QE vendor id of Intel, the only one there is.
const intelQE = "939a7233f79c4ca9940a0db3957f0607"

// quote is a quote taken apart, every field a part of the bytes it was read
// from. Nothing in it is checked but its form.
type quote struct {
	version   uint16
	signed    []byte // header, body descriptor and body
	body      []byte
	signature []byte // by key, over signed
	key       []byte // attestation key, X and Y
	qe        enclave
	qeSigned  []byte // signature by the PCK, over qe
	qeAuth    []byte
	chain     []byte // PCK certificate chain
}

// reader takes bytes apart; after the first that is missing it returns zeros and
// is short.
type reader struct {
	rest  []byte
	short bool
}

func (r *reader) readNext(n int) []byte {
	if n > len(r.rest) {
		r.short, r.rest = true, nil
		return make([]byte, min(n, headerSize))
	}
	taken := r.rest[:n:n]
	r.rest = r.rest[n:]
	return taken
}

func (r *reader) uint16() uint16 { return binary.LittleEndian.Uint16(r.readNext(2)) }

func (r *reader) uint32() int { return int(binary.LittleEndian.Uint32(r.readNext(4))) }

// parseQuote reads a quote of the platform. There is one encoding but for zeros at
// its end, of which clouds add many.
func parseQuote(raw []byte, platform attest.Platform) (quote, error) {
	if len(raw) > wire.MaxEvidence {
		return quote{}, wire.Refuse(wire.TooLarge, "dcap: size in bytes", len(raw), wire.MaxEvidence)
	}
	q, r := quote{}, &reader{rest: raw}
	size, err := q.header(r.readNext(headerSize), platform)
	if err != nil {
		return quote{}, err
	}
	if q.version == 5 {
		if size, err = bodySize(r, platform); err != nil {
			return quote{}, err
		}
	}
	q.body = r.readNext(size)
	q.signed = raw[:len(raw)-len(r.rest)]
	counted := r.readNext(r.uint32())
	if err := q.certification(&reader{rest: counted, short: r.short}); err != nil {
		return quote{}, err
	}
	if len(bytes.Trim(r.rest, "\x00")) > 0 {
		return quote{}, wire.Refuse(wire.Malformed, "dcap: after the quote", fmt.Sprintf("%d bytes that are not all zero", len(r.rest)), "zeros")
	}
	if platform == attest.TDX {
		return q, guest(q.body).checkForm()
	}
	return q, enclave(q.body).checkForm()
}

// header reads the header and returns the size of a body that has no descriptor.
func (q *quote) header(h []byte, platform attest.Platform) (size int, err error) {
	q.version = binary.LittleEndian.Uint16(h)
	if q.version < 3 || q.version > 5 {
		return 0, wire.Refuse(wire.Malformed, "dcap: quote version", q.version, "3, 4 or 5")
	}
	if got := binary.LittleEndian.Uint16(h[2:]); got != ecdsaP256 {
		return 0, wire.Refuse(wire.Malformed, "dcap: attestation key type", got, ecdsaP256)
	}
	if got := hex.EncodeToString(h[12:28]); got != intelQE {
		return 0, wire.Refuse(wire.Malformed, "dcap: QE vendor", got, intelQE)
	}
	tee := binary.LittleEndian.Uint32(h[4:])
	switch {
	case platform == attest.SGX && tee == teeSGX:
		return enclaveSize, nil
	case platform == attest.TDX && tee == teeTDX && q.version > 3:
		return guestSize, nil
	}
	return 0, wire.Refuse(wire.Malformed, "dcap: TEE type", tee, "that of "+string(platform))
}

// bodySize reads the body descriptor of version 5.
func bodySize(r *reader, platform attest.Platform) (int, error) {
	kind, size := r.uint16(), r.uint32()
	want := map[uint16]int{2: guestSize, 3: guest15Size}
	if platform == attest.SGX {
		want = map[uint16]int{1: enclaveSize}
	}
	if size != want[kind] || size == 0 {
		return 0, wire.Refuse(wire.Malformed, "dcap: body type", kind, "one of "+string(platform)+" with its size")
	}
	return size, nil
}

// certification reads everything after the body; each length must be that of
// what it counts.
func (q *quote) certification(r *reader) error {
	q.signature, q.key = r.readNext(signatureSize), r.readNext(keySize)
	if q.version > 3 {
		kind, size := r.uint16(), r.uint32()
		if kind != certQEReport || size != len(r.rest) {
			return wire.Refuse(wire.Malformed, "dcap: certification data", kind, "a QE report to the end")
		}
	}
	q.qe, q.qeSigned = r.readNext(enclaveSize), r.readNext(signatureSize)
	q.qeAuth = r.readNext(int(r.uint16()))
	kind, size := r.uint16(), r.uint32()
	if kind != certPCKChain || size != len(r.rest) || r.short {
		return wire.Refuse(wire.Malformed, "dcap: certification data of the QE", kind, "a PCK certificate chain to the end")
	}
	q.chain = r.rest
	return nil
}

// signedBy checks that the PCK vouches for the QE, the QE for the attestation
// key, and that for the quote.
func (q quote) signedBy(pck *ecdsa.PublicKey) error {
	if !verify(pck, q.qe, q.qeSigned) {
		return wire.Refuse(wire.BadSignature, "dcap: signature of the QE report", "a signature that does not verify", "one by the PCK")
	}
	var want [64]byte // the digest, then zeros
	digest := sha256.New()
	digest.Write(q.key)
	digest.Write(q.qeAuth)
	digest.Sum(want[:0])
	if !bytes.Equal(q.qe.reportData(), want[:]) {
		return wire.Refuse(wire.BadDigest, "dcap: report data of the QE", hex.EncodeToString(q.qe.reportData()), hex.EncodeToString(want[:])+", the digest of the attestation key")
	}
	key, err := ecdsa.ParseUncompressedPublicKey(elliptic.P256(), append([]byte{4}, q.key...))
	if err != nil {
		return wire.Refuse(wire.BadSignature, "dcap: attestation key", err, "a P-256 point")
	}
	if !verify(key, q.signed, q.signature) {
		return wire.Refuse(wire.BadSignature, "dcap: signature of the quote", "a signature that does not verify", "one by the attestation key")
	}
	return nil
}

// verify checks an ECDSA P-256 signature, R and S of 32 bytes each.
func verify(key *ecdsa.PublicKey, signed, signature []byte) bool {
	digest := sha256.Sum256(signed)
	r, s := new(big.Int).SetBytes(signature[:32]), new(big.Int).SetBytes(signature[32:])
	return ecdsa.Verify(key, digest[:], r, s)
}
