package systest

import (
	"crypto/tls"
	"net/http"
	"slices"
	"testing"
	"time"

	"github.com/cohort-tee/cohort/internal/wire"
)

// TestRollout is case 18 with everything real: release 2 runs beside release 1,
// owners remove release 1 under load, and both units stay up. Clients follow, no
// request fails, and the removed release serves nobody after its certificate's
// life.
func TestRollout(t *testing.T) {
	task := scoring(4 * time.Second)
	task.Programs = []string{"scoring 1", "scoring 2"}
	c := New(t, task)
	old, fresh := c.Start("scoring", "scoring 1", hello("one")), c.Start("scoring", "scoring 2", hello("two"))
	cl := c.Client("scoring", old.Address, fresh.Address)
	wait(t, 10*time.Second, "both releases serve", answers(t, cl, "one", "two"))

	push(t, c, c.Next("[task.scoring.release.\"1\"]\nreference = [ "+Reference("scoring 1")+" ]\n", ""))
	removed := time.Now()
	load := Load{Client: cl, URL: "https://" + ServerName("scoring"), Post: "/", Body: "{}", Rate: 100, For: 5 * time.Second}
	if out := load.Run(t.Context()); len(out.Failed) > 0 || out.Stale > 0 {
		t.Errorf("%d requests failed during the rollout, the first: %v; %d on an ended certificate, want none", len(out.Failed), first(out.Failed), out.Stale)
	}
	wait(t, time.Until(removed.Add(task.Life+5*time.Second)), "the end of the removed release", func() bool { return old.Unit.Ready() != nil })
	wantReason(t, old.Unit.Ready(), wire.CertExpired)
	if got := old.Unit.Stats().LastFailure; got != wire.NotMeasured {
		t.Errorf("got last failure %q of the removed release, want %q", got, wire.NotMeasured)
	}
	if body, err := get(t, anyone(), "https://"+old.Address); err == nil {
		t.Errorf("got %q of the removed release, want nothing", body)
	}
	if body, err := get(t, cl, "https://"+ServerName("scoring")); err != nil || body != "two" {
		t.Errorf("got %q, %v, want the release that stays", body, err)
	}
}

// anyone trusts whoever answers.
func anyone() *http.Transport {
	return &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, DisableKeepAlives: true}
}

// answers asks once at each call, and reports whether all of want have come.
func answers(t *testing.T, rt http.RoundTripper, want ...string) func() bool {
	var seen []string
	return func() bool {
		if body, err := get(t, rt, "https://"+ServerName("scoring")); err == nil {
			seen = append(seen, body)
		}
		return !slices.ContainsFunc(want, func(w string) bool { return !slices.Contains(seen, w) })
	}
}
