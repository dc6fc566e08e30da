package unitauth

import (
	"time"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/identity"
	"github.com/cohort-tee/cohort/internal/envelope"
	"github.com/cohort-tee/cohort/internal/wire"
	"github.com/cohort-tee/cohort/policy"
)

// Pin selects the units of a session: one release by its identity id, a task by
// name through the releases that its owners approve, or a group by name, through
// the rosters that its parties approve: one role of it, or all. Exactly one of
// ID, Task and Group is given, or Group with the ID of one roster: the session is
// that of the group, and its client accepts units of that roster alone.
type Pin struct {
	Genesis attest.Digest
	ID      attest.Digest
	Task    string
	Group   string
	Role    string // with Group; empty is the whole group
}

// envelope returns the pin as a carrier reads it.
func (p Pin) envelope() envelope.Pin {
	switch {
	case p.Task != "":
		return envelope.Pin{Kind: envelope.PinTask, Name: p.Task, Genesis: p.Genesis}
	case p.Role != "":
		return envelope.Pin{Kind: envelope.PinRole, Name: p.Group + "/" + p.Role, Genesis: p.Genesis}
	case p.Group != "":
		return envelope.Pin{Kind: envelope.PinGroup, Name: p.Group, Genesis: p.Genesis}
	}
	return envelope.Pin{Kind: envelope.PinID, Name: string(p.ID[:]), Genesis: p.Genesis}
}

// Encode returns the pin as it is in an open request.
func (p Pin) Encode() []byte { return p.envelope().Encode() }

// Validate refuses, with "request", a pin that does not name exactly one identity, task or
// group.
func (p Pin) Validate() error {
	given := 0
	for _, name := range []string{p.Task, p.Group} {
		if name != "" {
			given++
		}
	}
	named := wire.ValidName(p.Task+p.Group) && (p.Role == "" || p.Group != "" && wire.ValidName(p.Role))
	if !p.ID.IsZero() && p.Group == "" {
		given, named = given+1, p.Role == ""
	}
	if p.Genesis.IsZero() || given != 1 || !named {
		return wire.Refuse(wire.BadRequest, "session: pin", p, "a genesis, and an identity id, a task, or a group")
	}
	return nil
}

// Holders returns the units that have the ring keys of the pin's sessions which a unit
// opens.
func (p Pin) Holders(peer identity.Peer) identity.RingHolders {
	return identity.RingHolders{Identity: peer.ID(), Role: p.Role, Follow: p.follows()}
}

// follows reports whether sessions of the pin are sealed under follow keys.
func (p Pin) follows() bool { return p.Task != "" || p.Group != "" && p.Role == "" }

// LastCut returns the policy head after the last step that cut off a unit which may have
// ring keys of the pin's sessions; zero before the first.
func (p Pin) LastCut(approved policy.Approved) (last attest.Digest) {
	ids := []attest.Digest{p.ID}
	of := identity.RingHolders{Role: p.Role, Follow: p.follows()}
	if p.Task != "" {
		ids, _ = identity.LiveIDs(approved, p.Task) // none: the session will be refused
	}
	if p.Group != "" {
		ids = nil
		for pact := approved.GroupByName(p.Group); pact != nil; pact = pact.Predecessor {
			ids = append(ids, pact.ID())
		}
	}
	newest := -1
	for _, of.Identity = range ids {
		cut := identity.RingCut(approved, of)
		if i, known := approved.Index(cut); known && i > newest {
			last, newest = cut, i
		}
	}
	return last
}

// expect returns the requirements for a unit that signs for a session of the pin.
func (p Pin) expect(approved policy.Approved, at time.Time) (identity.Expect, error) {
	e := identity.Expect{Policy: approved, Kinds: []identity.Kind{identity.KindUnit}, Use: identity.UseSigning, At: at}
	if !approved.Genuine() || approved.Genesis() != p.Genesis {
		return e, wire.Refuse(wire.WrongGenesis, "session: policy", approved.Genesis(), p.Genesis)
	}
	switch pact := approved.GroupByName(p.Group); {
	case p.Group != "" && pact == nil:
		return e, wire.Refuse(wire.NotFound, "session: group", p.Group, "a group of the policy")
	case p.Group != "":
		e.Kinds, e.Group, e.Roles = []identity.Kind{identity.KindGroup}, p.Group, []string{p.Role}
		if p.Role == "" {
			e.Roles = pact.Group.RoleNames()
		}
		if !p.ID.IsZero() {
			e.IDs = []attest.Digest{p.ID}
		}
	case p.Task != "":
		var err error
		e.IDs, err = identity.LiveIDs(approved, p.Task)
		return e, err
	default:
		e.IDs = []attest.Digest{p.ID}
	}
	return e, nil
}
