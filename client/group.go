package client

import (
	"context"
	"fmt"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/internal/unitauth"
	"github.com/cohort-tee/cohort/internal/wire"
	"github.com/cohort-tee/cohort/policy"
)

// Whole, as the Role in [OpenConfig], selects a session that every unit of the group can read.
const Whole = "*"

// OpenGroup opens a session with one role of a group, or with the whole group ([Whole]). Trust must
// be for a group. OpenGroup blocks and fails as [Open] does, and refuses, with "role", a role that
// the group does not have.
func OpenGroup(ctx context.Context, config OpenConfig) (*Channel, error) {
	if config.Trust == nil || config.Trust.config.Group == "" {
		return nil, wire.Refuse(wire.WrongGroup, "channel: trust", "not of a group", "that of FetchTrust for a group")
	}
	g := config.Trust.Policy().GroupByName(config.Trust.config.Group).Group
	if config.Role != Whole && g.Roles[config.Role] == nil {
		return nil, wire.Refuse(wire.WrongRole, "channel: role", config.Role, fmt.Sprint(g.RoleNames(), ", or * for the whole group"))
	}
	return openChannel(ctx, config)
}

// sessionPin returns the pin of the channel's sessions, with the role.
func (o OpenConfig) sessionPin() unitauth.Pin {
	p := o.Trust.basePin()
	if o.Role != Whole {
		p.Role = o.Role
	}
	return p
}

// Group returns the state of the pinned group, as its parties approve it. It returns nil
// if the trust is not for a group.
func (t *Trust) Group() *policy.GroupState {
	return t.Policy().GroupByID(t.groupID())
}

func (t *Trust) groupID() attest.Digest {
	if t.config.Group == "" {
		return attest.Digest{}
	}
	return t.identities[0].ID
}
