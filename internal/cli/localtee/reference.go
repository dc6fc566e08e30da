package localtee

import (
	"fmt"
	"strings"

	"github.com/cohort-tee/cohort/attest"
)

// Quoted is a TOML list of strings.
func Quoted(list []string) string {
	out := make([]string, len(list))
	for i, s := range list {
		out[i] = TOMLString(s)
	}
	return "[" + strings.Join(out, ", ") + "]"
}

// TOMLString is a TOML basic string. Go's quoting is the same but for escapes
// of bytes and control characters that TOML spells otherwise.
func TOMLString(s string) string {
	var b strings.Builder
	b.WriteByte('"')
	for _, c := range s {
		switch {
		case c == '"' || c == '\\':
			b.WriteByte('\\')
			b.WriteRune(c)
		case c < ' ' || c == 0x7f:
			fmt.Fprintf(&b, "\\u%04x", c)
		default:
			b.WriteRune(c)
		}
	}
	b.WriteByte('"')
	return b.String()
}

// Reference is the reference value of a measured program and its arguments, as
// policy files write it.
func Reference(p attest.Platform, m Measurement, args []string) string {
	var b strings.Builder
	fmt.Fprintf(&b, "{ platform = %q", p)
	if m.Agent != "" {
		fmt.Fprintf(&b, ", agent = %q", m.Agent)
	}
	fmt.Fprintf(&b, ", program = %q", m.Program)
	if len(args) > 0 {
		b.WriteString(", args = " + Quoted(args))
	}
	b.WriteString(" }")
	return b.String()
}
