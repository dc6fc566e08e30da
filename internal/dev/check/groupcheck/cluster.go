package groupcheck

import (
	"fmt"

	"github.com/cohort-tee/cohort/internal/dev"
)

// cluster is a development cluster of a group, that its caller started. Its roles are known
// by their places in the example.
type cluster struct{ *dev.Cluster }

// asked is the role that users ask.
func (d cluster) asked() int { return d.Bin.Example.Asked() }

// holder and other are the first two roles that hold data: they are called and call none.
func (d cluster) holder() int { return d.Bin.Example.Holders()[0] }
func (d cluster) other() int  { return d.Bin.Example.Holders()[1] }

// roleName is that of a role, and of its program's task.
func (d cluster) roleName(role int) string { return d.Bin.Example.Roles[role].Name }

// party is the name of a role's party.
func (d cluster) party(role int) string { return d.Bin.Example.Roles[role].Party }

// names are those of all roles.
func (d cluster) names() []string {
	names := make([]string, len(d.Bin.Example.Roles))
	for i, r := range d.Bin.Example.Roles {
		names[i] = r.Name
	}
	return names
}

// memberOfParty is a role's member as the policy writes it, of a party.
func (d cluster) memberOfParty(role int, party string) string {
	return fmt.Sprintf("{ party = %q, task = %q, release = \"1\" }", party, d.roleName(role))
}

// handedOut is what a holder of the example logs each time that data leaves it.
func (d cluster) handedOut() []byte { return []byte(d.Bin.Example.Request.HandedOut) }
