package policytoml

import (
	"fmt"
	"strings"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/internal/wire"
)

// Fault is one place where a policy file breaks a rule.
type Fault struct {
	Path string // dotted key, with [i] for the i-th element of a list
	Rule string
	Got  string
	Want string
}

// Refusal returns the fault as a refusal with reason "policy".
func (f Fault) Refusal() *attest.Refusal {
	rule := f.Rule
	if f.Path != "" {
		rule = f.Path + ": " + f.Rule
	}
	return &attest.Refusal{Reason: wire.BadPolicy, Rule: rule, Got: f.Got, Want: f.Want}
}

// Faults are all faults of a file, in the order of the checks. It matches the reason "policy" and, with errors.As, its first fault
// as a refusal.
type Faults []Fault

// Add adds a fault.
func (f *Faults) Add(path, rule string, got, want any) {
	*f = append(*f, Fault{path, rule, fmt.Sprint(got), fmt.Sprint(want)})
}

// Error returns one line for each fault.
func (f Faults) Error() string {
	lines := make([]string, len(f))
	for i, fault := range f {
		lines[i] = fault.Refusal().Error()
	}
	return strings.Join(lines, "\n")
}

// Unwrap returns each fault as a refusal.
func (f Faults) Unwrap() []error {
	errs := make([]error, len(f))
	for i, fault := range f {
		errs[i] = fault.Refusal()
	}
	return errs
}

// Warning is a place where a policy file follows every rule and yet does less than it
// seems to: a cut-off or a floor without effect, a task of which no unit can start.
type Warning struct {
	Path string // dotted key
	Text string
}

// String returns one line for people.
func (w Warning) String() string { return w.Path + ": " + w.Text }
