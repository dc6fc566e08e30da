package groupcheck

import (
	"fmt"

	"github.com/cohort-tee/cohort/internal/dev"
)

// cluster is a development cluster of a group, which the caller started. Roles are identified by
// their index in the example.
type cluster struct{ *dev.Cluster }

// asked returns the role to which users send requests.
func (d cluster) asked() int { return d.Bin.Example.Asked() }

// holder and other return the first two roles that hold data: they are called and call none.
func (d cluster) holder() int { return d.Bin.Example.Holders()[0] }
func (d cluster) other() int  { return d.Bin.Example.Holders()[1] }

// roleName returns the name of a role, which is also the name of its task.
func (d cluster) roleName(role int) string { return d.Bin.Example.Roles[role].Name }

// party returns the name of a role's party.
func (d cluster) party(role int) string { return d.Bin.Example.Roles[role].Party }

// names returns the names of all roles.
func (d cluster) names() []string {
	names := make([]string, len(d.Bin.Example.Roles))
	for i, r := range d.Bin.Example.Roles {
		names[i] = r.Name
	}
	return names
}

// memberOfParty returns the policy text of a role's member, with the given party.
func (d cluster) memberOfParty(role int, party string) string {
	return fmt.Sprintf("{ party = %q, task = %q, release = \"1\" }", party, d.roleName(role))
}

// handedOut returns the text that a holder logs each time it returns data.
func (d cluster) handedOut() []byte { return []byte(d.Bin.Example.Request.HandedOut) }
