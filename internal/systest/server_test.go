package systest

import (
	"os"
	"os/exec"
	"testing"
)

// Stories of groups that are told on PostgreSQL too: those that depend on what
// the store keeps, and in the long form all.
const (
	onBothStores = "^(TestQuorumOfParties|TestWithdrawalAfterARollback)$"
	allOfGroups  = "^(TestCallMatrix|TestQuorumOfParties|TestStrangersInAGroup|TestApprovalsAtTheAuthority|TestRoster.*|" +
		"TestWithdrawalAfterARollback|TestRoleSessions|TestRemovedMember.*|TestCutMember|TestListenersOfRoles|TestHistoryCut)$"
)

// TestGroupsOnServer tells stories of groups once more, on PostgreSQL.
func TestGroupsOnServer(t *testing.T) {
	if os.Getenv(onServer) != "" {
		return
	}
	run := onBothStores
	if full() {
		run = allOfGroups
	}
	cmd := exec.Command(os.Args[0], "-test.run="+run, "-test.v")
	cmd.Env = append(os.Environ(), onServer+"=1")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}
