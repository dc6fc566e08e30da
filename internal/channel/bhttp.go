package channel

import (
	"net/http"
	"net/textproto"
	"strings"

	"github.com/cohort-tee/cohort/internal/wire"
)

// Binary HTTP, RFC 9292. Control data and header fields of a message lie in its
// first chunk. Content is of known length where the sender knows it, and of
// indeterminate length else.

// The framing indicators.
const (
	knownRequest = iota
	knownResponse
	indeterminateRequest
	indeterminateResponse
)

// head is control data, header fields, and the length of the content.
type head struct {
	method, scheme, authority, path string // of a request
	status                          int    // of a response
	fields                          http.Header
	length                          int64 // of the content; -1: not known
}

// indeterminate is the length of content that is not known.
const indeterminate = -1

// appendRequest encodes the head of a request. It refuses, with "request", what
// a request over HTTP/1.1 could not say.
func appendRequest(b []byte, h head) ([]byte, error) {
	for _, part := range []string{h.scheme, h.authority, h.path} {
		if !visible(part) {
			return nil, wire.Refuse(wire.BadRequest, "request: URL", part, "visible ASCII")
		}
	}
	if !token(h.method) {
		return nil, wire.Refuse(wire.BadRequest, "request: method", h.method, "a token")
	}
	b = appendFraming(b, h, knownRequest)
	for _, part := range []string{h.method, h.scheme, h.authority, h.path} {
		b = appendString(b, part)
	}
	return appendFields(b, h)
}

// appendResponse encodes the head of a response.
func appendResponse(b []byte, h head) ([]byte, error) {
	b = appendFraming(b, h, knownResponse)
	return appendFields(appendVarint(b, uint64(h.status)), h)
}

func appendFraming(b []byte, h head, known byte) []byte {
	if h.length == indeterminate {
		known += indeterminateRequest
	}
	return append(b, known)
}

func appendString(b []byte, s string) []byte {
	return append(appendVarint(b, uint64(len(s))), s...)
}

// appendFields encodes the field section of a head and, if it is known, the
// length of the content.
func appendFields(b []byte, h head) ([]byte, error) {
	b, err := appendSection(b, h.fields, h.length)
	if err == nil && h.length != indeterminate {
		b = appendVarint(b, uint64(h.length))
	}
	return b, err
}

// appendSection encodes a field section for a message whose content has this
// length.
func appendSection(b []byte, fields http.Header, length int64) ([]byte, error) {
	if length != indeterminate {
		size := 0
		for name, values := range fields {
			if hopByHop[name] {
				continue
			}
			for _, value := range values {
				size += varintSize(uint64(len(name))) + len(name) + varintSize(uint64(len(value))) + len(value)
			}
		}
		b = appendVarint(b, uint64(size))
	}
	for name, values := range fields {
		if hopByHop[name] {
			continue
		}
		if !token(name) {
			return nil, wire.Refuse(wire.BadRequest, "field: name", name, "a token")
		}
		for _, value := range values {
			if !fieldValue(value) {
				return nil, wire.Refuse(wire.BadRequest, "field: value of "+name, "control characters, or spaces around it", "neither")
			}
			b = appendString(appendLower(b, name), value)
		}
	}
	if length == indeterminate {
		b = append(b, 0)
	}
	return b, nil
}

// appendLower encodes a field name, in lower case as binary HTTP has them.
func appendLower(b []byte, name string) []byte {
	b = appendVarint(b, uint64(len(name)))
	for i := range len(name) {
		c := name[i]
		if 'A' <= c && c <= 'Z' {
			c += 'a' - 'A'
		}
		b = append(b, c)
	}
	return b
}

// hopByHop are the fields of one connection; they do not enter a message (RFC
// 9292, section 3.6). The host stands in the control data.
var hopByHop = map[string]bool{
	"Connection": true, "Keep-Alive": true, "Proxy-Connection": true, "Te": true,
	"Transfer-Encoding": true, "Upgrade": true, "Host": true,
}

// parser takes a message apart; after its first error it gives zero values.
type parser struct {
	rest  []byte
	known bool // the message's lengths stand before what they measure
	more  bool // rest is the beginning of a message, of which nothing is left out
	short bool // the error is that rest ends too soon
	err   error
}

// cut is fail where the message ends too soon.
func (p *parser) cut(rule string, got, want any) {
	p.short = p.short || p.more && p.err == nil
	p.fail(rule, got, want)
}

func (p *parser) fail(rule string, got, want any) {
	if p.err == nil {
		p.err = wire.Refuse(wire.Malformed, "binary http: "+rule, got, want)
		p.rest = nil
	}
}

