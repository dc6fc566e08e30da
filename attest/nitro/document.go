package nitro

import (
	"bytes"
	"fmt"
	"time"

	"github.com/cohort-tee/cohort/internal/wire"
	"github.com/fxamacker/cbor/v2"
	"github.com/veraison/go-cose"
)

// measured are the PCRs that name code: 0 the image, 1 kernel and boot ramdisk,
// 2 the application, 8 the key that signed the image (zero when none did). The
// others name the instance, or are the program's own.
var measured = []uint{0, 1, 2, 8}

// pcrSize is that of SHA-384, the only digest the module uses.
const pcrSize = 48

// maxPCR and maxBundle bound a document; the module has 32 PCRs, and AWS's
// chains have 4 certificates above the leaf.
const (
	maxPCR    = 31
	maxBundle = 8
)

// protected is the one protected header a document has: {1: -35}, ES384.
var protected = []byte{0xa1, 0x01, 0x38, 0x22}

// document is an attestation document whose form is right. None of it is signed
// yet.
type document struct {
	payload
	message cose.UntaggedSign1Message
}

// payload is what the module signs. A null optional field and a missing one are
// the same.
type payload struct {
	ModuleID    string          `cbor:"module_id"`
	Digest      string          `cbor:"digest"`
	Timestamp   uint64          `cbor:"timestamp"` // Unix milliseconds
	PCRs        map[uint][]byte `cbor:"pcrs"`
	Certificate []byte          `cbor:"certificate"`
	CABundle    [][]byte        `cbor:"cabundle"` // root first
	PublicKey   []byte          `cbor:"public_key"`
	UserData    []byte          `cbor:"user_data"`
	Nonce       []byte          `cbor:"nonce"`
}

// strict states how a payload is read: no key twice, none that is unknown, no
// tags. Newer modules write maps of indefinite length; as the payload is signed
// unchanged, that lets nobody write it another way.
var strict = cbor.DecOptions{
	DupMapKey:         cbor.DupMapKeyEnforcedAPF,
	IndefLength:       cbor.IndefLengthAllowed,
	TagsMd:            cbor.TagsForbidden,
	ExtraReturnErrors: cbor.ExtraDecErrorUnknownField,
	FieldNameMatching: cbor.FieldNameMatchingCaseSensitive,
	MaxNestedLevels:   4,
	MaxMapPairs:       64,
	MaxArrayElements:  64,
}

// parse reads a document. What no signature covers (the frame around the payload) is
// accepted in one encoding only: encoding it again must give the same bytes.
func parse(raw []byte) (document, error) {
	var d document
	if len(raw) > wire.MaxEvidence {
		return d, wire.Refuse(wire.TooLarge, "nitro: size of the document", len(raw), wire.MaxEvidence)
	}
	if err := d.message.UnmarshalCBOR(raw); err != nil {
		return d, wire.Refuse(wire.Malformed, "nitro: document", err, "an untagged COSE_Sign1")
	}
	if same, err := d.message.MarshalCBOR(); err != nil || !bytes.Equal(same, raw) {
		return d, wire.Refuse(wire.Malformed, "nitro: document", "bytes that are encoded in another way", "the shortest encoding")
	}
	if len(d.message.Headers.Unprotected) != 0 || len(raw) < 2+len(protected) || !bytes.Equal(raw[2:2+len(protected)], protected) {
		return d, wire.Refuse(wire.Malformed, "nitro: COSE headers", fmt.Sprintf("protected %x, and %d unprotected", raw[2:min(len(raw), 2+len(protected))], len(d.message.Headers.Unprotected)), "algorithm ES384 alone")
	}
	mode, err := strict.DecMode()
	if err != nil {
		return d, fmt.Errorf("making the CBOR decoder: %w", err)
	}
	if err := mode.Unmarshal(d.message.Payload, &d.payload); err != nil {
		return d, wire.Refuse(wire.Malformed, "nitro: payload", err, "a map of the known fields")
	}
	return d, d.payload.validate()
}

// validate checks the fields' own rules, as AWS states them.
func (p payload) validate() error {
	switch {
	case p.ModuleID == "":
		return wire.Refuse(wire.Malformed, "nitro: module_id", "an empty name", "a name")
	case p.Digest != "SHA384":
		return wire.Refuse(wire.Malformed, "nitro: digest", p.Digest, "SHA384")
	case p.Timestamp == 0 || p.Timestamp > 1<<62/uint64(time.Millisecond):
		return wire.Refuse(wire.Malformed, "nitro: timestamp", p.Timestamp, "Unix milliseconds")
	case len(p.CABundle) < 1 || len(p.CABundle) > maxBundle:
		return wire.Refuse(wire.Malformed, "nitro: certificates in the bundle", len(p.CABundle), fmt.Sprintf("1 to %d", maxBundle))
	}
	for i, value := range p.PCRs {
		if i > maxPCR || len(value) != pcrSize {
			return wire.Refuse(wire.Malformed, "nitro: "+pcrName(i), fmt.Sprintf("%d bytes", len(value)), fmt.Sprintf("PCR 0 to %d of %d bytes", maxPCR, pcrSize))
		}
	}
	for _, i := range measured {
		if p.PCRs[i] == nil {
			return wire.Refuse(wire.Malformed, "nitro: "+pcrName(i), "a document without this PCR", "its value")
		}
	}
	return nil
}

// madeAt is the document's own time.
func (p payload) madeAt() time.Time { return time.UnixMilli(int64(p.Timestamp)).UTC() }

// debug reports whether the enclave runs in debug mode: the module then gives
// zeros for the PCRs of the image. One of them is enough for the suspicion.
func (p payload) debug() bool {
	zero := make([]byte, pcrSize)
	return bytes.Equal(p.PCRs[0], zero) || bytes.Equal(p.PCRs[1], zero) || bytes.Equal(p.PCRs[2], zero)
}

func pcrName(i uint) string { return fmt.Sprintf("pcr%d", i) }
