package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"reflect"
	"slices"
)

// report counts outcomes by operation and prints faults.
type report struct {
	out    io.Writer
	all    bool
	counts map[string]*count
}

type count struct{ passed, failed, unsupported int }

// add prints and counts the outcome of one case.
func (r *report) add(c testCase, got response) {
	if r.counts == nil {
		r.counts = map[string]*count{}
	}
	n := r.counts[c.op]
	if n == nil {
		n = &count{}
		r.counts[c.op] = n
	}
	fault := c.fault(got)
	switch {
	case got.Unsupported:
		n.unsupported++
	case fault == "":
		n.passed++
		if r.all {
			fmt.Fprintf(r.out, "ok %s: %s\n", c.op, c.name)
		}
	default:
		n.failed++
		fmt.Fprintf(r.out, "FAIL %s: %s: %s\n", c.op, c.name, fault)
	}
}

// fault returns what is wrong with a response, or nothing.
func (c testCase) fault(got response) string {
	switch {
	case got.Unsupported:
		return ""
	case got.Refused != nil && *got.Refused == c.refused && c.refused != "":
		return ""
	case got.Refused != nil:
		return fmt.Sprintf("got refused: %s, want %s", *got.Refused, c.wants())
	case c.refused != "":
		return fmt.Sprintf("got output %.200s, want %s", got.Output, c.wants())
	}
	var output map[string]any
	if err := json.Unmarshal(got.Output, &output); err != nil {
		return fmt.Sprintf("got output %.200s, want an object", got.Output)
	}
	for _, name := range slices.Sorted(maps.Keys(c.output)) {
		if want := plain(c.output[name]); !reflect.DeepEqual(output[name], want) {
			return fmt.Sprintf("output %s: got %.200s, want %.200s", name, encoded(output[name]), encoded(want))
		}
	}
	return ""
}

// plain returns a value in the form that decoding JSON leads to.
func plain(v any) (out any) {
	if err := json.Unmarshal(encoded(v), &out); err != nil {
		return v
	}
	return out
}

func encoded(v any) []byte {
	b, err := json.Marshal(v)
	if err != nil {
		return []byte(err.Error())
	}
	return b
}

// finish prints the counts and returns the exit code.
func (r *report) finish() int {
	failed := 0
	for _, op := range slices.Sorted(maps.Keys(r.counts)) {
		n := r.counts[op]
		failed += n.failed
		fmt.Fprintf(r.out, "%-20s %4d passed %4d failed %4d unsupported\n", op, n.passed, n.failed, n.unsupported)
	}
	if failed > 0 {
		return 1
	}
	return 0
}

// listCases prints the cases with what they must lead to.
func listCases(out io.Writer, cases []testCase) int {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	for i, c := range cases {
		// Values that were read from JSON encode again.
		_ = e.Encode(map[string]any{"id": i + 1, "op": c.op, "name": c.name, "input": c.input, "output": c.output, "refused": c.refused})
	}
	if _, err := b.WriteTo(out); err != nil {
		return 3
	}
	return 0
}
