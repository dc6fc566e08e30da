package tpm

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"fmt"
	"math/big"
	"math/bits"
	"slices"

	"github.com/cohort-tee/cohort/internal/wire"
	"golang.org/x/crypto/cryptobyte"
	"golang.org/x/crypto/cryptobyte/asn1"
)

// Numbers of the TPM 2.0 library specification, part 2.
const (
	generated   = 0xff544347 // TPM_GENERATED_VALUE: the TPM itself made the structure
	attestQuote = 0x8018     // TPM_ST_ATTEST_QUOTE

	algRSA    = 0x0001
	algSHA256 = 0x000b
	algNull   = 0x0010
	algRSASSA = 0x0014
	algECDSA  = 0x0018
	algECC    = 0x0023
	curveP256 = 0x0003
)

// selection is the PCRs of one bank that a quote covers.
type selection struct {
	Bank uint16 // TPM_ALG_ID of the bank: 0x000b is SHA-256
	PCRs []int  // ascending
}

// Quote is what a TPM signed about its PCRs (TPMS_ATTEST with TPMS_QUOTE_INFO).
// It is signed only when [VerifyQuote] made it.
type Quote struct {
	ExtraData  []byte // what the asker gave
	Clock      uint64 // milliseconds the TPM was on
	Resets     uint32 // boots, since the TPM was cleared
	Restarts   uint32 // resumes, since the last boot
	Firmware   uint64
	selections []selection
	Digest     []byte // over the selected values, in their order
}

// VerifyQuote checks that key signed a quote, and reads it. The signature is
// ECDSA in ASN.1 or PKCS #1 v1.5, with SHA-256; [ParseSignature] makes it of a
// TPMT_SIGNATURE. Whose key it is, and whether the TPM keeps it, the caller
// knows. It refuses with "signature" or "malformed".
func VerifyQuote(key crypto.PublicKey, quote, signature []byte) (Quote, error) {
	digest := sha256.Sum256(quote)
	var valid bool
	switch key := key.(type) {
	case *ecdsa.PublicKey:
		valid = ecdsa.VerifyASN1(key, digest[:], signature)
	case *rsa.PublicKey:
		valid = rsa.VerifyPKCS1v15(key, crypto.SHA256, digest[:], signature) == nil
	}
	if !valid {
		return Quote{}, wire.Refuse(wire.BadSignature, "tpm: signature of the quote", "a signature that does not verify", "one by the attestation key")
	}
	return UnverifiedQuote(quote)
}

// UnverifiedQuote reads the one encoding of a quote, whose signature is not verified yet. It
// refuses with "malformed".
func UnverifiedQuote(raw []byte) (Quote, error) {
	var q Quote
	var magic, count uint32
	var kind uint16
	var safe uint8
	var signer, extra, digest cryptobyte.String
	s := cryptobyte.String(raw)
	ok := s.ReadUint32(&magic) && magic == generated && s.ReadUint16(&kind) && kind == attestQuote &&
		s.ReadUint16LengthPrefixed(&signer) && s.ReadUint16LengthPrefixed(&extra) &&
		s.ReadUint64(&q.Clock) && s.ReadUint32(&q.Resets) && s.ReadUint32(&q.Restarts) && s.ReadUint8(&safe) && safe <= 1 &&
		s.ReadUint64(&q.Firmware) && s.ReadUint32(&count) && count <= 16
	for ; ok && count > 0; count-- {
		var selected selection
		ok = readSelection(&s, &selected)
		q.selections = append(q.selections, selected)
	}
	if !ok || !s.ReadUint16LengthPrefixed(&digest) || !s.Empty() {
		return Quote{}, wire.Refuse(wire.Malformed, "tpm: quote", fmt.Sprintf("%d bytes of another structure", len(raw)), "a TPMS_ATTEST with TPMS_QUOTE_INFO")
	}
	q.ExtraData, q.Digest = extra, digest
	return q, nil
}

func readSelection(s *cryptobyte.String, to *selection) bool {
	var size uint8
	var mask []byte
	if !s.ReadUint16(&to.Bank) || !s.ReadUint8(&size) || size > 4 || !s.ReadBytes(&mask, int(size)) {
		return false
	}
	for i, octet := range mask {
		for ; octet != 0; octet &= octet - 1 {
			to.PCRs = append(to.PCRs, 8*i+bits.TrailingZeros8(octet))
		}
	}
	return true
}

// Covers checks that the quote covers exactly these PCRs of one bank, and that
// they had these values, which are in the order of the PCRs. A quote over no
// PCR covers nothing and is refused, with reason "digest".
func (q Quote) Covers(bank uint16, pcrs []int, values []byte) error {
	want := selection{bank, pcrs}
	if len(pcrs) == 0 || len(q.selections) != 1 || !q.selections[0].equal(want) {
		return wire.Refuse(wire.BadDigest, "tpm: PCRs of the quote", fmt.Sprint(q.selections), fmt.Sprint([]selection{want}))
	}
	if digest := sha256.Sum256(values); subtle.ConstantTimeCompare(digest[:], q.Digest) != 1 {
		return wire.Refuse(wire.BadDigest, "tpm: PCR values", hex.EncodeToString(digest[:]), hex.EncodeToString(q.Digest))
	}
	return nil
}

func (s selection) equal(other selection) bool {
	return s.Bank == other.Bank && slices.Equal(s.PCRs, other.PCRs)
}

// ParseSignature reads a TPMT_SIGNATURE (ECDSA on P-256 or RSASSA, with SHA-256)
// into the form of [VerifyQuote]. It refuses with "malformed".
func ParseSignature(raw []byte) ([]byte, error) {
	var scheme, hash uint16
	s := cryptobyte.String(raw)
	if s.ReadUint16(&scheme) && s.ReadUint16(&hash) && hash == algSHA256 {
		var first, second cryptobyte.String
		switch scheme {
		case algECDSA:
			if s.ReadUint16LengthPrefixed(&first) && s.ReadUint16LengthPrefixed(&second) && s.Empty() && scalarOK(first) && scalarOK(second) {
				return signatureASN1(first, second), nil
			}
		case algRSASSA:
			if s.ReadUint16LengthPrefixed(&first) && s.Empty() {
				return first, nil
			}
		}
	}
	return nil, wire.Refuse(wire.Malformed, "tpm: signature", fmt.Sprintf("%d bytes of another structure", len(raw)), "a TPMT_SIGNATURE: ECDSA P-256 or RSASSA, with SHA-256")
}

// scalarOK accepts the one length of a number below the order of P-256.
func scalarOK(b []byte) bool { return len(b) == 32 }

func signatureASN1(r, s []byte) []byte {
	var b cryptobyte.Builder
	b.AddASN1(asn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddASN1BigInt(new(big.Int).SetBytes(r))
		b.AddASN1BigInt(new(big.Int).SetBytes(s))
	})
	return b.BytesOrPanic()
}
