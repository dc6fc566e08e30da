package channel

import (
	"crypto/hpke"
	"encoding/binary"
	"fmt"
	"slices"
	"time"

	"github.com/cohort-tee/cohort/identity"
	"github.com/cohort-tee/cohort/internal/ohttp"
	"github.com/cohort-tee/cohort/internal/unitauth"
	"github.com/cohort-tee/cohort/internal/wire"
)

// oneOffKey returns the key pair for KEM i of [ohttp.KEMs], derived from the ring key. It
// refuses with "ring" once the ring key is erased.
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

// oneOffID returns the OHTTP key id for KEM i of [ohttp.KEMs] under a ring key.
func oneOffID(ring identity.RingID, i int) byte { return ring[0]&^1 | byte(i) }

// oneOffKeys returns the key configuration under a ring key, as application/ohttp-keys.
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

// OHTTPKeys returns the key configuration for one-off requests of clients with a pin, both
// signed by this unit and plain. It refuses with "identity" a pin that is not this unit's, with
// "unavailable" if the ring key has expired, with "behind" if the ring key is older than a known
// cut-off, and with "not-found" if the unit belongs to a group.
func (h *Host) OHTTPKeys(pin unitauth.Pin, at time.Time) (signed, plain []byte, err error) {
	st, k, err := h.forOHTTP(at)
	if err != nil {
		return nil, nil, err
	}
	pin.Genesis = st.Genesis
	r, err := st.sealingRing(pin.Encode(), at)
	if err != nil {
		return nil, nil, err
	}
	id := r.key.ID()
	if k.old[id] {
		return nil, nil, wire.Refuse(wire.Behind, "one-off: ring "+id.String(), "a key older than a cut that the unit knows", "a key of a certificate report after it")
	}
	if plain, err = r.oneOffKeys(); err != nil {
		return nil, nil, err
	}
	fields := [][]byte{r.pin, st.Identity[:], id[:], k.head[:], wire.Uint64(st.expiry(r, at)), plain}
	chain := wire.Sum(st.chain)
	signature, err := unitauth.SignFields(h.key, wire.LabelOneOffKeys, append(slices.Clone(fields), st.Root[:], chain[:])...)
	if err != nil {
		return nil, nil, err
	}
	return wire.Frame(wire.LabelOneOffKeys, append(fields, st.chain, signature)...), plain, nil
}
