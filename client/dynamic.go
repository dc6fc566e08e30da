package client

import "slices"

// Dynamic lists the releases behind an identity that may load code which is not
// measured (policy key "dynamic"), as "TASK release RELEASE", in order; of a group
// those of every member. Only their program's file was measured, which implies
// nothing about the code it runs.
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
