package unit

import (
	"fmt"
	"slices"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/identity"
	"github.com/cohort-tee/cohort/internal/api"
	"github.com/cohort-tee/cohort/internal/wire"
	"github.com/cohort-tee/cohort/policy"
)

// checkParties reports the faults of what a configuration says of parties.
func (c Config) checkParties(fault func(rule string, got, want any)) {
	if c.Group == "" {
		if len(c.PartyKeys)+len(c.PeerParties) > 0 || !c.Roster.IsZero() {
			fault("party keys, roster, peer parties", "set without a group", "no such pin, or a group")
		}
		return
	}
	if !keysOK(c.PartyKeys) || len(c.PartyKeys) > wire.MaxPartyKeys {
		fault("party keys", c.PartyKeys, fmt.Sprintf("1 to %d keys of the unit's own party, each once", wire.MaxPartyKeys))
	}
	for role, keys := range c.PeerParties {
		if !wire.ValidName(role) || !keysOK(keys) {
			fault("peer parties of role "+role, keys, "at least 1 key, each once")
		}
	}
}

// keysOK reports whether there are keys, each once.
func keysOK(keys []attest.Digest) bool {
	for i, key := range keys {
		if key.IsZero() || slices.Contains(keys[:i], key) {
			return false
		}
	}
	return len(keys) > 0
}

// ownParty is the key of the unit's own party, where the roster of a report names exactly
// that party for the unit's program in its role. That it approves the roster was checked of
// the report's signer: a quorum of others, and the authority's word, count for neither.
func (c Config) ownParty(p policy.Approved, report api.Report) (attest.Digest, error) {
	id, err := identity.ReleaseID(p, report.Task, report.Release)
	if err != nil {
		return attest.Digest{}, err
	}
	_, key, err := p.GroupByID(report.Identity).Roster.Pinned(c.Role, id, policy.Pins{Parties: c.PartyKeys, Roster: c.Roster})
	return key, err
}
