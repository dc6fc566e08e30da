package channel

import (
	"crypto/hpke"
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

// maxSignedKeys is the largest signed key configuration, in bytes.
const maxSignedKeys = 32 << 10

// oneOffKey is the key pair of a KEM of the table, derived from the ring key. It
// refuses with "ring" once that is erased.
func (r *ring) oneOffKey(i int) (hpke.PrivateKey, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.oneOffs[i] != nil {
		return r.oneOffs[i], nil
	}
	id := r.key.ID()
	seed, err := r.key.Derive(32, wire.LabelOneOffKey, binary.BigEndian.AppendUint16(nil, ohttp.KEMs[i].ID()), id[:])
	if err != nil {
		return nil, err
	}
	defer clear(seed)
	wire.Secretly(func() { r.oneOffs[i], err = ohttp.KEMs[i].DeriveKeyPair(seed) })
	if err != nil {
		return nil, fmt.Errorf("deriving a one-off key: %w", err)
	}
	return r.oneOffs[i], nil
}

// oneOffID is the key id of a KEM of the table under a ring key.
func oneOffID(ring identity.RingID, i int) byte { return ring[0]&^1 | byte(i) }

// oneOffKeys is the key configuration of a ring key, as application/ohttp-keys.
func (r *ring) oneOffKeys() ([]byte, error) {
	var b []byte
	for i, kem := range ohttp.KEMs {
		private, err := r.oneOffKey(i)
		if err != nil {
			return nil, err
		}
		b = ohttp.AppendKey(b, oneOffID(r.key.ID(), i), kem, private.PublicKey())
	}
	return b, nil
}

// OneOffKeys is the key configuration for one-off requests of clients with a
// pin: signed by this unit, and as plain clients take it. It refuses, with
// "identity", a pin that is not this unit's, with "unavailable" while the ring key
// has ended, with "behind" while it is older than a cut that the unit knows, and with
// "not-found" in a group.
func (h *Host) OneOffKeys(pin Pin, at time.Time) (signed, plain []byte, err error) {
	st, k, err := h.forOneOffs(at)
	if err != nil {
		return nil, nil, err
	}
	pin.Genesis = st.Genesis
	r, err := st.sealing(pin.bytes(), at)
	if err != nil {
		return nil, nil, err
	}
	id := r.key.ID()
	if k.old[id] {
		return nil, nil, wire.Refuse(wire.Behind, "one-off: ring "+id.String(), "one that is older than a cut that the unit knows", "one of a certificate report after it")
	}
	if plain, err = r.oneOffKeys(); err != nil {
		return nil, nil, err
	}
	fields := [][]byte{r.pin, st.Identity[:], id[:], k.head[:], wire.Uint64(st.expiry(r, at)), plain}
	chain := wire.Sum(st.chain)
	signature, err := sign(h.key, wire.LabelOneOffKeys, append(slices.Clone(fields), st.Root[:], chain[:])...)
	if err != nil {
		return nil, nil, err
	}
	return wire.Frame(wire.LabelOneOffKeys, append(fields, st.chain, signature)...), plain, nil
}

// OneOffKeys is a key configuration for one-off requests.
type OneOffKeys struct {
	Plain   []byte        // as application/ohttp-keys has it
	Unit    identity.Peer // that signed it
	Expires time.Time
	key     ohttp.PublicKey
	head    attest.Digest // that the unit stood under
	holders identity.RingHolders
}

// OK reports whether there are keys: the zero OneOffKeys hold none.
func (k OneOffKeys) OK() bool { return k.key.Public != nil }

// CutOff refuses, with "cut-off", keys that a policy lets nobody use any more: of a
// signer that it cuts off, or that a unit which was cut off since may hold.
func (k OneOffKeys) CutOff(p policy.Approved, at time.Time) error {
	if err := p.CutOff(k.Unit.Facts(), at); err != nil {
		return err
	}
	if identity.RingCutSince(p, k.holders, k.head) {
		return wire.Refuse(wire.CutOff, "one-off keys: cut of a unit that may hold them", "after policy head "+k.head.String(), "keys since the cut")
	}
	return nil
}

// VerifyOneOffKeys judges a signed key configuration for clients with a pin. It
// refuses with "identity" one for another pin, with "behind" a policy head that
// trust does not know, and one before a cut of units that hold the private keys, with
// the reasons of [identity.Check] a signer that is no unit of the pin's, with "expired" one of another time, and with "signature"
// one that the unit did not sign.
func VerifyOneOffKeys(b []byte, pin Pin, trust Trust, at time.Time) (OneOffKeys, error) {
	if len(b) > maxSignedKeys {
		return OneOffKeys{}, wire.Refuse(wire.TooLarge, "one-off keys: size in bytes", len(b), maxSignedKeys)
	}
	var f [8][]byte
	if err := wire.UnframeInto(f[:], wire.LabelOneOffKeys, b); err != nil {
		return OneOffKeys{}, err
	}
	for i, size := range []int{32, 16, 32, 8} {
		if len(f[i+1]) != size {
			return OneOffKeys{}, wire.Refuse(wire.Malformed, fmt.Sprint("one-off keys: size of field ", i+2), len(f[i+1]), size)
		}
	}
	if len(f[6]) > maxChain {
		return OneOffKeys{}, wire.Refuse(wire.TooLarge, "one-off keys: size of the chain", len(f[6]), maxChain)
	}
	if string(f[0]) != string(pin.bytes()) {
		return OneOffKeys{}, wire.Refuse(wire.WrongIdentity, "one-off keys: pin", "another", "the client's")
	}
	said := signer{head: f[3], identity: f[1], expiry: f[4]}
	peer, err := trust.signer(f[6], pin, said, at)
	if err != nil {
		return OneOffKeys{}, err
	}
	head, holders := attest.Digest(f[3]), pin.holders(peer)
	if identity.RingCutSince(trust.Policy, holders, head) {
		return OneOffKeys{}, wire.Refuse(wire.Behind, "one-off keys: policy head", "one before a cut", "one since the cut")
	}
	root, chain := trust.Policy.Document().Authority.Root, wire.Sum(f[6])
	if err := verify(peer.PublicKey(), f[7], wire.LabelOneOffKeys, append(slices.Clone(f[:6]), root[:], chain[:])...); err != nil {
		return OneOffKeys{}, err
	}
	keys, err := UnverifiedOneOffKeys(f[5])
	keys.Unit, keys.head, keys.holders = peer, head, holders
	keys.Expires = time.Unix(int64(binary.BigEndian.Uint64(f[4])), 0)
	return keys, err
}

// UnverifiedOneOffKeys reads application/ohttp-keys that is verified by other means. It takes
// the first key that it can use, and refuses with "malformed" a list without one.
func UnverifiedOneOffKeys(b []byte) (OneOffKeys, error) {
	key, err := ohttp.ParseKeys(b)
	return OneOffKeys{Plain: b, key: key}, err
}
