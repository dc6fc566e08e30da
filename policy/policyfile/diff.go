package policyfile

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/policy/policytoml"
)

// Change is one difference between two policy files.
type Change struct {
	Path    string
	Old     string // empty when it was added
	New     string // empty when it was removed
	Loosens bool   // whether the policy waits for the delay because of it
}

// String returns one line for people: "+" added, "-" removed, "~" changed.
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

// Loosens reports whether next permits anything that old did not permit. See [Compare].
func Loosens(old, next *Document) bool {
	return slices.ContainsFunc(Compare(old, next), func(c Change) bool { return c.Loosens })
}

// Compare lists every difference between two documents, in the order of their
// paths, but for sequence, previous and created, which always differ. The order
// inside a list is no difference but where it is part of an argument list. A nil
// document is an empty one.
//
// It compares the files key by key and not the fields of a Document, so that no
// key can be forgotten: a change loosens unless a row of the tables below, or the
// platform that declares the key, says that it tightens.
func Compare(old, next *Document) []Change {
	before, after := maps.Clone(old.tables()), maps.Clone(next.tables())
	for _, key := range []string{"sequence", "previous", "created"} {
		delete(before, key)
		delete(after, key)
	}
	return diffTables("", "", before, after)
}

// tables returns the file as TOML tables, which the caller does not change.
func (d *Document) tables() map[string]any {
	if d == nil {
		return map[string]any{}
	}
	return d.values
}

// removable are the kinds of values whose removal takes something away. In a
// kind "*" is every name that the file chooses; the kinds of a platform's keys
// have its name, and what they mean is declared by the platform ([known]).
var removable = []string{
	"authority.reference", "authority.machines",
	"measured.*",
	"task.*", "task.*.names", "task.*.calls",
	"task.*.release.*", "task.*.release.*.reference", "task.*.release.*.continues",
	"group.*", "group.*.names", "group.*.continues", "group.*.role.*", "group.*.role.*.members", "group.*.role.*.calls",
}

// revocable are the flags that give something while they are true.
var revocable = []string{"task.*.release.*.dynamic", "task.*.release.*.oneoff"}

// cutting are the kinds that take something away by being there.
var cutting = []string{"task.*.cut_units", "task.*.release.*.devices"}

// choosing are the tables whose keys the file chooses, or whose keys are alike.
var choosing = []string{"measured", "task", "task.*.release", "group", "group.*.role", "task.*.release.*.devices"}

func kindOf(parent, key string) string {
	if slices.Contains(choosing, parent) || known.chosen[parent] {
		key = "*"
	}
	return strings.TrimPrefix(parent+"."+key, ".")
}

// diffTables compares two tables. A removed table is one change, an added table is one
// change for each of its values.
func diffTables(path, kind string, old, next map[string]any) []Change {
	keys := slices.AppendSeq(slices.Collect(maps.Keys(old)), maps.Keys(next))
	slices.Sort(keys)
	var out []Change
	for _, key := range slices.Compact(keys) {
		path, kind := policytoml.JoinPath(path, key), kindOf(kind, key)
		was, is := old[key], next[key]
		if old != nil && next != nil {
			was, is = meant(kind, was), meant(kind, is)
		}
		oldTable, oldIs := was.(map[string]any)
		nextTable, nextIs := is.(map[string]any)
		switch {
		case oldIs && nextIs:
			out = append(out, diffTables(path, kind, oldTable, nextTable)...)
		case was == nil && len(nextTable) > 0:
			out = append(out, allLoosen(kind, diffTables(path, kind, nil, nextTable))...)
		default:
			out = append(out, diffValues(path, kind, was, is)...)
		}
	}
	return out
}

// meant returns a value, or the value that its absence implies.
func meant(kind string, v any) any {
	switch {
	case v != nil:
		return v
	case known.keys[kind].Optional:
		return map[string]any{}
	}
	return known.keys[kind].Implied
}

