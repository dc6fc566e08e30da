package channel

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/hkdf"
	"crypto/hpke"
	"crypto/rand"
	"crypto/sha256"
	"encoding/asn1"
	"fmt"
	"math/big"
	"slices"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/identity"
	"github.com/cohort-tee/cohort/internal/envelope"
	"github.com/cohort-tee/cohort/internal/wire"
)

// Sizes in bytes.
const (
	kemKeySize  = 1216
	encSize     = 1120
	nonceSize   = 32
	secretSize  = 32
	maxChain    = 16 << 10
	maxCookie   = 8 + 6*(16+16) // previous, current and next key of two releases
	maxSession  = 3600          // seconds from opening to expiry
	clockMargin = 300           // seconds by which the clocks of two honest machines may differ
)

// Sizes in bytes of what opens a session.
const (
	MaxOpenRequest  = 2 << 10
	MaxOpenResponse = 32<<10 + wire.MaxEvidence*2
)

// transcript is everything that both sides said. Both compute its digest; the
// client takes no field of it from the unit without a check.
type transcript struct {
	kemKey, nonce, pin []byte
	wants              Wants
	least              []byte // policy head that the unit must have got to; empty: none
	enc                []byte
	unit               wire.UnitID
	identity           attest.Digest
	root               attest.Digest
	chain              attest.Digest
	ring               identity.RingID
	head               attest.Digest
	expiry             uint64 // Unix seconds
}

// fields are the transcript's without the session id.
func (t *transcript) fields() [][]byte {
	return [][]byte{
		{envelope.Suite}, t.kemKey, t.nonce, t.pin, {byte(t.wants)}, t.least, t.enc, t.unit[:], t.identity[:],
		t.root[:], t.chain[:], t.ring[:], t.head[:], wire.Uint64(t.expiry),
	}
}

// afterEnc is where the session id stands in the transcript.
const afterEnc = 7

// sessionID is a number of the manager's range and 16 bytes of a digest, so
// that no manager makes two sessions of one name.
func (t *transcript) sessionID(number uint64) wire.SessionID {
	digest := wire.Hash(wire.LabelSessionID, t.fields()...)
	return wire.SessionID(append(wire.Uint64(number), digest[:16]...))
}

func (t *transcript) digest(id wire.SessionID) attest.Digest {
	return wire.Hash(wire.LabelTranscript, slices.Insert(t.fields(), afterEnc, id[:])...)
}

// kemInfo binds the KEM to its use and suite.
func kemInfo() []byte { return wire.Frame(wire.LabelSessionKEM, []byte{envelope.Suite}) }

// encapsulate makes a shared secret for a client's KEM key, 1216 bytes.
func encapsulate(kemKey []byte) (enc, shared []byte, err error) {
	public, err := hpke.MLKEM768X25519().NewPublicKey(kemKey)
	if err != nil {
		return nil, nil, wire.Refuse(wire.Malformed, "open request: KEM key", err, "MLKEM768-X25519")
	}
	wire.Secretly(func() {
		var sender *hpke.Sender
		if enc, sender, err = hpke.NewSender(public, hpke.HKDFSHA256(), hpke.ExportOnly(), kemInfo()); err == nil {
			shared, err = sender.Export(string(wire.LabelSessionKEM), secretSize)
		}
	})
	if err != nil {
		return nil, nil, fmt.Errorf("encapsulating: %w", err)
	}
	return enc, shared, nil
}

// decapsulate is the client's side of encapsulate.
func decapsulate(key hpke.PrivateKey, enc []byte) (shared []byte, err error) {
	wire.Secretly(func() {
		var recipient *hpke.Recipient
		if recipient, err = hpke.NewRecipient(enc, key, hpke.HKDFSHA256(), hpke.ExportOnly(), kemInfo()); err == nil {
			shared, err = recipient.Export(string(wire.LabelSessionKEM), secretSize)
		}
	})
	if err != nil {
		return nil, wire.Refuse(wire.Malformed, "session answer: KEM ciphertext", err, "one for this client")
	}
	return shared, nil
}

// sessionSecret binds the shared secret to the transcript.
func sessionSecret(shared []byte, transcript attest.Digest) (secret [secretSize]byte, err error) {
	wire.Secretly(func() {
		var b []byte
		b, err = hkdf.Key(sha256.New, shared, nil, string(wire.Frame(wire.LabelSessionSecret, transcript[:])), secretSize)
		copy(secret[:], b)
		clear(b)
	})
	clear(shared)
	return secret, err
}

// evidenceData is the report data of fresh evidence: whoever made it knows the
// session's secret, not only the unit's signing key.
func evidenceData(secret []byte, transcript attest.Digest) (data attest.ReportData, err error) {
	wire.Secretly(func() {
		var confirm []byte
		confirm, err = hkdf.Key(sha256.New, secret, nil, string(wire.Frame(wire.LabelConfirm)), secretSize)
		digest := wire.Sum(confirm)
		data = attest.Bind(wire.LabelSessionEvidence, transcript[:], digest[:])
	})
	return data, err
}

// sign is an ECDSA signature, ASN.1, over the framing of fields under label.
func sign(key *ecdsa.PrivateKey, label wire.Label, fields ...[]byte) ([]byte, error) {
	digest := wire.Hash(label, fields...)
	signature, err := ecdsa.SignASN1(rand.Reader, key, digest[:])
	if err == nil {
		signature, err = lowS(signature, key.Params())
	}
	if err != nil {
		return nil, fmt.Errorf("signing %s: %w", label, err)
	}
	return signature, nil
}

// lowS is the signature with the smaller s of the two, (r, s) and (r, n-s), that
// ECDSA accepts for one message. Only that one counts, so that nobody without the key
// makes a second signature of one.
func lowS(signature []byte, curve *elliptic.CurveParams) ([]byte, error) {
	var pair struct{ R, S *big.Int }
	if _, err := asn1.Unmarshal(signature, &pair); err != nil {
		return nil, err
	}
	if other := new(big.Int).Sub(curve.N, pair.S); other.Cmp(pair.S) < 0 {
		pair.S = other
	}
	return asn1.Marshal(pair)
}

// verify refuses, with "signature", what sign did not make.
func verify(key *ecdsa.PublicKey, signature []byte, label wire.Label, fields ...[]byte) error {
	digest := wire.Hash(label, fields...)
	if !ecdsa.VerifyASN1(key, digest[:], signature) { // first: it bounds what lowS takes apart
		return wire.Refuse(wire.BadSignature, string(label), "one that does not verify", "the unit's")
	}
	if low, err := lowS(signature, key.Params()); err != nil || !bytes.Equal(low, signature) {
		return wire.Refuse(wire.BadSignature, string(label), "a high s", "the lower s of the two (r, s) and (r, n-s)")
	}
	return nil
}
