// Package tracecontext reads the fields traceparent and tracestate (W3C Trace Context) of requests,
// so that a request can be found in the logs of gateway and unit.
//
// The fields are unauthenticated: a client or anything between can set them. Their form and size
// are checked, and what has another form counts as absent, so that they are safe in headers and
// logs. No decision depends on them.
package tracecontext

import (
	"net/http"
	"strings"
)

// Fields of a request, in canonical form.
const (
	FieldParent = "Traceparent"
	FieldState  = "Tracestate"
)

// Bounds of the specification: sections 3.2 and 3.3.
const (
	parentSize = 2 + 1 + 32 + 1 + 16 + 1 + 2 // version, trace id, parent id, flags
	maxState   = 512                         // characters
	maxMembers = 32
	maxName    = 256 // of a member
	maxValue   = 256
)

// Context is the trace context of a request. The zero Context is none.
type Context struct {
	parent string
	state  string
}

// FromHeader returns the trace context in the header of a request, and the zero Context if there is no
// valid one. A state without a valid parent counts as absent, as the specification says.
func FromHeader(h http.Header) Context {
	parents := h.Values(FieldParent)
	if len(parents) != 1 || !isParent(parents[0]) {
		return Context{}
	}
	c := Context{parent: parents[0]}
	if state := strings.Join(h.Values(FieldState), ","); isState(state) {
		c.state = state
	}
	return c
}

// Apply sets the fields of a header to the context, or removes them.
func (c Context) Apply(h http.Header) {
	for name, value := range map[string]string{FieldParent: c.parent, FieldState: c.state} {
		if delete(h, name); value != "" {
			h[name] = []string{value}
		}
	}
}

// TraceID returns the id of the trace, 32 hexadecimal digits, or "" without a context.
func (c Context) TraceID() string {
	if c.parent == "" {
		return ""
	}
	return c.parent[3:35]
}

// isParent reports whether s is a traceparent of a version that has the form of version 00.
func isParent(s string) bool {
	if len(s) != parentSize || s[2] != '-' || s[35] != '-' || s[52] != '-' {
		return false
	}
	version, trace, parent, flags := s[:2], s[3:35], s[36:52], s[53:]
	return isHex(version+trace+parent+flags) && version != "ff" && strings.Trim(trace, "0") != "" && strings.Trim(parent, "0") != ""
}

func isHex(s string) bool {
	return !strings.ContainsFunc(s, func(c rune) bool { return (c < '0' || c > '9') && (c < 'a' || c > 'f') })
}

// isState reports whether s is a tracestate: a list of members NAME=VALUE.
func isState(s string) bool {
	if len(s) > maxState {
		return false
	}
	members := strings.Split(s, ",")
	for _, member := range members {
		member = strings.Trim(member, " \t")
		if name, value, _ := strings.Cut(member, "="); member != "" && (!isName(name) || !isValue(value)) {
			return false
		}
	}
	return len(members) <= maxMembers
}

func isName(s string) bool {
	return 0 < len(s) && len(s) <= maxName && !strings.ContainsFunc(s, func(c rune) bool {
		return (c < 'a' || c > 'z') && (c < '0' || c > '9') && !strings.ContainsRune("_-*/@", c)
	})
}

func isValue(s string) bool {
	return 0 < len(s) && len(s) <= maxValue && !strings.ContainsFunc(s, func(c rune) bool { return c < ' ' || c > '~' || c == '=' })
}
