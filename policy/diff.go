package policy

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/cohort-tee/cohort/attest"
)

// Change is one difference between what two policy files say.
type Change struct {
	Path    string
	Old     string // empty when it was added
	New     string // empty when it was removed
	Loosens bool   // whether the policy waits for the delay because of it
}

// String is one line for people: "+" added, "-" removed, "~" changed.
func (c Change) String() string {
	effect := "tightens"
	if c.Loosens {
		effect = "loosens"
	}
	switch {
	case c.Old == "":
		return fmt.Sprintf("+ %s = %s (%s)", c.Path, c.New, effect)
	case c.New == "":
		return fmt.Sprintf("- %s = %s (%s)", c.Path, c.Old, effect)
	}
	return fmt.Sprintf("~ %s = %s, was %s (%s)", c.Path, c.New, c.Old, effect)
}

// Loosens reports whether anything in next gives more than old did. Only what
// is known to take away tightens: see [Diff].
func Loosens(old, next *Document) bool {
	return slices.ContainsFunc(Diff(old, next), func(c Change) bool { return c.Loosens })
}

// Diff lists every difference between two documents, in the order of their
// paths, but for sequence, previous and created, which always differ. The order
// inside a list is no difference but where it is part of an argument list. A nil
// document is an empty one.
//
// It compares the files key by key and not the fields of a Document, so that no
// key can be forgotten: a change loosens unless a row of the tables below says
// that it tightens.
func Diff(old, next *Document) []Change {
	before, after := maps.Clone(old.tree()), maps.Clone(next.tree())
	for _, key := range []string{"sequence", "previous", "created"} {
		delete(before, key)
		delete(after, key)
	}
	return diffTables("", "", before, after)
}

// tree is the file as TOML tables, which the caller does not change.
func (d *Document) tree() map[string]any {
	if d == nil {
		return map[string]any{}
	}
	return d.values
}

// removable are the kinds of values whose removal takes something away. In a
// kind "*" stands for every name that the file chooses.
var removable = []string{
	"authority.reference", "authority.machines",
	"measured.*",
	"platform.*", "platform.*.roots", "platform.*.generation.*", "platform.*.chips", "platform.*.id_keys", "platform.*.statuses", "platform.*.advisories",
	"platform.*.servicetd", "platform.*.owner",
	"platform.*.models", "platform.*.drivers", "platform.*.vbios", "platform.*.modes",
	"task.*", "task.*.names", "task.*.calls",
	"task.*.release.*", "task.*.release.*.reference", "task.*.release.*.continues",
	"group.*", "group.*.names", "group.*.continues", "group.*.role.*", "group.*.role.*.members", "group.*.role.*.calls",
}

// revocable are the flags that give something while they are true.
var revocable = []string{
	"platform.*.debug", "platform.*.smt", "platform.*.migration", "platform.*.provisional_firmware", "platform.*.hidden_chips",
	"task.*.release.*.dynamic", "task.*.release.*.oneoff",
}

// cutting are the kinds that take something away by being there.
var cutting = []string{
	"platform.*.cut_chips", "platform.*.cut_models", "task.*.cut_units",
	"platform.*.generation.*.committed", "platform.*.generation.*.reported", "platform.*.generation.*.launch",
	"task.*.release.*.devices", "platform.*.mitigations.launch", "platform.*.mitigations.current",
}

// floors and ceilings are numbers, zero where they are left out.
var (
	floors = []string{
		"platform.*.generation.*.committed.*", "platform.*.generation.*.reported.*", "platform.*.generation.*.launch.*",
		"platform.*.min_evaluation", "platform.*.min_isvsvn", "task.*.release.*.devices.*",
	}
	ceilings = []string{"platform.*.vmpl"}
)

// choosing are the tables whose keys the file chooses, or whose keys are alike.
var choosing = append([]string{"measured", "platform", "platform.*.generation", "task", "task.*.release", "group", "group.*.role"}, cutting[2:]...)

func kindOf(parent, key string) string {
	if slices.Contains(choosing, parent) {
		key = "*"
	}
	return strings.TrimPrefix(parent+"."+key, ".")
}

// optional are the tables that mean when they are left out what an empty one means.
func optional(kind string) bool {
	_, bits := bitFields[kind]
	return bits || kind == "platform.*.mitigations"
}

// diffTables compares two tables. A table that went is one change, a table that
// came is as many as it holds.
func diffTables(path, kind string, old, next map[string]any) []Change {
	keys := slices.AppendSeq(slices.Collect(maps.Keys(old)), maps.Keys(next))
	slices.Sort(keys)
	var out []Change
	for _, key := range slices.Compact(keys) {
		path, kind := join(path, key), kindOf(kind, key)
		was, is := old[key], next[key]
		if old != nil && next != nil {
			was, is = meant(path, kind, was), meant(path, kind, is)
		}
		oldTable, oldIs := was.(map[string]any)
		nextTable, nextIs := is.(map[string]any)
		switch {
		case oldIs && nextIs:
			out = append(out, diffTables(path, kind, oldTable, nextTable)...)
		case was == nil && len(nextTable) > 0:
			out = append(out, came(kind, diffTables(path, kind, nil, nextTable))...)
		default:
			out = append(out, diffValues(path, kind, was, is)...)
		}
	}
	return out
}

