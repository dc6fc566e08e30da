package unitauth

import (
	"time"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/identity"
	"github.com/cohort-tee/cohort/internal/envelope"
	"github.com/cohort-tee/cohort/internal/wire"
	"github.com/cohort-tee/cohort/policy"
)

// Pin selects the units of a session. ID selects one release by its identity id. Task selects
// all releases of a task that its owners approve. Group selects the rosters of a group that its
// parties approve; Role limits it to one role. Exactly one of ID, Task and Group is set, or
// Group together with the ID of one roster: then the session is for the group, but the client
// accepts only units of that roster.
type Pin struct {
	Genesis attest.Digest
	ID      attest.Digest
	Task    string
	Group   string
	Role    string // with Group only; empty means the whole group
}

// envelope returns the pin in the form that gateways and managers parse.
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

// Encode returns the encoding of the pin in an open request.
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

// Holders returns the units that have the ring keys for sessions of the pin that peer opens.
func (p Pin) Holders(peer identity.Peer) identity.RingHolders {
	return identity.RingHolders{Identity: peer.ID(), Role: p.Role, Follow: p.follows()}
}

// follows reports whether sessions of the pin are sealed under follow keys.
func (p Pin) follows() bool { return p.Task != "" || p.Group != "" && p.Role == "" }

// LastCut returns the policy head after the last step that cut off a unit that may have ring
// keys of the pin's sessions. It returns zero before the first such step.
func (p Pin) LastCut(approved policy.Approved) (last attest.Digest) {
	ids := []attest.Digest{p.ID}
	of := identity.RingHolders{Role: p.Role, Follow: p.follows()}
	if p.Task != "" {
		ids, _ = identity.LiveIDs(approved, p.Task) // without any id the session is refused later
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

// expect returns the requirements on a unit that signs for a session of the pin.
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
