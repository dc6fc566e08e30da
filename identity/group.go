package identity

import (
	"bytes"
	"crypto/x509"
	"fmt"
	"slices"
	"time"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/internal/wire"
	"github.com/cohort-tee/cohort/policy"
)

// verifyMember verifies the group fields of a leaf.
func (e Expect) verifyMember(c *x509.Certificate, x extension) error {
	if want := e.Policy.Document().TrustDomain; len(c.URIs) == 1 && c.URIs[0].Host != want {
		return wire.Refuse(wire.WrongDomain, "leaf: trust domain", c.URIs[0].Host, want)
	}
	switch {
	case x.task != e.Group:
		return wire.Refuse(wire.WrongGroup, "leaf: group", x.task, e.Group)
	case !slices.Contains(e.Roles, x.role):
		return wire.Refuse(wire.WrongRole, "leaf: role", x.role, e.Roles)
	case e.At.After(x.ends):
		return wire.Refuse(wire.Expired, "leaf: approval of the parties", e.At.UTC(), "before "+x.ends.Format(time.RFC3339))
	}
	return nil
}

// verifyGroupChain verifies the rest of a chain in a group: the leaf under the group root, and that root,
// whose extension it returns. A group-bus certificate that follows is for manager and gateway:
// it must be of the same key, and has no effect on the result.
func (e Expect) verifyGroupChain(chain []*x509.Certificate, authorityRoot *x509.Certificate, leaf extension) (extension, error) {
	if len(chain) != 2 && len(chain) != 3 {
		return extension{}, wire.Refuse(wire.BadChain, "chain: certificates in a group", len(chain), "leaf and group root, optionally a group-bus certificate")
	}
	root, err := e.verifySelfSigned(chain[1], kindGroupRoot)
	if err != nil {
		return extension{}, fmt.Errorf("checking group root: %w", err)
	}
	if err := verifySignedBy(chain[0], chain[1]); err != nil {
		return extension{}, fmt.Errorf("checking leaf: %w", err)
	}
	if leaf.id != root.id || leaf.task != root.task {
		return extension{}, wire.Refuse(wire.WrongIdentity, "leaf: identity", leaf.id, root.id)
	}
	if len(chain) == 3 {
		if err := e.verifyGroupBus(chain[2], chain[1], authorityRoot); err != nil {
			return extension{}, fmt.Errorf("checking group-bus certificate: %w", err)
		}
	}
	p, err := e.findApprovedGroup(root, wire.Sum(chain[1].RawSubjectPublicKeyInfo))
	if err == nil && leaf.kind == KindGroup {
		err = e.verifyParty(p, leaf)
	}
	return root, err
}

// verifyGroupBus verifies the certificate of a group root's key under the authority root.
func (e Expect) verifyGroupBus(c, groupRoot, authorityRoot *x509.Certificate) error {
	x, err := e.verifyCA(c, kindGroupBus)
	if err != nil {
		return err
	}
	root, err := extensionOf(groupRoot)
	if err != nil {
		return err
	}
	if x.id != root.id || !bytes.Equal(c.RawSubjectPublicKeyInfo, groupRoot.RawSubjectPublicKeyInfo) {
		return wire.Refuse(wire.WrongIdentity, "group-bus certificate: identity and key", x.id, root.id)
	}
	return verifySignedBy(c, authorityRoot)
}

// CheckGroupRoot verifies the root of a group as [Check] does in a chain: self-signed, of the
// roster that the policy has in force, and named by the approvals of its parties. It uses
// Policy, Group, IDs and At of e, all but IDs required.
func CheckGroupRoot(root *x509.Certificate, e Expect) error {
	switch {
	case !e.Policy.Genuine():
		return wire.Refuse(wire.BadPolicy, "expect: policy", "not set", "a value")
	case e.Group == "":
		return wire.Refuse(wire.WrongGroup, "expect: group", "not set", "a value")
	case e.At.IsZero():
		return wire.Refuse(wire.ClockSkew, "expect: time", "not set", "a value")
	}
	x, err := e.verifySelfSigned(root, kindGroupRoot)
	if err != nil {
		return fmt.Errorf("checking group root: %w", err)
	}
	if _, err := e.findApprovedGroup(x, wire.Sum(root.RawSubjectPublicKeyInfo)); err != nil {
		return err
	}
	return e.verifyPins(x)
}

