package channel

import (
	"crypto/ecdsa"
	"encoding/binary"
	"time"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/identity"
	"github.com/cohort-tee/cohort/internal/wire"
)

// Record is what proves to anybody, offline, which unit gave an answer: the
// plaintext of request and answer as it was sealed, and the unit's receipt.
type Record struct {
	Request []byte `json:"request"`
	Answer  []byte `json:"answer"`
	Receipt []byte `json:"receipt"`
}

// Receipt is what a receipt says. Only [VerifyReceipt] makes one.
type Receipt struct {
	Session wire.SessionID
	Number  uint64
	Unit    identity.Peer
}

// receiptFields are what the unit's signature covers.
func receiptFields(h wire.Header, request, answer attest.Digest, unit wire.UnitID) [][]byte {
	return [][]byte{h.Session[:], wire.Uint64(h.Number), request[:], answer[:], unit[:]}
}

// makeReceipt is Frame("cohort receipt v1", session id, request number, SHA-256
// of the request, SHA-256 of the answer, unit id, chain, signature); the
// signature covers the framing of the first five.
func makeReceipt(key *ecdsa.PrivateKey, chain []byte, fields [][]byte) ([]byte, error) {
	signature, err := sign(key, wire.LabelReceipt, fields...)
	if err != nil {
		return nil, err
	}
	return wire.AppendField(wire.AppendField(wire.Frame(wire.LabelReceipt, fields...), chain), signature), nil
}

// maxReceipt bounds a receipt in bytes.
const maxReceipt = maxChain + 1<<10

// ReceiptExpect is whose receipt is wanted, and for which time.
type ReceiptExpect struct {
	Pin Pin
	At  time.Time // of the answer
}

// VerifyReceipt judges a record by policy, for the time of the answer: the
// unit's certificate must have held then. Of the pin, exactly one of ID and
// Task is given. It refuses with "digest" when request or answer is another
// than the unit signed, with "signature" another signature, and as
// [identity.Check] does.
func VerifyReceipt(r Record, trust Trust, e ReceiptExpect) (Receipt, error) {
	if len(r.Receipt) > maxReceipt {
		return Receipt{}, wire.Refuse(wire.TooLarge, "receipt: size in bytes", len(r.Receipt), maxReceipt)
	}
	var f [7][]byte
	if err := wire.UnframeInto(f[:], wire.LabelReceipt, r.Receipt); err != nil {
		return Receipt{}, err
	}
	if len(f[0]) != 24 || len(f[1]) != 8 {
		return Receipt{}, wire.Refuse(wire.Malformed, "receipt: sizes", "others", "24 and 8 bytes")
	}
	peer, err := trust.unit(f[5], e.Pin, e.At)
	if err != nil {
		return Receipt{}, err
	}
	if err := verify(peer.PublicKey(), f[6], wire.LabelReceipt, f[:5]...); err != nil {
		return Receipt{}, err
	}
	request, answer, unit := wire.Sum(r.Request), wire.Sum(r.Answer), peer.UnitID()
	if string(f[2]) != string(request[:]) || string(f[3]) != string(answer[:]) {
		return Receipt{}, wire.Refuse(wire.BadDigest, "receipt: request and answer", "others", "those that the unit signed")
	}
	if string(f[4]) != string(unit[:]) {
		return Receipt{}, wire.Refuse(wire.WrongIdentity, "receipt: unit", "another", unit)
	}
	return Receipt{Session: wire.SessionID(f[0]), Number: binary.BigEndian.Uint64(f[1]), Unit: peer}, nil
}
