package identity

import (
	"crypto/ecdsa"
	"slices"
	"time"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/internal/wire"
	"github.com/cohort-tee/cohort/policy"
	"github.com/cohort-tee/cohort/policy/policyfile"
)

// Peer is a verified certificate chain. Only [Check] makes a verified Peer; the zero Peer is not
// verified.
type Peer struct {
	ok           bool
	leaf         extension
	measurements []attest.Measurement // from the cross-certificate
	key          *ecdsa.PublicKey
	notAfter     time.Time
	groupRoot    attest.Digest // for kind group only
}

// Verified reports whether p comes from a successful Check.
func (p Peer) Verified() bool { return p.ok }

// LeafKind returns the kind of the leaf.
func (p Peer) LeafKind() Kind { return p.leaf.kind }

// ID returns the identity id. It is zero for kind authority outside groups.
func (p Peer) ID() attest.Digest { return p.leaf.id }

// TaskName returns the name of the task. It is empty for kinds authority and group.
func (p Peer) TaskName() string {
	if p.leaf.kind == KindGroup {
		return ""
	}
	return p.leaf.task
}

// Group returns the name of the group, for kind group only.
func (p Peer) Group() string {
	if p.leaf.kind != KindGroup {
		return ""
	}
	return p.leaf.task
}

// RoleName returns the role of the leaf in its group, for kind group only.
func (p Peer) RoleName() string { return p.leaf.role }

// ApprovedUntil returns the end of the approval by the group's parties, for kind group only.
func (p Peer) ApprovedUntil() time.Time { return p.leaf.ends }

// KeyMode returns the key mode, which determines whether units share the TLS key. It is empty
// for kind authority.
func (p Peer) KeyMode() policyfile.KeyMode { return p.leaf.keyMode }

// PolicyHead returns the head of the policy history under which the leaf was issued. For a leaf
// that several units share, it returns the head after the last step that cut off one of these
// units, or zero before the first such step.
func (p Peer) PolicyHead() attest.Digest { return p.leaf.head }

// Member returns task and release of the program that a unit in a group runs. Both are empty for
// other kinds and for a leaf that several units share.
func (p Peer) Member() (task, release string) { return p.leaf.member.task, p.leaf.member.release }

// Party returns the digest of the SSH key of the party whose program a unit in a group runs,
// as [sshsig.KeyDigest] returns it; zero if Member is empty.
func (p Peer) Party() attest.Digest { return p.leaf.member.party }

// Facts returns the facts in the leaf about its unit, or about the units that share the leaf, for
// [policy.Approved.CutOff]. They are zero for kind authority.
func (p Peer) Facts() policy.Facts {
	if p.leaf.kind == KindAuthority {
		return policy.Facts{}
	}
	f := p.leaf.policyFacts()
	f.Root = p.groupRoot
	return f
}

// Development reports whether the leaf was issued under a development policy.
func (p Peer) Development() bool { return p.leaf.development }

// Debug reports whether the leaf was issued under a policy that accepts debuggable TEEs, whose
// memory the host can read.
func (p Peer) Debug() bool { return p.leaf.debug }

// UnitID returns the unit id. It is zero if the leaf is shared.
func (p Peer) UnitID() wire.UnitID { return p.leaf.unit }

// Platform returns the platform of the unit's evidence. It is empty if the leaf is shared.
func (p Peer) Platform() attest.Platform { return p.leaf.platform }

// ChipID returns the chip id in the unit's evidence. It is empty if the leaf is shared.
func (p Peer) ChipID() string { return p.leaf.chip }

// Measurements returns all measurements of the identity, none for kinds authority and group. The
// caller may keep the slice.
func (p Peer) Measurements() []attest.Measurement { return slices.Clone(p.measurements) }

// PublicKey returns the leaf's key. It is nil in the zero Peer.
func (p Peer) PublicKey() *ecdsa.PublicKey { return p.key }

// NotAfter returns the last second at which the leaf is valid.
func (p Peer) NotAfter() time.Time { return p.notAfter }
