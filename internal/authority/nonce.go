package authority

import (
	"crypto/hmac"
	"crypto/rand"
	"encoding/binary"
	"fmt"
	"slices"
	"time"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/internal/api"
	"github.com/cohort-tee/cohort/internal/authority/admission"
	"github.com/cohort-tee/cohort/internal/wire"
)

// nonceSize is the size of a nonce in bytes: its body, and a MAC of 32 bytes. The nonce
// is its own record, so that challenges cost the authority no state.
const nonceSize = admission.NonceBody + 32

// maxChallenge bounds the body that asks for a challenge: a certificate and a key.
const maxChallenge = 8 << 10

// challenge makes a nonce that is good for [wire.NonceLifetime], and for a TPM a
// credential whose secret follows from it.
func (a *Authority) challenge(r api.ChallengeRequest) (api.Challenge, error) {
	now, err := a.clock.Now()
	if err != nil {
		return api.Challenge{}, err
	}
	expires := now.Add(wire.NonceLifetime).Truncate(time.Second)
	body := make([]byte, admission.NonceBody)
	binary.BigEndian.PutUint64(body, uint64(expires.Unix()))
	rand.Read(body[8:])
	c := api.Challenge{Nonce: slices.Concat(body, a.root.Keys.NonceMAC(body)), Expires: expires.UTC()}
	if len(r.EK)+len(r.AK) > 0 {
		in := attest.TPMKeys{Device: r.EK, Key: r.AK}
		c.Credential, err = a.verifier.Credential(attest.TPM, in, a.root.Keys.CredentialSecret(c.Nonce, in))
	}
	return c, err
}

// spendNonce refuses, with "nonce-used", a nonce that no authority of this root made,
// one past its expiry, and one that came before, and notes it: so each request costs
// its sender a challenge, and the work of one challenge is done once. Whether another
// authority of this store, or we before a restart, issued for it is decided by the
// store.
func (a *Authority) spendNonce(nonce []byte) error {
	now, err := a.clock.Now()
	if err != nil {
		return err
	}
	if err := a.checkNonce(nonce, now); err != nil {
		return err
	}
	return a.nonces.Add([admission.NonceBody]byte(nonce), now)
}

// checkNonce refuses, with "nonce-used", a nonce that no authority of this root
// made and one past its expiry.
func (a *Authority) checkNonce(nonce []byte, now time.Time) error {
	if len(nonce) != nonceSize {
		return wire.Refuse(wire.NonceUsed, "challenge: size in bytes", len(nonce), nonceSize)
	}
	body := nonce[:admission.NonceBody]
	if !hmac.Equal(nonce[admission.NonceBody:], a.root.Keys.NonceMAC(body)) {
		return wire.Refuse(wire.NonceUsed, "challenge", fmt.Sprintf("MAC %x", nonce[admission.NonceBody:]), "a challenge of this authority")
	}
	expires := admission.NonceExpiry([admission.NonceBody]byte(body))
	// One that was made by a clock far ahead would be good for as long, and for whom
	// its record was lost with a store.
	if now.After(expires) || expires.After(now.Add(wire.NonceLifetime+wire.MaxClockJump)) {
		return wire.Refuse(wire.NonceUsed, "challenge: expiry", expires.UTC(), fmt.Sprint("after ", now.UTC(), ", within ", wire.NonceLifetime))
	}
	return nil
}
