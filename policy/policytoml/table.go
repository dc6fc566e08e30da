package policytoml

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/cohort-tee/cohort/attest"
)

// Table reads one TOML table. Each method reads one key, notes it as known, and adds a
// fault if the value breaks its rule; an absent key reads as the zero value, and
// [Table.Require] adds a fault if a key is absent. [Table.RejectUnknown] adds a fault for
// each key that was not read, so a key exists exactly if code reads it.
type Table struct {
	Path   string
	Values map[string]any
	known  map[string]bool
	Faults *Faults
}

// NewTable returns a table at a path. Its faults are added to faults.
func NewTable(path string, values map[string]any, faults *Faults) Table {
	return Table{Path: path, Values: values, known: map[string]bool{}, Faults: faults}
}

// KeyPath returns the path of a key of this table.
func (t Table) KeyPath(key string) string { return JoinPath(t.Path, key) }

// JoinPath appends a key to a path, in quotes where TOML needs them.
func JoinPath(path, key string) string {
	if strings.ContainsFunc(key, func(c rune) bool { return !strings.ContainsRune(bareKey, c) }) || key == "" {
		key = strconv.Quote(key)
	}
	if path == "" {
		return key
	}
	return path + "." + key
}

const bareKey = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_"

// ElementPath returns the path of an element of a list of this table.
func (t Table) ElementPath(key string, i int) string { return fmt.Sprintf("%s[%d]", t.KeyPath(key), i) }

// AddFault adds a fault of a key of this table.
func (t Table) AddFault(key, rule string, got, want any) {
	t.Faults.Add(t.KeyPath(key), rule, got, want)
}

// HasKey reports whether the table has a key.
func (t Table) HasKey(key string) bool {
	_, ok := t.Values[key]
	return ok
}

// Require adds a fault for each key that the table does not have.
func (t Table) Require(keys ...string) {
	for _, key := range keys {
		if !t.HasKey(key) {
			t.AddFault(key, "required key", "a table without it", "a value")
		}
	}
}

// Expect marks keys as known that other code reads.
func (t Table) Expect(keys ...string) {
	for _, key := range keys {
		t.known[key] = true
	}
}

// Forbid adds a fault if the table has a key that must not occur with another.
func (t Table) Forbid(key, other string) {
	t.known[key] = true
	if t.HasKey(key) {
		t.AddFault(key, "key", Describe(t.Values[key]), "no value beside "+other)
	}
}

// ReadValue reads a value of TOML type T that ok accepts.
func ReadValue[T any](t Table, key, want string, ok func(T) bool) T {
	t.known[key] = true
	var none T
	v, present := t.Values[key]
	if !present {
		return none
	}
	typed, is := v.(T)
	if !is || !ok(typed) {
		t.AddFault(key, "value", Describe(v), want)
		return none
	}
	return typed
}

// AnyValue accepts every value of a type, for [ReadValue].
func AnyValue[T any](T) bool { return true }

// OneOf returns a function that accepts the words, for [Table.ReadText].
func OneOf(words []string) func(string) bool {
	return func(s string) bool { return slices.Contains(words, s) }
}

