package unitauth

import (
	"crypto/ecdsa"
	"encoding/binary"
	"fmt"
	"time"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/identity"
	"github.com/cohort-tee/cohort/internal/wire"
	"github.com/cohort-tee/cohort/policy"
)

// Record proves to any verifier, offline, which unit made a response. It contains the plaintext
// of request and response, exactly as sealed, and the unit's receipt.
type Record struct {
	Request  []byte `json:"request"`
	Response []byte `json:"response"`
	Receipt  []byte `json:"receipt"`
}

// Receipt is a verified receipt. Only [VerifyReceipt] makes one.
type Receipt struct {
	Session wire.SessionID
	Number  uint64
	Unit    identity.Peer
	At      time.Time     // on the unit's clock, at the end of the response
	Head    attest.Digest // policy head that the unit had reached; the unit is verified under it
	Later   *LaterCut     // first later step that cuts the unit off; nil: no such step is known
}

// LaterCut is a later step of the policy history that cuts off the unit of a receipt. The step
// is a policy that was created after the receipt was made, or a party's statement, which has no
// time.
type LaterCut struct {
	Head      attest.Digest // policy head after the step
	Statement bool          // whether the step is a party's statement
	Sequence  uint64        // sequence of the policy in force after the step
	Created   time.Time     // creation of that policy
	Cause     error         // why the unit is refused after the step
}

// ReceiptClaims are the values that the unit's signature covers.
type ReceiptClaims struct {
	Session  wire.SessionID
	Number   uint64        // request number
	Request  attest.Digest // SHA-256 of the request's plaintext
	Response attest.Digest // SHA-256 of the response's plaintext
	Unit     wire.UnitID
	At       time.Time
	Head     attest.Digest // policy head
}

// SignReceipt returns Frame("cohort receipt v1", session id, request number, SHA-256 of the
// request, SHA-256 of the response, unit id, time, policy head, chain, signature). The signature
// covers the framing of the first seven fields.
func SignReceipt(key *ecdsa.PrivateKey, chain []byte, c ReceiptClaims) ([]byte, error) {
	fields := [][]byte{c.Session[:], wire.Uint64(c.Number), c.Request[:], c.Response[:], c.Unit[:], TimeBytes(c.At), c.Head[:]}
	signature, err := SignFields(key, wire.LabelReceipt, fields...)
	if err != nil {
		return nil, err
	}
	return wire.AppendField(wire.AppendField(wire.Frame(wire.LabelReceipt, fields...), chain), signature), nil
}

// MaxReceipt is the maximum size of a receipt in bytes.
const MaxReceipt = MaxChain + 1<<10

// ReceiptExpect is the expected unit and time of a receipt.
type ReceiptExpect struct {
	Pin Pin
	At  time.Time // time of the response
}

// VerifyReceipt verifies a record. The unit's certificate must have been valid at the receipt's
// time under the policy at the receipt's head, which trust must know. Exactly one of ID, Task
// and Group of the pin must be set.
//
// If a later policy cuts the unit off, VerifyReceipt refuses the receipt with "cut-off", unless
// the receipt is older than that policy: then it reports the cut-off in [Receipt.Later]. It also
// reports a party's statement there, because a statement has no time. A unit that is cut off can
// still sign any time: only the client that called the unit before the cut-off knows that the
// receipt is older.
//
// It refuses with "digest" a request or response that the unit did not sign, with "signature" a
// signature that does not verify, with "clock" a time that differs by more than 5 minutes from
// the response's, with "behind" a policy head that trust does not know, and a unit with the
// reasons of [identity.Check].
func VerifyReceipt(r Record, trust Trust, e ReceiptExpect) (Receipt, error) {
	if len(r.Receipt) > MaxReceipt {
		return Receipt{}, wire.Refuse(wire.TooLarge, "receipt: size in bytes", len(r.Receipt), MaxReceipt)
	}
	var f [9][]byte
	if err := wire.UnframeInto(f[:], wire.LabelReceipt, r.Receipt); err != nil {
		return Receipt{}, err
	}
	if len(f[0]) != 24 || len(f[1]) != 8 || len(f[5]) != 8 || len(f[6]) != len(attest.Digest{}) {
		return Receipt{}, wire.Refuse(wire.Malformed, "receipt: sizes", fmt.Sprintf("%d, %d, %d and %d bytes", len(f[0]), len(f[1]), len(f[5]), len(f[6])), "24, 8, 8 and 32 bytes")
	}
	at, err := ParseTime(f[5])
	if err != nil {
		return Receipt{}, err
	}
	head := attest.Digest(f[6])
	then, known := trust.Policy.AtHead(head)
	if !known {
		return Receipt{}, wire.Refuse(wire.Behind, "receipt: policy head", head, "a head of the known history")
	}
	peer, err := Trust{Policy: then, Root: trust.Root, Approvers: trust.Approvers}.verifyUnit(f[7], e.Pin, at)
	if err != nil {
		return Receipt{}, err
	}
	if err := VerifyFields(peer.PublicKey(), f[8], wire.LabelReceipt, f[:7]...); err != nil {
		return Receipt{}, err
	}
	if err := CheckSkew(at, e.At); err != nil {
		return Receipt{}, err
	}
	request, response, unit := wire.Sum(r.Request), wire.Sum(r.Response), peer.UnitID()
	if string(f[2]) != string(request[:]) || string(f[3]) != string(response[:]) {
		return Receipt{}, wire.Refuse(wire.BadDigest, "receipt: SHA-256 of request and response", fmt.Sprintf("%x and %x", request, response), fmt.Sprintf("%x and %x, as the unit signed", f[2], f[3]))
	}
	if string(f[4]) != string(unit[:]) {
		return Receipt{}, wire.Refuse(wire.WrongIdentity, "receipt: unit", fmt.Sprintf("%x", f[4]), unit)
	}
	later, err := cutLater(trust.Policy, head, peer, at)
	if err != nil {
		return Receipt{}, err
	}
	return Receipt{Session: wire.SessionID(f[0]), Number: binary.BigEndian.Uint64(f[1]), Unit: peer, At: at, Head: head, Later: later}, nil
}

// cutLater returns the first step after a policy head that cuts off the signer of a receipt, or nil
// if there is none. The receipt was signed at time at. It refuses a receipt that is not older than
// a policy that cuts the unit off, with the reason of that cut-off.
func cutLater(p policy.Approved, head attest.Digest, unit identity.Peer, at time.Time) (first *LaterCut, err error) {
	later, _ := p.Since(head)
	for _, then := range later {
		cause := then.CutOff(unit.Facts(), at)
		if cause == nil {
			continue
		}
		doc, steps := then.Document(), then.Steps()
		claims := policy.IsStatement(steps[len(steps)-1].Policy)
		if !claims && !at.Before(doc.Created) {
			return nil, fmt.Errorf("receipt of %s, not before policy %d of %s: %w", at.UTC().Format(time.RFC3339), doc.Sequence, doc.Created.UTC().Format(time.RFC3339), cause)
		}
		if first == nil {
			first = &LaterCut{Head: then.PolicyHead(), Statement: claims, Sequence: doc.Sequence, Created: doc.Created, Cause: cause}
		}
	}
	return first, nil
}
