package systest

import (
	"os"
	"os/exec"
	"testing"
)

// Checks of groups that run on PostgreSQL too: those that depend on stored data, and all of
// them with COHORT_FULL=1.
const (
	groupStories    = "^Test(QuorumOfParties|WithdrawalAfterARollback)$"
	allGroupStories = "^Test(CallMatrix|QuorumOfParties|StrangersInAGroup|ApprovalsAtTheAuthority|RosterChanges|" +
		"WithdrawalAfterARollback|RoleSessions|MemberLeaves|CutMember)$"
)

// TestGroupsOnServer: the checks of groups also pass on PostgreSQL.
func TestGroupsOnServer(t *testing.T) {
	if os.Getenv(onServer) != "" || testing.Short() {
		return
	}
	run := groupStories
	if full() {
		run = allGroupStories
	}
	cmd := exec.Command(os.Args[0], "-test.run="+run, "-test.v")
	cmd.Env = append(os.Environ(), onServer+"=1")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}