// allLoosen marks all changes inside an added table as loosening, limits included, unless
// the table itself is a limit.
func allLoosen(kind string, changes []Change) []Change {
	for i := range changes {
		changes[i].Loosens = !cutsBy(kind)
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

// cutsBy reports whether values of a kind reduce permissions when they are added.
func cutsBy(kind string) bool {
	return slices.Contains(cutting, kind) || known.keys[kind].Direction == attest.Cuts
}

// tightens reports whether an added, removed or changed value reduces permissions.
func tightens(kind, was, is string) bool {
	if key, ok := known.keys[kind]; ok {
		return narrower(key, was, is)
	}
	switch {
	case slices.Contains(revocable, kind):
		return is != "true"
	case kind == "task.*.release.*.retired":
		return is == "true"
	case kind == "max_silence": // left out, it follows from each group's lifetime
		return was != "" && is != "" && durationOf(is) < durationOf(was)
	case kind == "task.*.units": // left out, it is unbounded
		return is != "" && (was == "" || number(is) < number(was))
	case kind == "task.*.release.*.devices.*":
		return number(is) >= number(was)
	case was == "":
		return cutsBy(kind)
	case is == "":
		return slices.Contains(removable, kind)
	case kind == "authority.machines":
		return was == strconv.Quote(anyWord)
	case kind == "task.*.lifetime":
		return durationOf(is) < durationOf(was)
	}
	return false
}

// narrower reports whether a platform accepts less with another value of a key.
func narrower(key attest.Key, was, is string) bool {
	switch key.Direction {
	case attest.Grants: // a list may have been "any"
		return was != "" && (is == "" || was == strconv.Quote(anyWord))
	case attest.GrantsIfTrue:
		return is != "true"
	case attest.Cuts:
		return was == ""
	case attest.Floor: // numbers are zero where they are left out
		return number(is) >= number(was)
	case attest.Ceiling:
		return number(is) <= number(was)
	case attest.TimeFloor:
		return is >= was // times in one form, in UTC
	case attest.VersionFloor:
		return versionNumber(is) >= versionNumber(was)
	case attest.NarrowsBits:
		return narrows(key.Field, key.Name, was, is)
	case attest.Loosest:
		return is != strconv.Quote(key.Loosest)
	case attest.MaxAge:
		return was != "" && is != "" && durationOf(is) < durationOf(was)
	case attest.OptionalAge:
		return is != "" && (was == "" || durationOf(is) < durationOf(was))
	}
	return false
}

// number parses a number of a policy file; an absent one is zero.
func number(text string) int64 {
	n, _ := strconv.ParseInt(text, 10, 64)
	return n
}

// durationOf parses a duration of a policy file, in quotes.
func durationOf(text string) time.Duration {
	d, _ := time.ParseDuration(strings.Trim(text, `"`))
	return d
}

// literal returns a value as TOML with sorted keys, for people: letters of every script are written
// as they are. nil is the empty string.
func literal(v any) string { return encode(v, strconv.Quote) }

// rosterLine is literal for a group's identity. All but printable ASCII is escaped: which other
// characters package strconv counts as printable changes with the version of Go.
func rosterLine(v any) string { return encode(v, strconv.QuoteToASCII) }

func encode(v any, quote func(string) string) string {
	switch v := v.(type) {
	case nil:
		return ""
	case string:
		return quote(v)
	case time.Time:
		return v.UTC().Format(time.RFC3339)
	case []any:
		out := make([]string, len(v))
		for i, element := range v {
			out[i] = encode(element, quote)
		}
		return "[" + strings.Join(out, ", ") + "]"
	case map[string]any:
		var fields []string
		for _, key := range slices.Sorted(maps.Keys(v)) {
			fields = append(fields, policytoml.JoinPath("", key)+" = "+encode(v[key], quote))
		}
		return "{ " + strings.Join(fields, ", ") + " }"
	}
	return fmt.Sprint(v)
}

// elements returns the literals of a list; an absent list has none.
func elements(v any) (out []string, ok bool) {
	list, ok := v.([]any)
	for _, element := range list {
		out = append(out, literal(element))
	}
	return out, ok || v == nil
}
