package unitauth

import (
	"encoding/binary"
	"fmt"
	"slices"
	"time"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/identity"
	"github.com/cohort-tee/cohort/internal/ohttp"
	"github.com/cohort-tee/cohort/internal/wire"
	"github.com/cohort-tee/cohort/policy"
)

// MaxSignedKeys is the maximum size of a signed key configuration, in bytes.
const MaxSignedKeys = 32 << 10

// OHTTPKeys is a key configuration for one-off requests.
type OHTTPKeys struct {
	Plain   []byte        // application/ohttp-keys
	Unit    identity.Peer // unit that signed the configuration
	Expires time.Time
	Key     ohttp.PublicKey // key under which requests are sealed
	head    attest.Digest   // policy head of the unit when it signed
	holders identity.RingHolders
}

// IsSet reports whether k contains a key. The zero OHTTPKeys contains none.
func (k OHTTPKeys) IsSet() bool { return k.Key.Public != nil }

// CutOff refuses, with "cut-off", keys that must not be used under a policy: the policy cuts
// off the unit that signed them, or has since cut off a unit that may have the private keys.
func (k OHTTPKeys) CutOff(p policy.Approved, at time.Time) error {
	if err := p.CutOff(k.Unit.Facts(), at); err != nil {
		return err
	}
	if identity.RingCutSince(p, k.holders, k.head) {
		return wire.Refuse(wire.CutOff, "one-off keys: cut of a unit that may hold them", "after policy head "+k.head.String(), "keys since the cut")
	}
	return nil
}

// VerifyOHTTPKeys verifies a signed key configuration for clients with a pin. It refuses with
// these reasons:
//   - "identity": the configuration is for a different pin
//   - "behind": trust does not know the policy head, or the head is before a cut-off of a unit
//     that may have the private keys
//   - a reason of [identity.Check]: the signer is not a unit of the pin
//   - "expired": the keys are not valid at this time
//   - "signature": the unit did not sign the keys
func VerifyOHTTPKeys(b []byte, pin Pin, trust Trust, at time.Time) (OHTTPKeys, error) {
	if len(b) > MaxSignedKeys {
		return OHTTPKeys{}, wire.Refuse(wire.TooLarge, "one-off keys: size in bytes", len(b), MaxSignedKeys)
	}
	var f [8][]byte
	if err := wire.UnframeInto(f[:], wire.LabelOneOffKeys, b); err != nil {
		return OHTTPKeys{}, err
	}
	for i, size := range []int{32, 16, 32, 8} {
		if len(f[i+1]) != size {
			return OHTTPKeys{}, wire.Refuse(wire.Malformed, fmt.Sprint("one-off keys: size of field ", i+2), len(f[i+1]), size)
		}
	}
	if len(f[6]) > MaxChain {
		return OHTTPKeys{}, wire.Refuse(wire.TooLarge, "one-off keys: size of the chain", len(f[6]), MaxChain)
	}
	if string(f[0]) != string(pin.Encode()) {
		return OHTTPKeys{}, wire.Refuse(wire.WrongIdentity, "one-off keys: pin", fmt.Sprintf("%x", f[0]), fmt.Sprintf("%x, of the client", pin.Encode()))
	}
	claims := SignerClaims{Head: f[3], Identity: f[1], Expiry: f[4]}
	peer, err := trust.Signer(f[6], pin, claims, at)
	if err != nil {
		return OHTTPKeys{}, err
	}
	head, holders := attest.Digest(f[3]), pin.Holders(peer)
	if identity.RingCutSince(trust.Policy, holders, head) {
		return OHTTPKeys{}, wire.Refuse(wire.Behind, "one-off keys: policy head", head, "a head since the last cut of a unit that may have the keys")
	}
	root, chain := trust.Policy.Document().Authority.Root, wire.Sum(f[6])
	if err := VerifyFields(peer.PublicKey(), f[7], wire.LabelOneOffKeys, append(slices.Clone(f[:6]), root[:], chain[:])...); err != nil {
		return OHTTPKeys{}, err
	}
	keys, err := UnverifiedOHTTPKeys(f[5])
	keys.Unit, keys.head, keys.holders = peer, head, holders
	keys.Expires = time.Unix(int64(binary.BigEndian.Uint64(f[4])), 0)
	return keys, err
}

// UnverifiedOHTTPKeys parses application/ohttp-keys that the caller verifies by other means. It
// uses the first key that it supports, and refuses a list without such a key with "malformed".
func UnverifiedOHTTPKeys(b []byte) (OHTTPKeys, error) {
	key, err := ohttp.ParseKeys(b)
	return OHTTPKeys{Plain: b, Key: key}, err
}
