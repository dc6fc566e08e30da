package channel

import (
	"time"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/identity"
	"github.com/cohort-tee/cohort/internal/wire"
	"github.com/cohort-tee/cohort/policy"
)

// knownPolicy is the policy that a unit knows beside its certificate report, with its
// effects until the next report. The host's mutex guards it; the map is never changed,
// so that a copy may be read without it.
type knownPolicy struct {
	policy  policy.Approved // the newest that was followed; zero: none
	head    attest.Digest   // the policy head that the unit has reached, which its sessions name
	old     map[identity.RingID]bool
	checked bool  // cut is set
	cut     error // the unit itself is cut off
}

// Follow applies p, the newest policy that the unit has adopted. From a cut until the
// next certificate report, the unit seals and opens nothing under ring keys that a unit
// which was cut off may have, and serves no keys for one-off requests: it serves sessions
// from its own memory, and a session that is opened with it stays there. A unit that is
// cut off itself serves nothing.
//
// Retiring a release is no cut. A policy that does not follow the applied one is ignored.
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

// consider computes the effects of policy on credentials.
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

// CutOff refuses, with "cut-off", while the policy that was followed cuts the unit
// itself off.
func (h *Host) CutOff(at time.Time) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.credentials == nil {
		return nil
	}
	return h.known.cutOff(h.credentials, at)
}

// cutOff is [Host.CutOff]. It evaluates policy once for each credentials and policy.
func (k *knownPolicy) cutOff(st *credentials, at time.Time) error {
	if !k.checked && k.policy.Knows(st.Head) {
		k.checked, k.cut = true, nil
		if cause := k.policy.CutOff(st.Facts, at); cause != nil {
			k.cut = wire.Refuse(wire.CutOff, "unit: own certificate under the newest policy", cause, "one that is not cut off")
		}
	}
	return k.cut
}

// reachedHead returns the policy head that a unit with these or newer credentials has
// reached. It refuses as [Host.CutOff] does.
func (h *Host) reachedHead(st *credentials, at time.Time) (attest.Digest, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if err := h.known.cutOff(h.credentials, at); err != nil {
		return attest.Digest{}, err
	}
	if st != h.credentials { // the certificate may be of a release that the newest policy has removed
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

// cutBy reports whether a policy has a step that cut off a unit which may have the
// ring key, after the step at which this unit first had the key.
func (r *ring) cutBy(p policy.Approved) bool {
	return identity.RingCutSince(p, r.holders, r.since)
}

// oldRingError returns the refusal of sealing or opening under a ring key that is older
// than a cut.
func oldRingError(id identity.RingID) error {
	return wire.Refuse(wire.UnknownRing, "ring "+id.String(), "a key older than a cut that the unit knows", "a key of a certificate report after it")
}