// meant is a value, or what its absence means.
func meant(path, kind string, v any) any {
	switch {
	case v != nil:
		return v
	case optional(kind):
		return map[string]any{}
	case implied[path] != nil:
		return implied[path]
	}
	return implied[kind]
}

// came is what a table holds that was not there before. All of it loosens, the
// limits of what came included, unless the table itself is a limit.
func came(kind string, changes []Change) []Change {
	for i := range changes {
		changes[i].Loosens = !slices.Contains(cutting, kind)
	}
	return changes
}

// diffValues compares two values, lists by their elements.
func diffValues(path, kind string, was, is any) []Change {
	before, oldIs := elements(was)
	after, nextIs := elements(is)
	if !oldIs || !nextIs {
		before, after := literal(was), literal(is)
		if before == after {
			return nil
		}
		return []Change{{path, before, after, !tightens(kind, before, after)}}
	}
	var out []Change
	for _, v := range before {
		if !slices.Contains(after, v) {
			out = append(out, Change{path, v, "", !tightens(kind, v, "")})
		}
	}
	for _, v := range after {
		if !slices.Contains(before, v) {
			out = append(out, Change{path, "", v, !tightens(kind, "", v)})
		}
	}
	return out
}

// tightens reports whether a value that came, went or changed takes away.
func tightens(kind, was, is string) bool {
	switch {
	case slices.Contains(revocable, kind):
		return is != "true"
	case kind == "platform.*.guest_policy."+abiKey:
		return abiNumber(is) >= abiNumber(was)
	case kind == "platform.*.min_tcb_date":
		return is >= was // times in one form, in UTC
	case bitFields[parentOf(kind)].Key != "":
		return narrows(bitFields[parentOf(kind)], strings.TrimPrefix(kind, parentOf(kind)+"."), was, is)
	case kind == "platform.*.crl":
		return is != strconv.Quote(string(attest.CRLIfPresent))
	case kind == "platform.*.mode":
		return is != strconv.Quote(nvidiaStates[1])
	case kind == "platform.*.checked_within":
		return is != "" && (was == "" || span(is) < span(was))
	case kind == "task.*.release.*.retired":
		return is == "true"
	case kind == "max_silence": // left out, it follows from each group's lifetime
		return was != "" && is != "" && span(is) < span(was)
	case kind == "task.*.units": // left out, it is unbounded
		return is != "" && (was == "" || number(is) < number(was))
	case slices.Contains(floors, kind):
		return number(is) >= number(was)
	case slices.Contains(ceilings, kind):
		return number(is) <= number(was)
	case was == "":
		return slices.Contains(cutting, kind)
	case is == "":
		return slices.Contains(removable, kind)
	case slices.Contains(listed, kind):
		return was == strconv.Quote(anyWord)
	case kind == "task.*.lifetime", kind == "platform.*.max_age":
		return span(is) < span(was)
	}
	return false
}

// listed are lists that may be "any" instead.
var listed = []string{
	"authority.machines", "platform.*.chips", "platform.*.id_keys", "platform.*.drivers", "platform.*.vbios", "platform.*.servicetd", "platform.*.owner",
}

// parentOf is the kind of the table that a kind stands in.
func parentOf(kind string) string { return kind[:max(strings.LastIndex(kind, "."), 0)] }

// number is a number as a policy file writes it; an absent one is zero.
func number(text string) int64 {
	n, _ := strconv.ParseInt(text, 10, 64)
	return n
}

// span is a duration as a policy file writes it, in quotes.
func span(text string) time.Duration {
	d, _ := time.ParseDuration(strings.Trim(text, `"`))
	return d
}

// literal is a value as TOML writes it, with sorted keys; nothing is empty.
func literal(v any) string {
	switch v := v.(type) {
	case nil:
		return ""
	case string:
		return strconv.Quote(v)
	case time.Time:
		return v.UTC().Format(time.RFC3339)
	case []any:
		return "[" + strings.Join(literals(v), ", ") + "]"
	case map[string]any:
		var fields []string
		for _, key := range slices.Sorted(maps.Keys(v)) {
			fields = append(fields, join("", key)+" = "+literal(v[key]))
		}
		return "{ " + strings.Join(fields, ", ") + " }"
	}
	return fmt.Sprint(v)
}

// elements are the literals of a list; an absent one has none.
func elements(v any) (out []string, ok bool) {
	list, ok := v.([]any)
	return literals(list), ok || v == nil
}

func literals(list []any) []string {
	out := make([]string, len(list))
	for i, v := range list {
		out[i] = literal(v)
	}
	return out
}
