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

// Record proves to any verifier, offline, which unit made a response: it is the plaintext
// of request and response as it was sealed, and the unit's receipt.
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
	At      time.Time     // by the unit's clock, when it ended the response
	Head    attest.Digest // of the policy that the unit had reached, by which it was verified
	Later   *LaterCut     // the first step since that cuts the unit off; nil: none that is known
}

// LaterCut is a step of the policy history that cuts off the unit of a receipt: a
// policy that was created after the receipt was made, or a party's statement, which
// has no time.
type LaterCut struct {
	Head      attest.Digest // after the step
	Statement bool          // the step is a party's
	Sequence  uint64        // of the policy in force then
	Created   time.Time     // of that policy
	Cause     error         // why the unit is refused since
}

// ReceiptClaims are what the unit's signature covers.
type ReceiptClaims struct {
	Session  wire.SessionID
	Number   uint64        // of the request
	Request  attest.Digest // SHA-256 of its plaintext
	Response attest.Digest
	Unit     wire.UnitID
	At       time.Time
	Head     attest.Digest // policy head
}

// SignReceipt is Frame("cohort receipt v1", session id, request number, SHA-256
// of the request, SHA-256 of the response, unit id, time, policy head, chain,
// signature); the signature covers the framing of the first seven.
func SignReceipt(key *ecdsa.PrivateKey, chain []byte, c ReceiptClaims) ([]byte, error) {
	fields := [][]byte{c.Session[:], wire.Uint64(c.Number), c.Request[:], c.Response[:], c.Unit[:], TimeBytes(c.At), c.Head[:]}
	signature, err := SignFields(key, wire.LabelReceipt, fields...)
	if err != nil {
		return nil, err
	}
	return wire.AppendField(wire.AppendField(wire.Frame(wire.LabelReceipt, fields...), chain), signature), nil
}

// MaxReceipt bounds a receipt in bytes.
const MaxReceipt = MaxChain + 1<<10

// ReceiptExpect is the expected unit and time of a receipt.
type ReceiptExpect struct {
	Pin Pin
	At  time.Time // of the response
}

// VerifyReceipt verifies a record: the unit's certificate must have been valid at the
// receipt's time, by the policy of the receipt's head, which trust knows. Of the pin,
// exactly one of ID, Task and Group is given. A later cut of the unit refuses the receipt,
// with "cut-off", unless the receipt is older than the policy of the cut; then the cut is
// in [Receipt.Later]. A party's statement has no time, so it is in [Receipt.Later] too. A
// unit that is cut off can still sign any time: only the client that called it before the
// cut knows that its receipt is older.
//
// It refuses with "digest" a request or response that the unit did not sign,
// with "signature" another signature, with "clock" a time more than 5 minutes from
// the response's, with "behind" a policy head that trust does not know, and as
// [identity.Check] does.
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

// cutLater is the first step after a policy head that cuts off the unit which signed a
// receipt at a time; nil where there is none. It refuses, with the reason of the cut, a
// receipt that is not older than a policy which cuts the unit off.
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
