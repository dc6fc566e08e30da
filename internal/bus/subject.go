package bus

import (
	"encoding/hex"
	"strings"

	"github.com/cohort-tee/cohort/internal/wire"
)

// Subjects, each followed by the cluster, those of one unit also by its id.
const (
	subjectBeat  = "cohort.beat."  // .unit; unit → manager
	subjectSeal  = "cohort.seal."  // one item; unit → manager
	subjectPush  = "cohort.push."  // batch of items; manager → units
	subjectPull  = "cohort.pull."  // request: session id, answer: item or nothing
	subjectRange = "cohort.range." // request: nothing, answer: first ‖ count
	subjectInbox = "cohort.inbox." // .unit.*; answers
	subjectAsk   = "cohort.ask."   // pull, passed on to other managers
	subjectClaim = "cohort.claim"  // first ‖ count; manager → other managers
)

// Rights are the subjects that a unit may use; all others are denied to it.
type Rights struct {
	Publish, Subscribe []string
}

// RightsOf are the rights of one unit of a cluster.
func RightsOf(c Cluster, unit wire.UnitID) Rights {
	cluster := c.String()
	return Rights{
		Publish:   []string{subjectBeat + cluster + "." + unit.String(), subjectSeal + cluster, subjectPull + cluster, subjectRange + cluster},
		Subscribe: []string{subjectPush + cluster, inbox(c, unit) + ".>"},
	}
}

// inbox is the prefix under which a unit waits for answers.
func inbox(c Cluster, unit wire.UnitID) string {
	return subjectInbox + c.String() + "." + unit.String()
}

// clusterIn reads the cluster, and what follows it, out of a subject.
func clusterIn(subject, prefix string) (c Cluster, rest string, ok bool) {
	tail, ok := strings.CutPrefix(subject, prefix)
	digits, rest, _ := strings.Cut(tail, ".")
	b, err := hex.DecodeString(digits)
	if !ok || err != nil || len(b) != len(c) || strings.ToLower(digits) != digits {
		return Cluster{}, "", false
	}
	return Cluster(b), rest, true
}
