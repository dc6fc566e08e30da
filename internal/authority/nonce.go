package authority

import (
	"crypto/hmac"
	"crypto/rand"
	"encoding/binary"
	"fmt"
	"slices"
	"sync"
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

// challenge makes a nonce that is good for [wire.NonceLifetime], and for a TPM a
// credential whose secret follows from it.
func (a *Authority) challenge(r api.ChallengeRequest) (api.Challenge, error) {
	now, err := a.clock.Now()
	if err != nil {
		return api.Challenge{}, err
	}
	expires := now.Add(wire.NonceLifetime).Truncate(time.Second)
	body := make([]byte, nonceBody)
	binary.BigEndian.PutUint64(body, uint64(expires.Unix()))
	rand.Read(body[8:])
	c := api.Challenge{Nonce: slices.Concat(body, a.keys.NonceMAC(body)), Expires: expires.UTC()}
	if len(r.EK)+len(r.AK) > 0 {
		in := attest.TPMKeys{Device: r.EK, Key: r.AK}
		c.Credential, err = a.verifier.Credential(attest.TPM, in, a.keys.CredentialSecret(c.Nonce, in))
	}
	return c, err
}

// spend refuses, with "nonce-used", a nonce that no authority of this root made,
// one past its expiry, and one that came before, and notes it: so each request costs
// its sender a challenge, and what it makes us do is done once. Whether another
// authority of this store, or we before a restart, issued for it is decided by the
// store.
func (a *Authority) spend(nonce []byte) error {
	now, err := a.clock.Now()
	if err != nil {
		return err
	}
	if err := a.checkNonce(nonce, now); err != nil {
		return err
	}
	return a.spent.take([nonceBody]byte(nonce), now)
}

// checkNonce refuses, with "nonce-used", a nonce that no authority of this root
// made and one past its expiry.
func (a *Authority) checkNonce(nonce []byte, now time.Time) error {
	if len(nonce) != nonceSize {
		return wire.Refuse(wire.NonceUsed, "challenge: size in bytes", len(nonce), nonceSize)
	}
	body := nonce[:nonceBody]
	if !hmac.Equal(nonce[nonceBody:], a.keys.NonceMAC(body)) {
		return wire.Refuse(wire.NonceUsed, "challenge", "not made here", "a challenge of this authority")
	}
	expires := expiryOf([nonceBody]byte(body))
	// One that was made by a clock far ahead would be good for as long, and for whom
	// its record was lost with a store.
	if now.After(expires) || expires.After(now.Add(wire.NonceLifetime+wire.MaxClockJump)) {
		return wire.Refuse(wire.NonceUsed, "challenge: expiry", expires.UTC(), fmt.Sprint("after ", now.UTC(), ", within ", wire.NonceLifetime))
	}
	return nil
}

// expiryOf is the expiry in a nonce whose MAC was checked.
func expiryOf(body [nonceBody]byte) time.Time {
	return time.Unix(int64(binary.BigEndian.Uint64(body[:])), 0)
}

// spent are the nonces that came and have not ended yet, by the second in which they
// end: about 50 bytes each.
type spent struct {
	most int

	mu   sync.Mutex
	all  map[int64]map[[nonceBody]byte]struct{} // guarded by mu
	held int                                    // guarded by mu; in all of all
}

// newSpent has room for as many nonces as can come, at so many requests a second
// with bursts of twice that, before they end.
func newSpent(perSecond int) *spent {
	most := perSecond * (int(wire.NonceLifetime/time.Second) + 3)
	return &spent{most: most, all: make(map[int64]map[[nonceBody]byte]struct{})}
}

// take notes a nonce, or refuses with "nonce-used" one that is noted, and with "rate"
// one that there is no room for.
func (s *spent) take(body [nonceBody]byte, now time.Time) error {
	end := expiryOf(body).Unix()
	s.mu.Lock()
	defer s.mu.Unlock()
	for ended, nonces := range s.all { // at most one for each second of a nonce's life
		if ended < now.Unix() {
			s.held -= len(nonces)
			delete(s.all, ended)
		}
	}
	if _, there := s.all[end][body]; there {
		return wire.Refuse(wire.NonceUsed, "challenge", "one that came before", "a fresh one for each request")
	}
	if s.held >= s.most {
		return wire.Refuse(wire.TooMany, "challenges that came and have not ended", s.held, s.most)
	}
	if s.all[end] == nil {
		s.all[end] = make(map[[nonceBody]byte]struct{})
	}
	s.all[end][body] = struct{}{}
	s.held++
	return nil
}
