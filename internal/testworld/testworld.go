// Package testworld provides a trust domain for tests: owners with their keys, a vendor of
// development TEEs with one chip, and the policies that the owners signed. It also provides
// a clock that tests set, and the checks that tests of many packages make.
//
// A test writes the tasks of its policy as TOML. [World.SignFirst] prefixes the common head
// of a policy and [World.NextPolicy] edits single lines, so that a test shows only what is
// special in its policy. The real packages sign and verify every policy. Internal tests of
// package policy cannot import this package, which imports theirs.
//
// It is for tests only: no package of the product imports it.
package testworld

import (
	"context"
	"slices"
	"testing"
	"time"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/attest/attesttest"
	"github.com/cohort-tee/cohort/internal/api"
	"github.com/cohort-tee/cohort/internal/wire"
	"github.com/cohort-tee/cohort/policy"
)

// World is a trust domain and its policy history. Its methods fail the test when a product
// package refuses, so they return no errors.
type World struct {
	T      testing.TB
	Owners []string       // in the order of the first policy
	Keys   map[string]Key // of owners, and of parties and strangers that a test adds
	Vendor *attesttest.Vendor
	Chip   *attesttest.Chip
	Steps  []policy.Step // the history, empty before [World.SignFirst]
}

// New returns a world without a policy, with an owner of each name, or with only ana.
func New(t testing.TB, owners ...string) *World {
	if len(owners) == 0 {
		owners = []string{"ana"}
	}
	keys, vendor := map[string]Key{}, attesttest.NewVendor()
	for _, name := range owners {
		keys[name] = NewKey()
	}
	return &World{T: t, Owners: owners, Keys: keys, Vendor: vendor, Chip: vendor.Chip()}
}

// SignFirst starts the history with a first policy, which all owners sign.
func (w *World) SignFirst(root wire.Digest, tasks string, edits ...string) *World {
	w.T.Helper()
	w.Steps = []policy.Step{w.SignPolicy(w.PolicyText(root.String(), tasks, edits...))}
	return w
}

// NextPolicy returns a world whose history has the next policy as well, which all owners
// sign.
func (w *World) NextPolicy(edits ...string) *World {
	w.T.Helper()
	return w.WithStep(w.SignPolicy(w.NextText(w.Policy(), edits...)))
}

// WithStep returns a world whose history has one more step. w keeps its own history, so two
// calls create a fork.
func (w *World) WithStep(step policy.Step) *World {
	next := *w
	next.Steps = append(slices.Clip(w.Steps), step)
	return &next
}

// Genesis returns the digest of the first policy, which clients and units pin.
func (w *World) Genesis() attest.Digest { return wire.Sum(w.Steps[0].Policy) }

// Policy verifies all steps and returns the policy in force after them.
func (w *World) Policy() policy.Approved {
	w.T.Helper()
	p, err := policy.Replay(w.Genesis(), w.Steps)
	NoError(w.T, err)
	return p
}

// Entries returns the steps in the form of the authority's API.
func (w *World) Entries() []api.HistoryEntry { return Entries(w.Steps) }

// Entries returns steps in the form of the authority's API.
func Entries(steps []policy.Step) []api.HistoryEntry {
	var all []api.HistoryEntry
	for _, s := range steps {
		all = append(all, api.HistoryEntry{Policy: s.Policy, Signatures: s.Signatures})
	}
	return all
}

// Grant admits a unit that runs a program of a task on the world's chip. An issuer accepts
// only grants of the policy value that it has, so the test passes that value as p. Grant
// panics if the policy does not admit the unit: a test's server must not end the test, and
// there a panic ends only the connection.
func (w *World) Grant(p policy.Approved, task, program string, at time.Time) policy.Grant {
	data := attest.BindReportData(wire.LabelIssue)
	evidence := Must(w.Device(program).Attest(context.Background(), data))
	result := Must(attesttest.Verifier().Appraise(attest.Question{Evidence: evidence, ReportData: data, Rules: p.Rules(), At: at}))
	return Must(p.Admit(task, result))
}

// Device returns the world's chip as the named program sees it.
func (w *World) Device(program string, args ...string) *attesttest.Device {
	return w.Chip.Attester(attesttest.Measure(program, args...))
}
