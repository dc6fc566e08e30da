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

// verifyGroupChain verifies the rest of a chain in a group: the leaf under the group root, and
// that root, whose extension it returns. A group-bus certificate that follows is for the cluster
// manager and the gateway: it must have the same key, and does not change the result.
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

// CheckGroupRoot verifies the root of a group as [Check] does in a chain: the root is
// self-signed, belongs to a roster in force under the policy, and the parties' approvals name
// it. CheckGroupRoot requires Policy, Group and At of e, and uses IDs and Approvers if set.
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

// findApprovedGroup returns the group's state in the policy for the roster of a root: the newest
// roster or its predecessor. It requires that the parties approve the root with this digest.
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

// verifyParty refuses, with "party", a leaf whose party is not one that the caller pinned for
// the leaf's role. [policy.Approved.CutOff] checks whether the party in a unit's leaf approves.
// A shared leaf names no party. Its key depends on the last cut-off, and a unit receives it
// only if the unit's own party approves.
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

// CheckApprovers refuses, with "party", a roster in which no party has one of the keys, and, with
// the error of [policy.GroupState.Consents], a group root that a party with one of the keys does
// not approve. The keys are digests of SSH keys. Without keys it refuses nothing.
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

// roleApprovalEnd returns the end of the shared leaf of a role: the time at which the first
// approval of the group root by a party of the role's members ends, at the latest the end of the
// roster. Parties that do not approve are ignored, because their units do not get the leaf.
func roleApprovalEnd(p *policy.GroupState, root attest.Digest, role string, at time.Time) time.Time {
	first := p.Roster.Until
	for _, key := range partyKeys(p.Roster, role, attest.Digest{}) {
		if ends, err := p.Consents(root, key, at); err == nil {
			first = earliest(first, ends)
		}
	}
	return first
}

// partyKeys returns the keys of the parties that a leaf of a role belongs to. That is the party
// in the leaf or, if the leaf names none because all units of the role share it, the parties of
// all members. The result is empty if the leaf's party has no member in the role.
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
