package authority

import (
	"os"
	osexec "os/exec"
	"testing"
)

// stories is a pattern of the tests that also run on PostgreSQL. With COHORT_FULL=1, all do.
const stories = "^Test(Reopen|Replay|NothingWithoutRecord|Approval|SignaturesAtOnce|" +
	"CutHistory|Followed|Upgrade|PushMoves|Lease.*|LogOfNobody|Restored.*|KilledAnywhere|" +
	"OneTableBack|Fork.*|ChangedRows|Units.*|DelayCountedOnce)$"

// TestOnServer runs those tests again, on PostgreSQL.
func TestOnServer(t *testing.T) {
	if testing.Short() {
		t.Skip("SKIPPED: the same on a database server is not shown; run without -short")
	}
	if os.Getenv(onServer) != "" {
		return
	}
	run := stories
	if os.Getenv("COHORT_FULL") != "" {
		run = "."
	}
	cmd := osexec.Command(os.Args[0], "-test.run="+run, "-test.v")
	cmd.Env = append(os.Environ(), onServer+"=1")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}
