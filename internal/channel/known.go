package channel

import (
	"time"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/identity"
	"github.com/cohort-tee/cohort/internal/wire"
	"github.com/cohort-tee/cohort/policy"
)

// knownPolicy is the newest policy that a unit knows, independent of its certificate report,
// and the effects of that policy until the next report. The host's mutex guards it. The map is
// never changed, so that a copy of a knownPolicy may be read without the mutex.
type knownPolicy struct {
	policy  policy.Approved          // newest policy passed to Follow; zero before that
	head    attest.Digest            // the policy head that the unit has reached; its sessions contain it
	old     map[identity.RingID]bool // ring keys older than a cut-off
	checked bool                     // cut is computed
	cut     error                    // refusal of the unit if it is cut off itself
}

// Follow applies p, the newest policy that the unit has adopted. From a cut-off until the next
// certificate report, the unit does not use ring keys that the cut-off unit may have: it seals and
// opens no session under them, and serves no keys for one-off requests. It serves the sessions in
// its memory, and a session that it opens stays with it alone. A unit that is cut off itself serves
// nothing.
//
// Retiring a release is not a cut-off. Follow ignores a policy that does not continue the
// applied one.
func (h *Host) Follow(p policy.Approved) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if before := h.known.policy; before.Genuine() && !p.Knows(before.PolicyHead()) {
		return
	}
	h.known.policy = p
	if h.credentials != nil {
		h.known.consider(h.credentials)
	}
}

// consider computes the effects of the policy on credentials.
func (k *knownPolicy) consider(st *credentials) {
	k.head, k.old, k.checked, k.cut = st.Head, map[identity.RingID]bool{}, false, nil
	for id, r := range st.rings {
		if r.cutBy(k.policy) {
			k.old[id] = true
		}
	}
	if k.policy.Knows(st.Head) && len(k.old) == 0 && !k.policy.Concerns(st.Head, st.Facts) {
		k.head = k.policy.PolicyHead()
	}
}

// CutOff returns a refusal with "cut-off" if the newest policy cuts off this unit.
func (h *Host) CutOff(at time.Time) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.credentials == nil {
		return nil
	}
	return h.known.cutOff(h.credentials, at)
}

// cutOff implements [Host.CutOff]. It evaluates each policy once for the same credentials.
func (k *knownPolicy) cutOff(st *credentials, at time.Time) error {
	if !k.checked && k.policy.Knows(st.Head) {
		k.checked, k.cut = true, nil
		if cause := k.policy.CutOff(st.Facts, at); cause != nil {
			k.cut = wire.Refuse(wire.CutOff, "unit: own certificate under the newest policy", cause, "one that is not cut off")
		}
	}
	return k.cut
}

// reachedHead returns the policy head that the unit has reached, for a request that began under
// the credentials st. It refuses as [Host.CutOff] does.
func (h *Host) reachedHead(st *credentials, at time.Time) (attest.Digest, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if err := h.known.cutOff(h.credentials, at); err != nil {
		return attest.Digest{}, err
	}
	if st != h.credentials { // the newest policy may have removed the release in the certificate of st
		return st.Head, nil
	}
	return h.known.head, nil
}

// hasReached reports whether the unit has reached a policy head.
func (k *knownPolicy) hasReached(head attest.Digest) bool {
	if head == k.head {
		return true
	}
	at, known := k.policy.Index(head)
	got, _ := k.policy.Index(k.head)
	return known && at <= got
}

// cutBy reports whether a policy step cut off a unit that may have the ring key, after the step
// at which this unit first received the key.
func (r *ring) cutBy(p policy.Approved) bool {
	return identity.RingCutSince(p, r.holders, r.since)
}

// oldRingError returns the refusal of a ring key that is older than a cut-off.
func oldRingError(id identity.RingID) error {
	return wire.Refuse(wire.UnknownRing, "ring "+id.String(), "a key older than a cut that the unit knows", "a key of a certificate report after it")
}
