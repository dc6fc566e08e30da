package identity

import (
	"crypto/x509"
	"slices"
	"time"

	"github.com/cohort-tee/cohort/internal/wire"
)

// crossOf is the kind of the cross-certificate above a leaf.
func crossOf(leaf Kind) Kind {
	if leaf == KindGroup {
		return kindGroupCross
	}
	return kindCross
}

// member checks what a leaf of a group says of itself.
func (e Expect) member(c *x509.Certificate, x extension) error {
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

// agreed demands that a group's identity is one that the policy has in force,
// that the policy's history does not show its parties disagree, and that the
// caller's pins hold.
func (e Expect) agreed(cross extension) error {
	p := e.Policy.Pact(e.Group)
	if p == nil {
		return wire.Refuse(wire.NotFound, "group", e.Group, "a group of the policy")
	}
	want := p.ID()
	if p.ID() != cross.id && p.Before != nil {
		p = p.Before
	}
	if p.ID() != cross.id {
		return wire.Refuse(wire.StaleRoster, "group "+e.Group+": identity", cross.id, want)
	}
	if err := p.Refuted(e.At); err != nil {
		return err
	}
	return e.pinned(cross)
}
