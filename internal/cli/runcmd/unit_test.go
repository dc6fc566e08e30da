package runcmd

import (
	"slices"
	"testing"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/internal/cli/sshkey"
	"github.com/cohort-tee/cohort/internal/wire"
)

// TestUnitNamesItsParty: a unit in a group does not start without its party's key,
// and one of a task has no party.
func TestUnitNamesItsParty(t *testing.T) {
	key := sshkey.Fingerprint(attest.Digest{1})
	roster := attest.Digest{2}.String()
	for name, tt := range map[string]struct {
		flags unitFlags
		ok    bool
	}{
		"group":                    {unitFlags{group: "trial", partyKeys: []string{key}, roster: roster, peerParties: []string{"bank=" + key}}, true},
		"task":                     {unitFlags{task: "keys"}, true},
		"group without a key":      {unitFlags{group: "trial"}, false},
		"group, peers' keys alone": {unitFlags{group: "trial", peerParties: []string{"bank=" + key}}, false},
		"task with a key":          {unitFlags{task: "keys", partyKeys: []string{key}}, false},
		"task with a roster":       {unitFlags{task: "keys", roster: roster}, false},
		"task with a peer's key":   {unitFlags{task: "keys", peerParties: []string{"bank=" + key}}, false},
		"no digest":                {unitFlags{group: "trial", partyKeys: []string{key}, roster: "sha256:1"}, false},
		"no key":                   {unitFlags{group: "trial", partyKeys: []string{"north"}}, false},
	} {
		c, err := tt.flags.parties()
		if (err == nil) != tt.ok {
			t.Errorf("%s: got %v", name, err)
		}
		if name == "group" && (!slices.Equal(c.PartyKeys, []attest.Digest{{1}}) || c.Roster != (wire.Digest{2}) || len(c.PeerParties["bank"]) != 1) {
			t.Errorf("%s: got %+v", name, c)
		}
	}
}
