package cli

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"strings"
)

// emit writes one result to stdout: v as a JSON object with its schema, or the
// text. v marshals to a JSON object.
func (a *app) emit(what string, v any, text string) error {
	if a.output == "text" {
		_, err := io.WriteString(a.out, text)
		return err
	}
	b, err := withSchema(what, v)
	if err != nil {
		return err
	}
	_, err = a.out.Write(b)
	return err
}

// withSchema is v as an indented JSON object whose first member is the schema,
// which v may bring itself.
func withSchema(what string, v any) ([]byte, error) {
	b, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return nil, fmt.Errorf("writing %s: %w", what, err)
	}
	if len(b) < 2 || b[0] != '{' {
		return nil, fmt.Errorf("writing %s: not an object", what)
	}
	head := fmt.Sprintf("{\n  %q: %q", "schema", "cohort/"+what+"/v1")
	if bytes.HasPrefix(b, []byte(head)) {
		return append(b, '\n'), nil
	}
	if string(b) == "{}" {
		return []byte(head + "\n}\n"), nil
	}
	return append([]byte(head+","), append(b[1:], '\n')...), nil
}

// say writes one line for people to stderr.
func (a *app) say(format string, args ...any) {
	fmt.Fprintf(a.talk, format+"\n", args...)
}

// oneLine puts an error of several lines on one.
func oneLine(s string) string { return strings.Join(strings.Fields(s), " ") }
