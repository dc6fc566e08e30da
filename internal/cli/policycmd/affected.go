package policycmd

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/internal/api"
	"github.com/cohort-tee/cohort/internal/authorityclient"
	"github.com/cohort-tee/cohort/internal/cli/frame"
	"github.com/cohort-tee/cohort/policy"
	"github.com/cohort-tee/cohort/policy/policyfile"
)

// affectedUnit is a live unit that a policy cuts off, and why.
type affectedUnit struct {
	Unit  string    `json:"unit"`
	Task  string    `json:"task"`
	Group string    `json:"group,omitempty"`
	Role  string    `json:"role,omitempty"`
	Chip  string    `json:"chip,omitempty"`
	Cause string    `json:"cause"`
	Until time.Time `json:"until"` // end of its certificate
}

// policyChange is one policy after another. inForce is the policy that groups are known
// by: what their parties approved is no part of a file.
type policyChange struct {
	old, next *policyfile.Document
	inForce   policy.Approved
}

// affected are the units that get no further certificate once next is in
// force, as far as the log shows: it knows release, platform and chip, not the
// versions that floors speak of.
func (c policyChange) affected(units []api.LogEntry) []affectedUnit {
	out := []affectedUnit{}
	for _, e := range units {
		if cause := c.cutCause(e); cause != "" {
			out = append(out, affectedUnit{e.Unit, e.Task, e.Group, e.Role, e.Chip, cause, e.NotAfter})
		}
	}
	return out
}

func (c policyChange) cutCause(e api.LogEntry) string {
	task, platform := c.next.Tasks[e.Task], attest.Platform(e.Platform)
	switch {
	case task == nil:
		return "task " + e.Task + " is removed"
	case slices.Contains(task.CutUnits, e.Unit):
		return "cut_units"
	case task.Releases[e.Release] == nil:
		return "release " + e.Release + " is removed"
	case lessCode(c.old.Tasks[e.Task], task, e.Release):
		return "release " + e.Release + " has other code"
	}
	rules, named := c.next.Platforms[platform]
	if !named {
		return "platform " + e.Platform + " is removed"
	}
	for _, cause := range []string{c.groupCause(e), chipCause(platform, e.Chip, rules)} {
		if cause != "" {
			return cause
		}
	}
	return deviceCause(e.Devices, task.Releases[e.Release], c.next)
}

// deviceCause returns what of a unit's devices the next policy does not accept.
func deviceCause(devices []api.LogDevice, release *policyfile.Release, next *policyfile.Document) string {
	have := map[attest.Platform]int{}
	for _, d := range devices {
		rules, named := next.Platforms[attest.Platform(d.Platform)]
		if !named {
			return "platform " + d.Platform + " is removed"
		}
		if cause := chipCause(attest.Platform(d.Platform), d.Chip, rules); cause != "" {
			return d.Platform + ": " + cause
		}
		have[attest.Platform(d.Platform)]++
	}
	for p, least := range release.Devices {
		if have[p] < least {
			return "devices of platform " + string(p)
		}
	}
	return ""
}

// groupCause returns why a unit of a group gets no further certificate as such.
func (c policyChange) groupCause(e api.LogEntry) string {
	if e.Group == "" {
		return ""
	}
	group := c.next.Groups[e.Group]
	if group == nil {
		return "group " + e.Group + " is removed"
	}
	role, is := group.Roles[e.Role], func(m policyfile.Member) bool { return m.Task == e.Task && m.Release == e.Release }
	switch {
	case role == nil:
		return "role " + e.Role + " of group " + e.Group + " is removed"
	case !slices.ContainsFunc(role.Members, is):
		return "release " + e.Release + " is no member of role " + e.Role
	case !slices.Contains(c.inForce.GroupsAfter(c.next, e.Group), e.Identity):
		return "group " + e.Group + " becomes another, until its parties approve"
	}
	return ""
}

// lessCode reports whether a release lost a reference value.
func lessCode(old, next *policyfile.Task, release string) bool {
	if old == nil || old.Releases[release] == nil {
		return false
	}
	return slices.ContainsFunc(old.Releases[release].References, func(r attest.ReferenceValue) bool {
		return !slices.ContainsFunc(next.Releases[release].References, func(kept attest.ReferenceValue) bool { return kept.String() == r.String() })
	})
}

// chipCause reports whether the rules of a platform cut a chip off.
func chipCause(p attest.Platform, chip string, rules attest.Rules) string {
	if key := policyfile.ChipRefused(p, rules, chip); key != "chips" {
		return key
	}
	return "chip is not among chips"
}

// affectedText lists the affected units for people.
func affectedText(units []affectedUnit) string {
	var b strings.Builder
	fmt.Fprintf(&b, "cuts off %d live units", len(units))
	tasks := map[string]int{}
	for _, u := range units {
		tasks[u.Task]++
	}
	for _, task := range slices.Sorted(maps.Keys(tasks)) {
		fmt.Fprintf(&b, ", %d of task %s", tasks[task], task)
	}
	b.WriteString("\n")
	for _, u := range units {
		of := u.Task
		if u.Group != "" {
			of += ", " + u.Role + " in group " + u.Group
		}
		fmt.Fprintf(&b, "  unit %s of %s: %s; its certificate ends %s\n", u.Unit, of, u.Cause, frame.RFC3339(u.Until))
	}
	return b.String()
}

// previewImpact lists the units that a policy cuts off, before it is signed or proposed.
func previewImpact(ctx context.Context, a *frame.App, c authorityclient.Client, next *policyfile.Document) ([]affectedUnit, error) {
	units, err := authorityclient.LiveUnits(ctx, a, c)
	if err != nil {
		return nil, err
	}
	return policyChange{c.Approved.Document(), next, c.Approved}.affected(units), nil
}
