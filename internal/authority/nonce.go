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

// nonceSize is the size of a nonce in bytes: its body and a MAC of 32 bytes. The MAC
// authenticates the nonce, so the authority keeps no state for a challenge.
const nonceSize = admission.NonceBody + 32

// maxChallenge bounds the body of a request for a challenge, in bytes: a certificate and a key.
const maxChallenge = 8 << 10

// challenge makes a nonce that is valid for [wire.NonceLifetime] and, for a TPM, a credential
// whose secret is derived from the nonce.
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

// spendNonce records a nonce. It refuses, with "nonce-used", a nonce that no authority of this
// root made, an expired one, and one that was spent before: so each request costs its sender a
// challenge, and one challenge pays for one request. The store decides whether a certificate was
// issued for the nonce by another authority of this store, or by this one before a restart.
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

// checkNonce refuses, with "nonce-used", a nonce that no authority of this root made, and an
// expired one.
func (a *Authority) checkNonce(nonce []byte, now time.Time) error {
	if len(nonce) != nonceSize {
		return wire.Refuse(wire.NonceUsed, "challenge: size in bytes", len(nonce), nonceSize)
	}
	body := nonce[:admission.NonceBody]
	if !hmac.Equal(nonce[admission.NonceBody:], a.root.Keys.NonceMAC(body)) {
		return wire.Refuse(wire.NonceUsed, "challenge", fmt.Sprintf("MAC %x", nonce[admission.NonceBody:]), "a challenge of this authority")
	}
	expires := admission.NonceExpiry([admission.NonceBody]byte(body))
	// A nonce made while the clock was far ahead would stay valid for as long as it was ahead. If
	// the store then lost the record of its use, it could be used again.
	if now.After(expires) || expires.After(now.Add(wire.NonceLifetime+wire.MaxClockJump)) {
		return wire.Refuse(wire.NonceUsed, "challenge: expiry", expires.UTC(), fmt.Sprint("after ", now.UTC(), ", within ", wire.NonceLifetime))
	}
	return nil
}
