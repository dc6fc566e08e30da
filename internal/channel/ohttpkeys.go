package channel

import (
	"crypto/hpke"
	"encoding/binary"
	"fmt"
	"slices"
	"time"

	"github.com/cohort-tee/cohort/identity"
	"github.com/cohort-tee/cohort/internal/wire"
)

// Sizes in bytes.
const (
	maxKeys       = 4 << 10  // application/ohttp-keys
	maxSignedKeys = 32 << 10 // the signed key configuration
)

// oneOffKey is the key pair of a KEM of the table, derived from the ring key. It
// refuses with "ring" once that is erased.
func (r *ring) oneOffKey(i int) (hpke.PrivateKey, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.oneOffs[i] != nil {
		return r.oneOffs[i], nil
	}
	id := r.key.ID()
	seed, err := r.key.Derive(32, wire.LabelOneOffKey, binary.BigEndian.AppendUint16(nil, kems[i].ID()), id[:])
	if err != nil {
		return nil, err
	}
	defer clear(seed)
	wire.Secretly(func() { r.oneOffs[i], err = kems[i].DeriveKeyPair(seed) })
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
	for i, k := range kems {
		private, err := r.oneOffKey(i)
		if err != nil {
			return nil, err
		}
		one := binary.BigEndian.AppendUint16([]byte{oneOffID(r.key.ID(), i)}, k.ID())
		one = append(one, private.PublicKey().Bytes()...)
		one = binary.BigEndian.AppendUint16(one, uint16(4*len(k.aeads)))
		for _, aead := range k.aeads {
			one = binary.BigEndian.AppendUint16(binary.BigEndian.AppendUint16(one, hkdfSHA256), aead)
		}
		b = append(binary.BigEndian.AppendUint16(b, uint16(len(one))), one...)
	}
	return b, nil
}

// OneOffKeys is the key configuration for one-off requests of clients with a
// pin: signed by this unit, and as plain clients take it. It refuses, with
// "identity", a pin that is not this unit's, and with "not-found" in a group.
func (h *Host) OneOffKeys(pin Pin, at time.Time) (signed, plain []byte, err error) {
	h.mu.Lock()
	at = h.at(at)
	st, err := h.serving(at)
	h.mu.Unlock()
	if err != nil {
		return nil, nil, err
	}
	if st.Group != "" {
		return nil, nil, wire.Refuse(wire.NotFound, "one-off", "a unit of group "+st.Group, "one of a task")
	}
	pin.Genesis = st.Genesis
	r, err := st.sealing(pin.bytes())
	if err != nil {
		return nil, nil, err
	}
	if plain, err = r.oneOffKeys(); err != nil {
		return nil, nil, err
	}
	id := r.key.ID()
	fields := [][]byte{r.pin, st.Identity[:], id[:], st.Head[:], wire.Uint64(st.expiry(r, at)), plain}
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
	key     oneOffKey
}

// oneOffKey is the key that a client uses.
type oneOffKey struct {
	capsule
	public hpke.PublicKey
}

// VerifyOneOffKeys judges a signed key configuration for clients with a pin. It
// refuses with "identity" one for another pin, with "behind" a policy head that
// trust does not know, with the reasons of [identity.Check] a signer that is no
// unit of the pin's, with "expired" one of another time, and with "signature"
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
	root, chain := trust.Policy.Document().Authority.Root, wire.Sum(f[6])
	if err := verify(peer.PublicKey(), f[7], wire.LabelOneOffKeys, append(slices.Clone(f[:6]), root[:], chain[:])...); err != nil {
		return OneOffKeys{}, err
	}
	keys, err := UnverifiedOneOffKeys(f[5])
	keys.Unit, keys.Expires = peer, time.Unix(int64(binary.BigEndian.Uint64(f[4])), 0)
	return keys, err
}

// UnverifiedOneOffKeys reads application/ohttp-keys that somebody vouches for
// otherwise. It takes the first key that it can use, and refuses with
// "malformed" a list without one.
func UnverifiedOneOffKeys(b []byte) (OneOffKeys, error) {
	if len(b) > maxKeys {
		return OneOffKeys{}, wire.Refuse(wire.TooLarge, "one-off keys: size in bytes", len(b), maxKeys)
	}
	keys := OneOffKeys{Plain: b}
	for len(b) > 0 {
		if len(b) < 2 || len(b)-2 < int(binary.BigEndian.Uint16(b)) {
			return OneOffKeys{}, wire.Refuse(wire.Malformed, "one-off keys", "a cut key", "its whole length")
		}
		end := 2 + int(binary.BigEndian.Uint16(b))
		key, err := parseOneOffKey(b[2:end])
		if err != nil {
			return OneOffKeys{}, err
		}
		if keys.key.public == nil {
			keys.key = key
		}
		b = b[end:]
	}
	if keys.key.public == nil {
		return OneOffKeys{}, wire.Refuse(wire.Malformed, "one-off keys", "none of a known kind", "MLKEM768-X25519 or X25519")
	}
	return keys, nil
}

// parseOneOffKey reads one key configuration, RFC 9458, section 3.1. One of
// unknown algorithms has no public key.
func parseOneOffKey(b []byte) (key oneOffKey, err error) {
	if len(b) < 3 {
		return oneOffKey{}, wire.Refuse(wire.Malformed, "one-off key", "a cut one", "id and KEM")
	}
	id := binary.BigEndian.Uint16(b[1:])
	i := slices.IndexFunc(kems[:], func(k kem) bool { return k.ID() == id })
	if i < 0 {
		return oneOffKey{}, nil
	}
	rest := b[3:]
	size := kems[i].keySize
	if len(rest) < size+2 || len(rest)-size-2 != int(binary.BigEndian.Uint16(rest[size:])) || len(rest) == size+2 || (len(rest)-size-2)%4 != 0 {
		return oneOffKey{}, wire.Refuse(wire.Malformed, "one-off key: size in bytes", len(b), "that of its KEM and pairs of algorithms")
	}
	for pairs := rest[size+2:]; len(pairs) > 0; pairs = pairs[4:] {
		c := capsule{b[0], id, binary.BigEndian.Uint16(pairs), binary.BigEndian.Uint16(pairs[2:])}
		if c.kdf != hkdfSHA256 || c.aead != aes128 && c.aead != aes256 {
			continue
		}
		if key.public, err = kems[i].NewPublicKey(rest[:size]); err != nil {
			return oneOffKey{}, wire.Refuse(wire.Malformed, "one-off key", err, "a public key")
		}
		key.capsule = c
		break
	}
	return key, nil
}
