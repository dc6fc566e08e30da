package policyfile

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/cohort-tee/cohort/attest"
)

// table reads one TOML table. Each method reads one key, notes it as known, and
// adds a fault where the value breaks its rule; an absent key reads as the zero
// value, and need says which may not be absent. done refuses whatever nobody
// read, so a key exists exactly when code asks for it.
type table struct {
	path   string
	values map[string]any
	known  map[string]bool
	faults *Faults
}

func newTable(path string, values map[string]any, faults *Faults) table {
	return table{path: path, values: values, known: map[string]bool{}, faults: faults}
}

// at is the path of a key of this table.
func (t table) at(key string) string { return join(t.path, key) }

// join appends a key to a path, in quotes where TOML needs them.
func join(path, key string) string {
	if strings.ContainsFunc(key, func(c rune) bool { return !strings.ContainsRune(bareKey, c) }) || key == "" {
		key = strconv.Quote(key)
	}
	if path == "" {
		return key
	}
	return path + "." + key
}

const bareKey = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_"

// element is the path of an element of a list of this table.
func (t table) element(key string, i int) string { return fmt.Sprintf("%s[%d]", t.at(key), i) }

func (t table) fault(key, rule string, got, want any) { t.faults.add(t.at(key), rule, got, want) }

// has reports whether the key is there.
func (t table) has(key string) bool {
	_, ok := t.values[key]
	return ok
}

// need refuses a table without one of the keys.
func (t table) need(keys ...string) {
	for _, key := range keys {
		if !t.has(key) {
			t.fault(key, "required key", "none", "a value")
		}
	}
}

// absent refuses a key that another one rules out.
func (t table) absent(key, other string) {
	t.known[key] = true
	if t.has(key) {
		t.fault(key, "key", show(t.values[key]), "none beside "+other)
	}
}

// read reads a value of TOML type T that ok accepts.
func read[T any](t table, key, want string, ok func(T) bool) T {
	t.known[key] = true
	var none T
	v, present := t.values[key]
	if !present {
		return none
	}
	typed, is := v.(T)
	if !is || !ok(typed) {
		t.fault(key, "value", show(v), want)
		return none
	}
	return typed
}

func anything[T any](T) bool { return true }

func oneOf(words []string) func(string) bool {
	return func(s string) bool { return slices.Contains(words, s) }
}

func show(v any) string {
	switch v := v.(type) {
	case string:
		return v
	case map[string]any:
		return "a table"
	case []any:
		return "a list"
	}
	return fmt.Sprint(v)
}

func (t table) text(key, want string, ok func(string) bool) string {
	return read(t, key, want, ok)
}

func (t table) number(key string, least, most int64) int64 {
	want := fmt.Sprintf("a whole number from %d to %d", least, most)
	return read(t, key, want, func(n int64) bool { return least <= n && n <= most })
}

func (t table) flag(key string) bool {
	return read(t, key, "true or false", anything[bool])
}

// moment reads a time in whole seconds of UTC: it goes into certificates.
func (t table) moment(key string) time.Time {
	at := read(t, key, "a time such as 2026-11-22T09:00:00Z", func(at time.Time) bool {
		_, offset := at.Zone()
		return offset == 0 && at.Nanosecond() == 0 && at.Year() >= 2020 && at.Year() < 9000
	})
	return at.UTC()
}

// dated is a moment that may be left out, and is then the zero time.
func (t table) dated(key string) time.Time {
	if !t.has(key) {
		t.known[key] = true
		return time.Time{}
	}
	return t.moment(key)
}

func (t table) duration(key string, least, most time.Duration) time.Duration {
	var d time.Duration
	t.text(key, fmt.Sprintf("a duration from %v to %v", least, most), func(s string) bool {
		var err error
		d, err = time.ParseDuration(s)
		return err == nil && least <= d && d <= most
	})
	return d
}

// Digest reads "sha256:" and 64 digits.
func (t table) digest(key string) attest.Digest {
	var d attest.Digest
	t.text(key, wantDigest, func(s string) bool { return digestInto(&d, s) })
	return d
}

const wantDigest = `"sha256:" and 64 lower-case hexadecimal digits`

func digestInto(d *attest.Digest, s string) bool {
	return s != "" && d.UnmarshalText([]byte(s)) == nil
}

// names reads a list of strings that ok accepts.
func (t table) list(key, want string, ok func(string) bool) []string {
	var out []string
	for i, v := range read(t, key, "a list", anything[[]any]) {
		s, is := v.(string)
		if !is || !ok(s) {
			t.faults.add(t.element(key, i), "value", show(v), want)
			continue
		}
		out = append(out, s)
	}
	return out
}

// set is a list without an element twice.
func (t table) set(key, want string, ok func(string) bool) []string {
	out := t.list(key, want, ok)
	for i, s := range out {
		if slices.Contains(out[:i], s) {
			t.fault(key, "element twice", s, "each once")
		}
	}
	return out
}

// table reads one table inside this one; ok is false when it is absent.
func (t table) table(key string) (inner table, ok bool) {
	values := read(t, key, "a table", anything[map[string]any])
	return newTable(t.at(key), values, t.faults), values != nil
}

// tables reads a list of tables.
func (t table) tables(key string) []table {
	var out []table
	for i, v := range read(t, key, "a list of tables", anything[[]any]) {
		values, is := v.(map[string]any)
		if !is {
			t.faults.add(t.element(key, i), "value", show(v), "a table")
			continue
		}
		out = append(out, newTable(t.element(key, i), values, t.faults))
	}
	return out
}

// named reads a table of tables whose keys are names that ok accepts, in the
// order of their names.
func (t table) named(key, want string, ok func(string) bool) []namedTable {
	var out []namedTable
	all, _ := t.table(key)
	for _, name := range slices.Sorted(maps.Keys(all.values)) {
		if !ok(name) {
			all.fault(name, "name", name, want)
			continue
		}
		if inner, is := all.table(name); is {
			out = append(out, namedTable{name, inner})
		}
	}
	return out
}

type namedTable struct {
	name string
	table
}

// done refuses keys that were not read.
func (t table) done() {
	for _, key := range slices.Sorted(maps.Keys(t.values)) {
		if !t.known[key] {
			t.fault(key, "unknown key", key, nearest(key, slices.Sorted(maps.Keys(t.known))))
		}
	}
}

// nearest is the word with the smallest edit distance to s.
func nearest(s string, words []string) string {
	best, least := "none", -1
	for _, w := range words {
		if d := distance(s, w); least < 0 || d < least {
			best, least = w, d
		}
	}
	return best
}

// distance is the Levenshtein distance in bytes.
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := diagonal
			if a[i] != b[j] {
				cost = 1 + min(diagonal, row[j], row[j+1])
			}
			diagonal, row[j+1] = row[j+1], cost
		}
	}
	return row[len(b)]
}