// findApprovedGroup requires that a group's identity is one that the policy has in force, and that its
// parties approve this root of it according to the policy's history.
func (e Expect) findApprovedGroup(root extension, digest attest.Digest) (*policy.GroupState, error) {
	p := e.Policy.GroupByName(e.Group)
	if p == nil {
		return nil, wire.Refuse(wire.NotFound, "group", e.Group, "a group of the policy")
	}
	want := p.ID()
	if p.ID() != root.id && p.Predecessor != nil {
		p = p.Predecessor
	}
	if p.ID() != root.id {
		return nil, wire.Refuse(wire.StaleRoster, "group "+e.Group+": identity", root.id, want)
	}
	if _, err := p.ApprovedUntil(digest, e.At); err != nil {
		return nil, err
	}
	return p, CheckApprovers(p, digest, e.Approvers, e.At)
}

// verifyParty refuses, with "party", a leaf of another party than the caller pinned for its role.
// Whether the party named in a unit's leaf approves is checked by [policy.Approved.CutOff]. A
// shared leaf names no party: its key is derived from the last cut, and only units whose own
// party approves receive it.
func (e Expect) verifyParty(p *policy.GroupState, leaf extension) error {
	pins, pinned := e.Parties[leaf.role]
	if !pinned {
		return nil
	}
	for _, key := range partyKeys(p.Roster, leaf.role, leaf.member.party) {
		if !slices.Contains(pins, key) {
			return wire.Refuse(wire.NoParty, "leaf: key of the party of role "+leaf.role, key, pins)
		}
	}
	return nil
}

// CheckApprovers refuses a group root that a trusted party has not approved: with "party" a roster
// that has none of its keys, and as [policy.GroupState.Consents] does a root that a party with such
// a key does not approve. Without keys it refuses nothing.
func CheckApprovers(p *policy.GroupState, root attest.Digest, keys []attest.Digest, at time.Time) error {
	found := len(keys) == 0
	for _, party := range p.Roster.Parties {
		if !slices.Contains(keys, party.Key) {
			continue
		}
		found = true
		if _, err := p.Consents(root, party.Key, at); err != nil {
			return err
		}
	}
	if !found {
		return wire.Refuse(wire.NoParty, "group "+p.Roster.Group+": party that is trusted", keys, "the key of a party of the roster")
	}
	return nil
}

// roleApprovalEnd returns the time at which the first approval of a group root by the parties of a
// role's members ends, at the latest the group's end: no leaf that several of their units
// share outlives it. A party that does not approve has no share in it.
func roleApprovalEnd(p *policy.GroupState, root attest.Digest, role string, at time.Time) time.Time {
	first := p.Roster.Until
	for _, key := range partyKeys(p.Roster, role, attest.Digest{}) {
		if ends, err := p.Consents(root, key, at); err == nil {
			first = earliest(first, ends)
		}
	}
	return first
}

// partyKeys returns the keys of the parties that a leaf of a role belongs to: the party named in
// the leaf, or, if the leaf names none because all units of the role share it, the party of
// each member. It is empty if the named party has no member in the role.
func partyKeys(r policy.Roster, role string, party attest.Digest) []attest.Digest {
	var keys []attest.Digest
	for _, x := range r.Roles {
		for _, m := range x.Members {
			for _, p := range r.Parties {
				if x.Name == role && p.Name == m.Party && (party.IsZero() || p.Key == party) && !slices.Contains(keys, p.Key) {
					keys = append(keys, p.Key)
				}
			}
		}
	}
	return keys
}
