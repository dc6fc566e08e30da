package channel

import (
	"time"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/identity"
	"github.com/cohort-tee/cohort/internal/wire"
	"github.com/cohort-tee/cohort/policy"
)

// knownPolicy is what a unit knows of policy beside its certificate report, and what
// follows from that for what it does until its next one. The host's mutex guards
// it; the map is never changed, so that a copy may be read without.
type knownPolicy struct {
	policy  policy.Approved // the newest that was followed; zero: none
	head    attest.Digest   // the policy head that the unit has got to, which its sessions name
	old     map[identity.RingID]bool
	checked bool  // cut is what policy says
	cut     error // the unit itself is cut off
}

// Follow makes p, the newest policy that the unit has adopted, count from now on.
// Until the certificate report that follows a cut, the unit seals nothing under ring
// keys that a unit which was cut off may hold, opens nothing under them, and gives no
// keys for one-off requests: what it serves is in its own memory, and a session that
// is opened with it stays there. A unit that is cut off itself serves nothing.
//
// That a release is retired is no cut. A policy that does not follow the one that
// counts is passed over.
func (h *Host) Follow(p policy.Approved) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if before := h.known.policy; before.OK() && !p.Knows(before.Head()) {
		return
	}
	h.known.policy = p
	if h.credentials != nil {
		h.known.consider(h.credentials)
	}
}

// consider says what policy means for a standing.
func (k *knownPolicy) consider(st *credentials) {
	k.head, k.old, k.checked, k.cut = st.Head, map[identity.RingID]bool{}, false, nil
	for id, r := range st.rings {
		if r.cutBy(k.policy) {
			k.old[id] = true
		}
	}
	if k.policy.Knows(st.Head) && len(k.old) == 0 && !k.policy.Concerns(st.Head, st.Facts) {
		k.head = k.policy.Head()
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

// cutOff is [Host.CutOff]. It asks policy once for each standing and policy.
func (k *knownPolicy) cutOff(st *credentials, at time.Time) error {
	if !k.checked && k.policy.Knows(st.Head) {
		k.checked, k.cut = true, nil
		if cause := k.policy.CutOff(st.Facts, at); cause != nil {
			k.cut = wire.Refuse(wire.CutOff, "unit: own certificate under the newest policy", cause, "one that is not cut off")
		}
	}
	return k.cut
}

// reachedHead is the policy head that a unit has got to which signs under a standing, or
// has a newer one since. It refuses as [Host.CutOff] does.
func (h *Host) reachedHead(st *credentials, at time.Time) (attest.Digest, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if err := h.known.cutOff(h.credentials, at); err != nil {
		return attest.Digest{}, err
	}
	if st != h.credentials { // whose certificate may be of a release that the newest policy has removed
		return st.Head, nil
	}
	return h.known.head, nil
}

// hasReached reports whether the unit has got to a policy head.
func (k *knownPolicy) hasReached(head attest.Digest) bool {
	if head == k.head {
		return true
	}
	at, known := k.policy.Index(head)
	got, _ := k.policy.Index(k.head)
	return known && at <= got
}

// cutBy reports whether a policy has a step that cut off a unit which may hold the
// ring key, after the step at which the key was first held here.
func (r *ring) cutBy(p policy.Approved) bool {
	return identity.RingCutSince(p, r.holders, r.since)
}

// oldRingError is the refusal of what is sealed, or would be, under a ring key that is
// older than a cut.
func oldRingError(id identity.RingID) error {
	return wire.Refuse(wire.UnknownRing, "ring "+id.String(), "a key older than a cut that the unit knows", "a key of a certificate report after it")
}