func (p *parser) integer() uint64 {
	if len(p.rest) == 0 || len(p.rest) < 1<<(p.rest[0]>>6) {
		p.cut("integer", "a cut one", "all its bytes")
		return 0
	}
	v, rest, err := parseVarint(p.rest)
	if err != nil && p.err == nil {
		p.err = err
	}
	p.rest = rest
	return v
}

// bytes takes a length and that many bytes.
func (p *parser) bytes() []byte {
	n := p.integer()
	if n > uint64(len(p.rest)) {
		p.cut("length", n, "within the message")
		return nil
	}
	b := p.rest[:n]
	p.rest = p.rest[n:]
	return b
}

// text takes a string of visible ASCII.
func (p *parser) text(what string) string {
	s := string(p.bytes())
	if !visible(s) {
		p.fail(what, s, "visible ASCII")
	}
	return s
}

// parseRequest takes the head of a request apart and gives the rest of its first
// chunk.
func parseRequest(b []byte) (head, []byte, error) {
	p := &parser{rest: b}
	h := p.request()
	return h, p.rest, p.err
}

func (p *parser) request() head {
	framing := p.integer()
	if framing != knownRequest && framing != indeterminateRequest {
		p.fail("framing indicator", framing, "a request's")
	}
	h := head{method: p.text("method"), scheme: p.text("scheme"), authority: p.text("authority"), path: p.text("path")}
	if p.err == nil && !token(h.method) {
		p.fail("method", h.method, "a token")
	}
	p.known = framing == knownRequest
	p.head(&h)
	return h
}

// parseResponse is parseRequest for a response. Informational responses before
// it are checked and left out.
func parseResponse(b []byte) (head, []byte, error) {
	p := &parser{rest: b}
	h := p.response()
	return h, p.rest, p.err
}

func (p *parser) response() head {
	framing := p.integer()
	if framing != knownResponse && framing != indeterminateResponse {
		p.fail("framing indicator", framing, "a response's")
	}
	p.known = framing == knownResponse
	h := head{status: int(p.integer())}
	for p.err == nil && 100 <= h.status && h.status < 200 {
		p.section()
		h.status = int(p.integer())
	}
	if p.err == nil && (h.status < 200 || h.status > 599) {
		p.fail("status", h.status, "200 to 599")
	}
	p.head(&h)
	return h
}

// head takes the field section and, if it is known, the length of the content.
// A message may end where nothing but zeros would follow.
func (p *parser) head(h *head) {
	h.fields, h.length = p.section(), indeterminate
	if p.known {
		h.length = 0
		if len(p.rest) > 0 || p.more {
			h.length = int64(p.integer())
		}
	}
}

// section takes a field section.
func (p *parser) section() http.Header {
	if p.err != nil || len(p.rest) == 0 && !p.more {
		return http.Header{}
	}
	if p.known {
		inner := &parser{rest: p.bytes(), known: true}
		fields := inner.fields()
		if p.err == nil {
			p.err = inner.err
		}
		return fields
	}
	return p.fields()
}

// fields takes field lines up to the end of a known section, or the terminator.
func (p *parser) fields() http.Header {
	fields := make(http.Header, 4)
	for p.err == nil && len(p.rest) > 0 {
		name := p.bytes()
		if len(name) == 0 && !p.known {
			return fields
		}
		key, value := fieldName(name), string(p.bytes())
		if p.err == nil && (key == "" || hopByHop[key] && key != "Host" || !fieldValue(value)) {
			p.fail("field", string(name), "a lower-case name that is not a connection's, a value without control characters")
		}
		fields[key] = append(fields[key], value)
	}
	if !p.known && p.err == nil {
		p.cut("field section", "no end", "a terminator")
	}
	return fields
}

// fieldName is the canonical form of a lower-case field name, or empty.
func fieldName(b []byte) string {
	for _, c := range b {
		if !tokenChars[c] || 'A' <= c && c <= 'Z' {
			return ""
		}
	}
	return textproto.CanonicalMIMEHeaderKey(string(b))
}

// tokenChars are the characters of a token, RFC 9110, section 5.6.2.
var tokenChars = func() (t [256]bool) {
	for _, c := range "!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ" {
		t[c] = true
	}
	return t
}()

func token(s string) bool {
	for i := range len(s) {
		if !tokenChars[s[i]] {
			return false
		}
	}
	return s != ""
}

// visible reports whether s is ASCII without spaces and control characters.
func visible(s string) bool {
	return !strings.ContainsFunc(s, func(c rune) bool { return c <= ' ' || c >= 0x7f })
}

// fieldValue reports whether s can be the value of a field: no control
// characters but tabs, no spaces around it (RFC 9110, section 5.5).
func fieldValue(s string) bool {
	for i := range len(s) {
		if c := s[i]; c < ' ' && c != '\t' || c == 0x7f {
			return false
		}
	}
	return s == "" || s[0] > ' ' && s[len(s)-1] > ' '
}
