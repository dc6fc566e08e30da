package tracecontext

import (
	"fmt"
	"net/http"
	"strings"
	"testing"
)

const (
	trace  = "0af7651916cd43dd8448eb211c80319c"
	parent = "00-" + trace + "-b7ad6b7169203331-01"
)

// TestRead: fields of the specification's form are read, and all others count as absent.
func TestRead(t *testing.T) {
	long := strings.Repeat("a", 256)
	for _, row := range []struct {
		name           string
		parents, state []string
		wantState      string
		none           bool // no context
	}{
		{"both", []string{parent}, []string{"congo=t61rcWkgMzE"}, "congo=t61rcWkgMzE", false},
		{"no state", []string{parent}, nil, "", false},
		{"two lines of state", []string{parent}, []string{"a=1", "b=2"}, "a=1,b=2", false},
		{"empty members", []string{parent}, []string{"a=1,, b=2"}, "a=1,, b=2", false},
		{"names of vendors", []string{parent}, []string{"0fw529a3039@dt=FfAB,a-b_c*d/e=x y"}, "0fw529a3039@dt=FfAB,a-b_c*d/e=x y", false},
		{"the longest name", []string{parent}, []string{long + "=" + long[:255]}, long + "=" + long[:255], false},
		{"512 characters", []string{parent}, []string{"a=" + long + ",b=" + long[:251]}, "a=" + long + ",b=" + long[:251], false},
		{"513 characters", []string{parent}, []string{"a=" + long + ",b=" + long[:252]}, "", false},
		{"a value too long", []string{parent}, []string{"a=" + long + "a"}, "", false},
		{"32 members", []string{parent}, []string{strings.Repeat("a=1,", 31) + "a=1"}, strings.Repeat("a=1,", 31) + "a=1", false},
		{"33 members", []string{parent}, []string{strings.Repeat("a=1,", 32) + "a=1"}, "", false},
		{"no value", []string{parent}, []string{"a="}, "", false},
		{"no name", []string{parent}, []string{"=1"}, "", false},
		{"a name in capitals", []string{parent}, []string{"A=1"}, "", false},
		{"a control character", []string{parent}, []string{"a=1\n"}, "", false},
		{"a character that is not ASCII", []string{parent}, []string{"a=ä"}, "", false},
		{"an equals sign in a value", []string{parent}, []string{"a=b=c"}, "", false},
		{"a later version", []string{"cc" + parent[2:]}, nil, "", false},
		{"no parent", nil, []string{"a=1"}, "", true},
		{"two parents", []string{parent, parent}, []string{"a=1"}, "", true},
		{"version ff", []string{"ff" + parent[2:]}, nil, "", true},
		{"a zero trace", []string{"00-" + strings.Repeat("0", 32) + "-b7ad6b7169203331-01"}, nil, "", true},
		{"a zero parent", []string{"00-" + trace + "-0000000000000000-01"}, nil, "", true},
		{"capitals", []string{strings.ToUpper(parent)}, nil, "", true},
		{"too short", []string{parent[1:]}, nil, "", true},
		{"too long", []string{parent + "-00"}, nil, "", true},
		{"no hexadecimal digits", []string{strings.Replace(parent, "a", "g", 1)}, nil, "", true},
		{"other separators", []string{strings.ReplaceAll(parent, "-", "_")}, nil, "", true},
		{"a line in it", []string{parent[:54] + "\n"}, nil, "", true},
	} {
		t.Run(row.name, func(t *testing.T) {
			c := FromHeader(http.Header{FieldParent: row.parents, FieldState: row.state})
			out := http.Header{FieldParent: {"before"}, FieldState: {"before"}, "Other": {"stays"}}
			c.Apply(out)
			wantParent, wantTrace := "", ""
			if !row.none {
				wantParent, wantTrace = row.parents[0], trace
			}
			if out.Get(FieldParent) != wantParent || out.Get(FieldState) != row.wantState || c.TraceID() != wantTrace || out.Get("Other") != "stays" {
				t.Errorf("got %v and trace %q", out, c.TraceID())
			}
			if _, left := out[FieldState]; left && row.wantState == "" {
				t.Error("an empty field is left")
			}
		})
	}
}

// FuzzRead: what is read is valid again, and safe in headers and logs.
func FuzzRead(f *testing.F) {
	f.Add(parent, "a=1,b=2")
	f.Fuzz(func(t *testing.T, parent, state string) {
		c := FromHeader(http.Header{FieldParent: {parent}, FieldState: {state}})
		out := http.Header{}
		c.Apply(out)
		if FromHeader(out) != c || strings.ContainsAny(fmt.Sprint(c), "\r\n\x00") || len(c.parent)+len(c.state) > parentSize+maxState {
			t.Errorf("%q, %q became %v", parent, state, out)
		}
	})
}