// Describe returns a value as faults print it.
func Describe(v any) string {
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

// ReadText reads a string that ok accepts.
func (t Table) ReadText(key, want string, ok func(string) bool) string {
	return ReadValue(t, key, want, ok)
}

// ReadNumber reads a whole number from least to most.
func (t Table) ReadNumber(key string, least, most int64) int64 {
	want := fmt.Sprintf("a whole number from %d to %d", least, most)
	return ReadValue(t, key, want, func(n int64) bool { return least <= n && n <= most })
}

// ReadFlag reads true or false.
func (t Table) ReadFlag(key string) bool {
	return ReadValue(t, key, "true or false", AnyValue[bool])
}

// ReadTime reads a time in whole seconds of UTC, because certificates carry no other.
func (t Table) ReadTime(key string) time.Time {
	at := ReadValue(t, key, "a time such as 2026-11-22T09:00:00Z", func(at time.Time) bool {
		_, offset := at.Zone()
		return offset == 0 && at.Nanosecond() == 0 && at.Year() >= 2020 && at.Year() < 9000
	})
	return at.UTC()
}

// ReadOptionalTime is ReadTime for a key that may be absent; then the time is zero.
func (t Table) ReadOptionalTime(key string) time.Time {
	if !t.HasKey(key) {
		t.known[key] = true
		return time.Time{}
	}
	return t.ReadTime(key)
}

// ReadDuration reads a duration from least to most.
func (t Table) ReadDuration(key string, least, most time.Duration) time.Duration {
	var d time.Duration
	t.ReadText(key, fmt.Sprintf("a duration from %v to %v", least, most), func(s string) bool {
		var err error
		d, err = time.ParseDuration(s)
		return err == nil && least <= d && d <= most
	})
	return d
}

// ReadDigest reads "sha256:" and 64 digits.
func (t Table) ReadDigest(key string) attest.Digest {
	var d attest.Digest
	t.ReadText(key, WantDigest, func(s string) bool { return DecodeDigest(&d, s) })
	return d
}

// WantDigest is the form of a digest, for faults.
const WantDigest = `"sha256:" and 64 lower-case hexadecimal digits`

// DecodeDigest decodes "sha256:" and 64 digits into d, and reports whether s has that form.
func DecodeDigest(d *attest.Digest, s string) bool {
	return s != "" && d.UnmarshalText([]byte(s)) == nil
}

// ReadList reads a list of strings that ok accepts.
func (t Table) ReadList(key, want string, ok func(string) bool) []string {
	var out []string
	for i, v := range ReadValue(t, key, "a list", AnyValue[[]any]) {
		s, is := v.(string)
		if !is || !ok(s) {
			t.Faults.Add(t.ElementPath(key, i), "value", Describe(v), want)
			continue
		}
		out = append(out, s)
	}
	return out
}

// ReadSet is ReadList for a list in which no element occurs twice.
func (t Table) ReadSet(key, want string, ok func(string) bool) []string {
	out := t.ReadList(key, want, ok)
	for i, s := range out {
		if slices.Contains(out[:i], s) {
			t.AddFault(key, "element twice", s, "each once")
		}
	}
	return out
}

// ReadTable reads a table inside this one; ok is false if the key is absent.
func (t Table) ReadTable(key string) (inner Table, ok bool) {
	values := ReadValue(t, key, "a table", AnyValue[map[string]any])
	return NewTable(t.KeyPath(key), values, t.Faults), values != nil
}

// ReadTables reads a list of tables.
func (t Table) ReadTables(key string) []Table {
	var out []Table
	for i, v := range ReadValue(t, key, "a list of tables", AnyValue[[]any]) {
		values, is := v.(map[string]any)
		if !is {
			t.Faults.Add(t.ElementPath(key, i), "value", Describe(v), "a table")
			continue
		}
		out = append(out, NewTable(t.ElementPath(key, i), values, t.Faults))
	}
	return out
}

// ReadNamedTables reads a table of tables whose keys are names that ok accepts, in the
// order of their names.
func (t Table) ReadNamedTables(key, want string, ok func(string) bool) []NamedTable {
	var out []NamedTable
	all, _ := t.ReadTable(key)
	for _, name := range slices.Sorted(maps.Keys(all.Values)) {
		if !ok(name) {
			all.AddFault(name, "name", name, want)
			continue
		}
		if inner, is := all.ReadTable(name); is {
			out = append(out, NamedTable{name, inner})
		}
	}
	return out
}

// NamedTable is a table and its key in the table around it.
type NamedTable struct {
	Name string
	Table
}

// RejectUnknown adds a fault for each key that was not read.
func (t Table) RejectUnknown() {
	for _, key := range slices.Sorted(maps.Keys(t.Values)) {
		if !t.known[key] {
			t.AddFault(key, "unknown key", key, Nearest(key, slices.Sorted(maps.Keys(t.known))))
		}
	}
}

// Nearest returns the word with the smallest edit distance to s.
func Nearest(s string, words []string) string {
	best, least := "none", -1
	for _, w := range words {
		if d := distance(s, w); least < 0 || d < least {
			best, least = w, d
		}
	}
	return best
}

// distance returns the Levenshtein distance in bytes.
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
