package frame

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/cohort-tee/cohort/internal/wire"
)

// PrintResult writes one result to stdout: v as a JSON object with its schema, or the
// text. v marshals to a JSON object.
func (a *App) PrintResult(what string, v any, text string) error {
	if a.Output == "text" {
		_, err := io.WriteString(a.Stdout, text)
		return err
	}
	b, err := WithSchema(what, v)
	if err != nil {
		return err
	}
	_, err = a.Stdout.Write(b)
	return err
}

// WithSchema is v as an indented JSON object whose first member is the schema,
// which v may bring itself.
func WithSchema(what string, v any) ([]byte, error) {
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

// Notef writes one line for people to stderr.
func (a *App) Notef(format string, args ...any) {
	fmt.Fprintf(a.Stderr, format+"\n", args...)
}

// OneLine puts an error of several lines on one.
func OneLine(s string) string { return strings.Join(strings.Fields(s), " ") }

// written is a file that a command made: on stdout, or at the path of --out.
type written struct {
	File   string `json:"file,omitempty"`
	Digest string `json:"digest"`
	Text   string `json:"text,omitempty"`
}

// Write writes a file that a command makes, to out or as the result where out is empty.
func (a *App) Write(what, out string, content []byte) error {
	w := written{Digest: wire.Sum(content).String()}
	if out == "" {
		w.Text = string(content)
		return a.PrintResult(what, w, w.Text)
	}
	if err := os.WriteFile(out, content, 0o644); err != nil {
		return err
	}
	w.File = out
	return a.PrintResult(what, w, fmt.Sprintf("wrote %s\ndigest %s\n", out, w.Digest))
}

// WithDevice is one device beside a TEE for people, with what was not compared of it.
func WithDevice(platform, chip string, notVerified []string) string {
	text := " with " + platform + " " + chip
	if len(notVerified) > 0 {
		text += " (not verified: " + strings.Join(notVerified, "; ") + ")"
	}
	return text
}

// RFC3339 writes times for people and programs.
func RFC3339(t time.Time) string { return t.UTC().Format(time.RFC3339) }

// UnitField is the field of health pages that names the unit.
const UnitField = "Cohort-Unit"
