package authority

import (
	"fmt"
	"strings"
)

// warnings lists faults that do not stop the authority from issuing: damage in the store, and
// groups that it does not serve.
func (a *Authority) warnings() []string {
	var all []string
	if n := len(a.history.Contradictions()); n > 0 {
		all = append(all, fmt.Sprint("contradictions in the policy history: ", n, "; the store was copied or put back, and both histories were served"))
	}
	if tables := a.damage.Tables(); len(tables) > 0 {
		all = append(all, "damaged rows were passed over in: "+strings.Join(tables, ", "))
	}
	return append(all, a.inForce().unservedGroups()...)
}
