package authority

import (
	"bytes"
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"regexp"
	"testing"
	"time"

	"github.com/cohort-tee/cohort/internal/api"
	"github.com/cohort-tee/cohort/internal/authority/store"
	"github.com/cohort-tee/cohort/internal/failpoint"
	"github.com/cohort-tee/cohort/internal/testworld"
	"github.com/cohort-tee/cohort/internal/wire"
	"github.com/cohort-tee/cohort/policy/policyfile"
)

// seen are the responses of authorities that were then killed.
type seen struct {
	reports   []api.Report
	heads     []wire.Digest // of policies that a response reported in force
	proposals []wire.Digest // of files that were accepted as proposals
}

// TestKilledAnywhere kills an authority at one point after the other while it issues and changes
// policy, always on the same store. There is no response without its record, no acknowledged
// write is lost, no serial number has two certificates, and the next authority continues.
func TestKilledAnywhere(t *testing.T) {
	vendor, chip := sameChip(t)
	w := newWorldOf(t, vendor, chip, "quorum = 2", "quorum = 1", "lifetime = \"30m\"", "lifetime = \"30m0s\"", "program = \"authority\" } ]", builds(40))
	found := testworld.Must(store.Open(t.Context(), w.dsn))
	testworld.Must(Open(t.Context(), w.configOn(found, "authority")))
	found.Close()
	var told seen
	w.killAnywhere(8, func(n int) *child { return w.lifeOf(n, &told) }, func() { w.check(told) })
	t.Logf("%d reports, %d policies told", len(told.reports), len(told.heads))
}

// killAnywhere runs live once without a kill, then about so many times (with COHORT_FULL=1, as
// many times as there are points), killed at one point after the other. It calls check after each
// run.
func (w *world) killAnywhere(lives int, live func(n int) *child, check func()) {
	w.T.Helper()
	names := failpoint.Passed(live(0).points)
	step := max(1, len(names)/lives)
	if os.Getenv("COHORT_FULL") != "" {
		step = 1
	}
	if kinds := distinct(names); len(names) < 20 || len(kinds) < 3 {
		w.T.Errorf("got %d points of the kinds %v, want at least 20 of at least 3", len(names), kinds)
	}
	killed := 0
	for n := 1; n <= len(names); n += step {
		if live(n).killed() {
			killed++
		}
		check()
	}
	if want := (len(names)/step + 1) / 2; killed < want {
		w.T.Errorf("killed %d authorities, want at least %d", killed, want)
	}
	w.T.Logf("killed %d authorities at %d points (%v)", killed, len(names), distinct(names))
}

// builds returns the reference values of the authority and of n other builds, as they end in a
// policy.
func builds(n int) string {
	text := "program = \"authority\" }"
	for i := range n {
		text += fmt.Sprintf(", { platform = \"soft\", program = %q }", wire.Sum(fmt.Append(nil, "build ", i)))
	}
	return text + " ]"
}

// lastBuild matches the last of those builds.
var lastBuild = regexp.MustCompile(`, \{ platform = "soft", program = "[^"]*" \} \]\n`)

// narrower returns the edits that make the next policy, which takes effect at once. As long as
// there are builds it removes the last one, so that the root is re-sealed.
func narrower(doc *policyfile.Document) []string {
	if build := lastBuild.FindString(string(doc.Source())); build != "" {
		return []string{build, " ]\n"}
	}
	life := doc.Tasks["keys"].Lifetime
	return []string{fmt.Sprintf("lifetime = %q", life), fmt.Sprintf("lifetime = %q", life-time.Second)}
}

func distinct(names []string) map[string]int {
	kinds := map[string]int{}
	for _, name := range names {
		kinds[name]++
	}
	return kinds
}

// startOf starts the authority that dies at its n-th point. It also returns an authority on the
// state that the one before it left.
func (w *world) startOf(n int) (c *child, before *Authority) {
	w.T.Helper()
	db := testworld.Must(store.Open(w.T.Context(), w.dsn))
	before = testworld.Must(Open(w.T.Context(), w.configOn(db, "authority")))
	if err := db.Close(); err != nil { // so that the child is the last to close the file
		w.T.Fatal(err)
	}
	exec(w.T, w.dsn, `DELETE FROM lease`) // as if the old lease had expired
	if c = w.startChild(n, w.clientTLS(before)); c.Authority == nil && n == 0 {
		w.T.Fatalf("an authority that is not killed: %v\n%s", c.stop(), w.log)
	}
	return c, before
}

// lifeOf runs an authority that dies at its n-th point, sends it each kind of request, and
// records its responses.
func (w *world) lifeOf(n int, told *seen) *child {
	w.T.Helper()
	c, before := w.startOf(n)
	if c.Authority == nil {
		return c
	}
	ctx, cancel := context.WithTimeout(w.T.Context(), 20*time.Second)
	defer cancel()
	p := w.scoring()
	for range 2 {
		if report, err := p.enrol(c); err == nil {
			told.reports = append(told.reports, report)
		}
	}
	next := w.SignPolicy(w.NextText(before.inForce().approved, narrower(before.inForce().document())...), "ana")
	if _, err := c.Propose(ctx, proposal(next)); err == nil {
		told.proposals = append(told.proposals, wire.Sum(next.Policy))
	}
	if in, err := c.Policy(ctx); err == nil {
		told.heads = append(told.heads, in.Head)
	}
	if report, err := w.scoring().enrol(c); err == nil {
		told.reports = append(told.reports, report)
	}
	if n == 0 {
		if err := c.stop(); err != nil {
			w.T.Errorf("an authority that is not killed: %v\n%s", err, w.log)
		}
	}
	return c
}

// check compares the recorded responses with the store, and issues with a new authority.
func (w *world) check(told seen) {
	w.T.Helper()
	db := testworld.Must(store.Open(w.T.Context(), w.dsn))
	defer db.Close()
	a, err := Open(w.T.Context(), w.configOn(db, "authority"))
	if err != nil {
		w.T.Fatalf("the next authority: %v", err)
	}
	if a.RootDigest() != w.root {
		w.T.Error("another root")
	}
	serials := map[string][]byte{}
	records := map[string]bool{}
	for before := int64(0); ; {
		page := testworld.Must(a.readLogPage(w.T.Context(), store.Query{Limit: logMaxLimit, Before: before}))
		for _, e := range page.Entries {
			records[e.Serial] = true
		}
		if before = page.Next; before == 0 {
			break
		}
	}
	for _, r := range told.reports {
		serial := serialOf(w.T, r.Unit)
		if !records[serial] {
			w.T.Errorf("a report left without the record of %s", serial)
		}
		if other, ok := serials[serial]; ok && !bytes.Equal(other, r.Unit) {
			w.T.Errorf("two certificates of serial %s", serial)
		}
		serials[serial] = r.Unit
	}
	for _, head := range told.heads {
		if !a.inForce().approved.Knows(head) {
			w.T.Errorf("policy %v was in force and is lost", head)
		}
	}
	for _, digest := range told.proposals {
		if _, err := a.history.ShowProposal(w.T.Context(), digest); err != nil {
			w.T.Errorf("proposal %v was taken in and is lost: %v", digest, err)
		}
	}
	if err := errors.Join(a.history.Sync(w.T.Context()), errOf(w.scoring().enrol(direct{a}))); err != nil {
		w.T.Errorf("the next authority does not go on: %v", err)
	}
}

func serialOf(t testing.TB, der []byte) string {
	t.Helper()
	return testworld.Must(x509.ParseCertificate(der)).SerialNumber.Text(16)
}

func errOf(_ api.Report, err error) error { return err }
