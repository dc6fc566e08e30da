package policyfile

import (
	"maps"
	"slices"
)

// Floors are the requirements for a group's members in addition to their measurements: the
// tables of their platforms and devices, and the settings of their releases.
type Floors struct {
	tables map[string]any // never changed
}

// String returns the floors as one line of TOML, as in a roster.
func (f Floors) String() string { return rosterLine(f.tables) }

// Loosened reports whether next demands less than f.
func (f Floors) Loosened(next Floors) bool {
	return slices.ContainsFunc(diffTables("", "", f.tables, next.tables), func(c Change) bool { return c.Loosens })
}

// FloorsOf returns the floors of a group under a document. Members whose release the
// document does not have add none.
func (d *Document) FloorsOf(g *Group) Floors {
	tree := d.tables()
	platforms, tasks := map[string]any{}, map[string]any{}
	for _, role := range g.Roles {
		for _, m := range role.Members {
			if d.Tasks[m.Task] == nil || d.Tasks[m.Task].Releases[m.Release] == nil {
				continue // of an earlier policy
			}
			release := maps.Clone(under(tree, "task", m.Task, "release", m.Release))
			delete(release, "reference") // is in the identity
			delete(release, "continues") // bears on sessions with the task
			delete(release, "retired")   // bears on new certificates alone
			inner, _ := tasks[m.Task].(map[string]any)
			if inner == nil {
				inner = map[string]any{}
			}
			inner[m.Release] = release
			tasks[m.Task] = inner
			for _, ref := range d.Tasks[m.Task].Releases[m.Release].References {
				platforms[string(ref.Platform)] = under(tree, "platform", string(ref.Platform))
			}
			for device := range d.Tasks[m.Task].Releases[m.Release].Devices {
				platforms[string(device)] = under(tree, "platform", string(device))
			}
		}
	}
	for task, releases := range tasks {
		tasks[task] = map[string]any{"release": releases}
	}
	return Floors{map[string]any{"platform": platforms, "task": tasks}}
}

// under returns the table at a path, or nil.
func under(tree map[string]any, path ...string) map[string]any {
	for _, key := range path {
		tree, _ = tree[key].(map[string]any)
	}
	return tree
}
