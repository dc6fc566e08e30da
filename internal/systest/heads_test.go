package systest

import (
	"net/http"
	"sync"
	"testing"
	"time"

	"github.com/cohort-tee/cohort/internal/testworld"
	"github.com/cohort-tee/cohort/policy/policyfile"
	"github.com/cohort-tee/cohort/unit"
)

// TestApprovalReachesAll: 40 units wait for their party's approval. All enrol as soon as it
// arrives, however long their back-off is by then.
func TestApprovalReachesAll(t *testing.T) {
	waits(t)
	if testing.Short() {
		t.Skip("SKIPPED: waits until units back off by seconds")
	}
	const units = 40
	c := newFour(t, policyfile.Shared)
	parties := c.FormGroup(four)
	for _, party := range []string{"adder", "broker", "scorer"} {
		if _, err := c.SubmitStatement("trial", party, parties[party], nil); err != nil {
			t.Fatal(err)
		}
	}
	last := c.Statement("trial", "holder", parties["holder"], nil)
	config := c.MemberConfig("trial", "holder", "holder 1")
	all := make([]*unit.Unit, units)
	faults := make([]error, units)
	var starting sync.WaitGroup
	for i := range units {
		starting.Go(func() { all[i], faults[i] = unit.Start(t.Context(), config) })
	}
	time.Sleep(7 * time.Second) // long enough for a back-off of 2.5 to 5 s
	begin := time.Now()
	if _, err := authorityOf(t, c).SubmitStatement(t.Context(), "trial", last); err != nil {
		t.Fatal(err)
	}
	starting.Wait()
	took := time.Since(begin)
	for i, u := range all {
		if faults[i] != nil {
			t.Fatal(faults[i])
		}
		defer u.Close()
	}
	t.Logf("the last of %d units enrolled %v after the approval", units, took)
	if took > 2*time.Second {
		t.Errorf("the last of %d units enrolled %v after the approval", units, took)
	}
}

// TestCutReachesClient: a client learns of a cut within seconds and ends its requests to
// the cut unit, although certificates live an hour and trust is fetched again only every
// minute.
func TestCutReachesClient(t *testing.T) {
	c := New(t, Task{Name: "scoring", KeyMode: policyfile.PerUnit, Life: time.Hour, Programs: []string{"scoring 1"}})
	hold := func(w http.ResponseWriter, r *http.Request) {
		w.WriteHeader(http.StatusOK)
		_ = http.NewResponseController(w).Flush()
		<-r.Context().Done()
	}
	r := c.Start("scoring", "scoring 1", http.HandlerFunc(hold))
	client := c.Client("scoring", r.Address)
	answer, err := client.RoundTrip(testworld.Must(http.NewRequestWithContext(t.Context(), http.MethodGet, "https://"+ServerName("scoring")+"/", nil)))
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_, _ = answer.Body.Read(make([]byte, 1))
	}()
	time.Sleep(500 * time.Millisecond) // until the client watches for new trust
	begin := time.Now()
	c.Adopt("[task.scoring]\n", "[task.scoring]\ncut_units = [\""+r.Unit.ID().String()+"\"]\n")
	select {
	case <-ended:
	case <-time.After(10 * time.Second):
		t.Fatal("the answer of the cut unit goes on")
	}
	t.Logf("the answer of the cut unit ended %v after the step", time.Since(begin))
	if took := time.Since(begin); took > 5*time.Second {
		t.Errorf("the answer of the cut unit ended %v after the step", took)
	}
}
