package channel

import (
	"time"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/identity"
	"github.com/cohort-tee/cohort/internal/wire"
	"github.com/cohort-tee/cohort/policy"
)

// Pin is what a session stays with: one release by its identity id, a task by
// name through the releases that its owners approve, or a group by name, through
// the rosters that its parties approve: one role of it, or all. Exactly one of
// ID, Task and Group is given.
type Pin struct {
	Genesis attest.Digest
	ID      attest.Digest
	Task    string
	Group   string
	Role    string // with Group; empty is the whole group
}

// The kinds of pin on the wire.
const (
	pinID    = "id"
	pinTask  = "task"
	pinGroup = "group"
	pinRole  = "role"
)

// bytes is Frame("cohort pin v1", kind, identity id or name, genesis). The name
// of a role is GROUP/ROLE.
func (p Pin) bytes() []byte {
	switch {
	case p.Task != "":
		return wire.Frame(wire.LabelPin, []byte(pinTask), []byte(p.Task), p.Genesis[:])
	case p.Role != "":
		return wire.Frame(wire.LabelPin, []byte(pinRole), []byte(p.Group+"/"+p.Role), p.Genesis[:])
	case p.Group != "":
		return wire.Frame(wire.LabelPin, []byte(pinGroup), []byte(p.Group), p.Genesis[:])
	}
	return wire.Frame(wire.LabelPin, []byte(pinID), p.ID[:], p.Genesis[:])
}

// check refuses, with "request", a pin that is not exactly one.
func (p Pin) check() error {
	given := 0
	for _, name := range []string{p.Task, p.Group} {
		if name != "" {
			given++
		}
	}
	named := wire.NameOK(p.Task+p.Group) && (p.Role == "" || p.Group != "" && wire.NameOK(p.Role))
	if !p.ID.IsZero() {
		given, named = given+1, p.Role == ""
	}
	if p.Genesis.IsZero() || given != 1 || !named {
		return wire.Refuse(wire.BadRequest, "session: pin", p, "a genesis, and an identity id, a task, or a group")
	}
	return nil
}

// expect is what a unit that signs for a session of the pin must be.
func (p Pin) expect(approved policy.Approved, at time.Time) (identity.Expect, error) {
	e := identity.Expect{Policy: approved, Kinds: []identity.Kind{identity.KindUnit}, Use: identity.UseSigning, At: at}
	if !approved.OK() || approved.Genesis() != p.Genesis {
		return e, wire.Refuse(wire.WrongGenesis, "session: policy", approved.Genesis(), p.Genesis)
	}
	switch pact := approved.Pact(p.Group); {
	case p.Group != "" && pact == nil:
		return e, wire.Refuse(wire.NotFound, "session: group", p.Group, "a group of the policy")
	case p.Group != "":
		e.Kinds, e.Group, e.Roles = []identity.Kind{identity.KindGroup}, p.Group, []string{p.Role}
		if p.Role == "" {
			e.Roles = pact.Group.RoleNames()
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

// Wants is what a client asks of a session.
type Wants byte

// The wants; all other bits are zero.
const (
	WantEvidence Wants = 1 << iota // fresh evidence, bound to the session's secret
	WantReceipts                   // receipts for requests of this session
)
