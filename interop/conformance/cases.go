package main

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// testCase is one operation with what it must lead to: an output with at least these members, or a
// refusal with one of these reasons.
type testCase struct {
	op, name string
	input    map[string]any
	output   map[string]any
	refused  string
}

func (c testCase) request(id int) request { return request{ID: id, Op: c.op, Input: c.input} }

// wants describes what the case must lead to.
func (c testCase) wants() string {
	if c.refused != "" {
		return "refused: " + c.refused
	}
	b, err := json.Marshal(c.output)
	if err != nil {
		return err.Error()
	}
	return "output with " + string(b)
}

// readCases returns the cases of all suites, or those of one operation.
func readCases(root, only string) (all []testCase, err error) {
	v := &vectors{root: root}
	for _, suite := range suites {
		suite(v)
	}
	if v.err != nil {
		return nil, v.err
	}
	if only != "" {
		v.cases = slices.DeleteFunc(v.cases, func(c testCase) bool { return c.op != only })
		if len(v.cases) == 0 {
			return nil, fmt.Errorf("operation: got %q, want one of README.md", only)
		}
	}
	return v.cases, nil
}

// vectors reads vector files and collects the cases made of them. After the first error it returns
// zero values.
type vectors struct {
	root  string
	cases []testCase
	err   error
}

func (v *vectors) fail(err error) {
	if v.err == nil {
		v.err = err
	}
}

// text returns a file.
func (v *vectors) text(path string) string {
	b, err := os.ReadFile(filepath.Join(v.root, filepath.FromSlash(path)))
	if err != nil {
		v.fail(err)
	}
	return string(b)
}

// json reads a file into a value.
func (v *vectors) json(path string, into any) {
	if text := v.text(path); text != "" {
		if err := json.Unmarshal([]byte(text), into); err != nil {
			v.fail(fmt.Errorf("%s: %w", path, err))
		}
	}
}

// files returns the paths that match a pattern.
func (v *vectors) files(pattern string) (paths []string) {
	found, err := filepath.Glob(filepath.Join(v.root, filepath.FromSlash(pattern)))
	if err == nil && len(found) == 0 {
		err = fmt.Errorf("%s: no such file", pattern)
	}
	if err != nil {
		v.fail(err)
	}
	for _, path := range found {
		relative, err := filepath.Rel(v.root, path)
		if err != nil {
			v.fail(err)
		}
		paths = append(paths, filepath.ToSlash(relative))
	}
	return paths
}

// accepts adds a case that has an output.
func (v *vectors) accepts(op, name string, input, output map[string]any) {
	v.cases = append(v.cases, testCase{op: op, name: name, input: input, output: output})
}

// refuses adds a case that is refused.
func (v *vectors) refuses(op, name string, input map[string]any, reason string) {
	v.cases = append(v.cases, testCase{op: op, name: name, input: input, refused: reason})
}

// verdict adds a case whose expectation is "accepted", "ok" or a reason.
func (v *vectors) verdict(op, name string, input map[string]any, expect string, output map[string]any) {
	if expect == "accepted" || expect == "ok" {
		v.accepts(op, name, input, output)
	} else {
		v.refuses(op, name, input, expect)
	}
}

// change is one edit of a recorded input: the value that a JSON Pointer (RFC 6901) names is
// replaced, or removed where there is no value.
type change struct {
	Path  string `json:"path"`
	Value any    `json:"value"`
}

// changed returns a copy of an input after changes.
func (v *vectors) changed(input map[string]any, changes []change) map[string]any {
	b, err := json.Marshal(input)
	if err != nil {
		v.fail(err)
	}
	var next map[string]any
	if err := json.Unmarshal(b, &next); err != nil {
		v.fail(err)
	}
	for _, c := range changes {
		if err := setPointer(next, strings.Split(c.Path, "/")[1:], c.Value); err != nil {
			v.fail(fmt.Errorf("%s: %w", c.Path, err))
		}
	}
	return next
}

// setPointer sets or removes the value at a path.
func setPointer(in any, path []string, value any) error {
	switch at := in.(type) {
	case map[string]any:
		if len(path) > 1 {
			return setPointer(at[path[0]], path[1:], value)
		}
		if value == nil {
			delete(at, path[0])
		} else {
			at[path[0]] = value
		}
		return nil
	case []any:
		i, err := strconv.Atoi(path[0])
		if err != nil || i < 0 || i >= len(at) {
			return fmt.Errorf("got index %q, want one below %d", path[0], len(at))
		}
		if len(path) > 1 {
			return setPointer(at[i], path[1:], value)
		}
		at[i] = value
		return nil
	}
	return fmt.Errorf("got a value without members")
}

// headers splits a text vector into its header, fields of "name: value", and its body.
func headers(text string) (fields map[string][]string, body string) {
	head, body, _ := strings.Cut(text, "\n\n")
	fields = map[string][]string{}
	for line := range strings.Lines(head) {
		name, value, _ := strings.Cut(strings.TrimSuffix(line, "\n"), ": ")
		fields[name] = append(fields[name], value)
	}
	return fields, body
}

// first returns the first value of a field, or nothing.
func first(values []string) string {
	if len(values) == 0 {
		return ""
	}
	return values[0]
}
