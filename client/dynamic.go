package client

import "slices"

// Dynamic returns the releases of an identity that may load unmeasured code (policy key
// "dynamic"), as "TASK release RELEASE", sorted. For a group it covers the releases of all
// members. Only the file of such a program is measured; the measurement proves nothing
// about the code that the program loads.
func (t *Trust) Dynamic(i Identity) []string {
	doc, dynamic := t.Policy().Document(), []string{}
	add := func(task, release string) {
		name := task + " release " + release
		if r := doc.Tasks[task]; r != nil && r.Releases[release] != nil && r.Releases[release].Dynamic && !slices.Contains(dynamic, name) {
			dynamic = append(dynamic, name)
		}
	}
	if i.Group == "" {
		add(i.Task, i.Release)
		return dynamic
	}
	if group := doc.Groups[i.Group]; group != nil {
		for _, role := range group.Roles {
			for _, m := range role.Members {
				add(m.Task, m.Release)
			}
		}
	}
	slices.Sort(dynamic)
	return dynamic
}
