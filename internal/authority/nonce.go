package authority

import (
	"crypto/hmac"
	"crypto/rand"
	"encoding/binary"
	"slices"
	"time"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/internal/api"
	"github.com/cohort-tee/cohort/internal/wire"
)

// A nonce is its own record, so that challenges cost the authority no state:
// expiry (8 bytes, Unix seconds), 16 random bytes, MAC (32 bytes).
const (
	nonceBody = 8 + 16
	nonceSize = nonceBody + 32
)

// maxChallenge bounds the body that asks for a challenge: a certificate and a key.
const maxChallenge = 8 << 10

// challenge makes a nonce that is good for [wire.NonceLife], and for a TPM a
// credential whose secret follows from it.
func (a *Authority) challenge(r api.ChallengeRequest) (api.Challenge, error) {
	now, err := a.guard.now()
	if err != nil {
		return api.Challenge{}, err
	}
	expires := now.Add(wire.NonceLife).Truncate(time.Second)
	body := make([]byte, nonceBody)
	binary.BigEndian.PutUint64(body, uint64(expires.Unix()))
	rand.Read(body[8:])
	c := api.Challenge{Nonce: slices.Concat(body, a.keys.NonceMAC(body)), Expires: expires.UTC()}
	if len(r.EK)+len(r.AK) > 0 {
		in := attest.Introduction{Device: r.EK, Key: r.AK}
		c.Credential, err = a.verifier.Credential(attest.TPM, in, a.keys.Hidden(c.Nonce, in))
	}
	return c, err
}

// checkNonce refuses, with "nonce-used", a nonce that no authority of this root
// made and one past its expiry. It is the cheap check before any appraisal;
// whether the nonce was used before is decided by the store.
func (a *Authority) checkNonce(nonce []byte, now time.Time) error {
	if len(nonce) != nonceSize {
		return wire.Refuse(wire.NonceUsed, "challenge: size in bytes", len(nonce), nonceSize)
	}
	body := nonce[:nonceBody]
	if !hmac.Equal(nonce[nonceBody:], a.keys.NonceMAC(body)) {
		return wire.Refuse(wire.NonceUsed, "challenge", "not made here", "a challenge of this authority")
	}
	expires := time.Unix(int64(binary.BigEndian.Uint64(body)), 0)
	if now.After(expires) {
		return wire.Refuse(wire.NonceUsed, "challenge: expiry", expires.UTC(), now.UTC())
	}
	return nil
}
