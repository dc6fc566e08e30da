package channel

import (
	"crypto/hkdf"
	"crypto/hpke"
	"crypto/sha256"
	"fmt"
	"slices"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/identity"
	"github.com/cohort-tee/cohort/internal/envelope"
	"github.com/cohort-tee/cohort/internal/wire"
)

// Sizes in bytes.
const (
	kemKeySize = 1216
	encSize    = 1120
	nonceSize  = 32
	secretSize = 32
	maxCookie  = 8 + 6*(16+16) // previous, current and next key of two releases
)

// Sizes in bytes of the messages that open a session.
const (
	MaxOpenRequest  = 2 << 10
	MaxOpenResponse = 32<<10 + wire.MaxEvidence*2
)

// SessionOptions are bits that a client sets in an open request.
type SessionOptions byte

// The options; all other bits are zero.
const (
	WantEvidence SessionOptions = 1 << iota // fresh evidence, bound to the session's secret
	WantReceipts                            // receipts for requests of this session
	wantHead                                // only a unit that has reached the policy head in the request
)

// transcript contains everything that both sides sent. Both compute its digest. The client
// checks every field that comes from the unit.
type transcript struct {
	kemKey, nonce, pin []byte
	wants              SessionOptions
	least              []byte // policy head that the unit must have reached; empty: no requirement
	enc                []byte
	unit               wire.UnitID
	identity           attest.Digest
	root               attest.Digest
	chain              attest.Digest
	ring               identity.RingID
	head               attest.Digest
	expiry             uint64 // Unix seconds
}

// fields returns the fields of the transcript without the session id.
func (t *transcript) fields() [][]byte {
	return [][]byte{
		{envelope.Suite}, t.kemKey, t.nonce, t.pin, {byte(t.wants)}, t.least, t.enc, t.unit[:], t.identity[:],
		t.root[:], t.chain[:], t.ring[:], t.head[:], wire.Uint64(t.expiry),
	}
}

// afterEnc is the index of the session id in the transcript.
const afterEnc = 7

// sessionID returns the session id: a number of the range that the manager allocated, and 16
// bytes of a digest over the transcript. Because of the digest, a hostile manager cannot cause
// two sessions with one id.
func (t *transcript) sessionID(number uint64) wire.SessionID {
	digest := wire.Hash(wire.LabelSessionID, t.fields()...)
	return wire.SessionID(append(wire.Uint64(number), digest[:16]...))
}

func (t *transcript) digest(id wire.SessionID) attest.Digest {
	return wire.Hash(wire.LabelTranscript, slices.Insert(t.fields(), afterEnc, id[:])...)
}

// kemInfo binds the KEM to its use and suite.
func kemInfo() []byte { return wire.Frame(wire.LabelSessionKEM, []byte{envelope.Suite}) }

// encapsulate makes a shared secret and its encapsulation for a client's KEM key, 1216 bytes.
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

// decapsulate returns the shared secret in an encapsulation: the client's side of encapsulate.
func decapsulate(key hpke.PrivateKey, enc []byte) (shared []byte, err error) {
	wire.Secretly(func() {
		var recipient *hpke.Recipient
		if recipient, err = hpke.NewRecipient(enc, key, hpke.HKDFSHA256(), hpke.ExportOnly(), kemInfo()); err == nil {
			shared, err = recipient.Export(string(wire.LabelSessionKEM), secretSize)
		}
	})
	if err != nil {
		return nil, wire.Refuse(wire.Malformed, "session response: KEM ciphertext", err, "a ciphertext for this client")
	}
	return shared, nil
}

// sessionSecret derives the session secret from the shared secret and the transcript.
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

// evidenceData returns the report data of fresh evidence. It depends on the session's secret:
// the evidence proves that the unit has the secret, not only its signing key.
func evidenceData(secret []byte, transcript attest.Digest) (data attest.ReportData, err error) {
	wire.Secretly(func() {
		var confirm []byte
		confirm, err = hkdf.Key(sha256.New, secret, nil, string(wire.Frame(wire.LabelConfirm)), secretSize)
		digest := wire.Sum(confirm)
		data = attest.BindReportData(wire.LabelSessionEvidence, transcript[:], digest[:])
	})
	return data, err
}
