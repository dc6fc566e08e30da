// Package bhttp reads and writes binary HTTP (RFC 9292): requests and responses as the
// plaintext of an encrypted message.
//
// The head of a message, which is control data and header fields, is encoded and parsed as a
// whole ([AppendRequest], [ParseRequest]). Content and trailers come in pieces ([NewContent]),
// because a message may be longer than memory. Content is of known length where its sender
// knows it, and of indeterminate length else.
//
// The package trusts nothing: each length is bounded by bytes that are there, or by a limit of
// its own, before memory is taken. It refuses, as [wire.Malformed], integers in more bytes than
// they need, names and values that HTTP/1.1 could not carry, fields of one connection, a
// content-length that differs from the content, and padding that is not zero.
//
// Files, each using those before it: varint.go, bhttp.go, content.go, http.go.
package bhttp

import (
	"errors"
	"net/http"
	"net/textproto"
	"strconv"
	"strings"

	"github.com/cohort-tee/cohort/internal/wire"
)

// The framing indicators, RFC 9292, section 3.3.
const (
	knownRequest = iota
	knownResponse
	indeterminateRequest
	indeterminateResponse
)

// Head is the control data, the header fields and the length of the content of a message.
type Head struct {
	Method, Scheme, Authority, Path string // of a request
	Status                          int    // of a response
	Fields                          http.Header
	Length                          int64 // of the content; -1: not known
}

// Indeterminate is the length of content that is not known.
const Indeterminate = -1

// AppendRequest encodes the head of a request. It refuses, with "request", what
// HTTP/1.1 could not carry.
func AppendRequest(b []byte, h Head) ([]byte, error) {
	for _, part := range []string{h.Scheme, h.Authority, h.Path} {
		if !isVisible(part) {
			return nil, wire.Refuse(wire.BadRequest, "request: URL", part, "visible ASCII")
		}
	}
	if !isToken(h.Method) {
		return nil, wire.Refuse(wire.BadRequest, "request: method", h.Method, "a token")
	}
	b = appendFraming(b, h, knownRequest)
	for _, part := range []string{h.Method, h.Scheme, h.Authority, h.Path} {
		b = appendString(b, part)
	}
	return appendFields(b, h)
}

// AppendResponse encodes the head of a response.
func AppendResponse(b []byte, h Head) ([]byte, error) {
	b = appendFraming(b, h, knownResponse)
	return appendFields(AppendVarint(b, uint64(h.Status)), h)
}

func appendFraming(b []byte, h Head, known byte) []byte {
	if h.Length == Indeterminate {
		known += indeterminateRequest
	}
	return append(b, known)
}

func appendString(b []byte, s string) []byte {
	return append(AppendVarint(b, uint64(len(s))), s...)
}

// appendFields encodes the field section of a head and, if it is known, the
// length of the content.
func appendFields(b []byte, h Head) ([]byte, error) {
	b, err := appendSection(b, h.Fields, h.Length)
	if err == nil && h.Length != Indeterminate {
		b = AppendVarint(b, uint64(h.Length))
	}
	return b, err
}

// appendSection encodes a field section for a message whose content has this
// length.
func appendSection(b []byte, fields http.Header, length int64) ([]byte, error) {
	if length != Indeterminate {
		size := 0
		for name, values := range fields {
			if hopByHop[name] {
				continue
			}
			for _, value := range values {
				size += VarintSize(uint64(len(name))) + len(name) + VarintSize(uint64(len(value))) + len(value)
			}
		}
		b = AppendVarint(b, uint64(size))
	}
	for name, values := range fields {
		if hopByHop[name] {
			continue
		}
		if !isToken(name) {
			return nil, wire.Refuse(wire.BadRequest, "field: name", name, "a token")
		}
		for _, value := range values {
			if !isFieldValue(value) {
				return nil, wire.Refuse(wire.BadRequest, "field: value of "+name, "control characters, or spaces around it", "neither")
			}
			b = appendString(appendLower(b, name), value)
		}
	}
	if length == Indeterminate {
		b = append(b, 0)
	}
	return b, nil
}

// AppendTrailers appends the trailer section of a message whose content has this
// length; an empty one is left out. It refuses, with "too-large", more than [MaxTrailers].
func AppendTrailers(b []byte, trailer http.Header, length int64) ([]byte, error) {
	if len(trailer) == 0 {
		return b, nil
	}
	before := len(b)
	b, err := appendSection(b, trailer, length)
	if size := len(b) - before; err == nil && size > MaxTrailers {
		err = wire.Refuse(wire.TooLarge, "trailers: size in bytes", size, MaxTrailers)
	}
	return b, err
}

// appendLower encodes a field name, in lower case as binary HTTP has them.
func appendLower(b []byte, name string) []byte {
	b = AppendVarint(b, uint64(len(name)))
	for i := range len(name) {
		c := name[i]
		if 'A' <= c && c <= 'Z' {
			c += 'a' - 'A'
		}
		b = append(b, c)
	}
	return b
}

// contentLength is the length of the content in bytes, from the framing or the field
// content-length; -1 where neither has it. It refuses, with "malformed", a field
// that differs from the framing. Where the framing has no length, [Content] compares it
// at the end.
func (h Head) contentLength() (int64, error) {
	field := h.Fields["Content-Length"]
	if len(field) == 0 {
		return h.Length, nil
	}
	n, err := strconv.ParseInt(field[0], 10, 62)
	if err != nil || len(field) > 1 || strconv.FormatInt(n, 10) != field[0] || n < 0 || h.Length != Indeterminate && h.Length != n {
		return 0, wire.Refuse(wire.Malformed, "binary http: content length", field, h.Length)
	}
	return n, nil
}

// hopByHop are the fields of one connection; they do not enter a message (RFC
// 9292, section 3.6). The host is in the control data.
var hopByHop = map[string]bool{
	"Connection": true, "Keep-Alive": true, "Proxy-Connection": true, "Te": true,
	"Transfer-Encoding": true, "Upgrade": true, "Host": true,
}

// parser takes a message apart; after its first error it returns zero values.
type parser struct {
	rest  []byte
	known bool // known-length framing: each length precedes its content
	more  bool // rest is the beginning of a message, of which nothing is left out
	short bool // the error is that rest ends too soon
	err   error
}

// refuseTruncated is fail where the message ends too soon.
func (p *parser) refuseTruncated(rule string, got, want any) {
	p.short = p.short || p.more && p.err == nil
	p.refuse(rule, got, want)
}

func (p *parser) refuse(rule string, got, want any) {
	if p.err == nil {
		p.err = wire.Refuse(wire.Malformed, "binary http: "+rule, got, want)
		p.rest = nil
	}
}

func (p *parser) integer() uint64 {
	if len(p.rest) == 0 || len(p.rest) < 1<<(p.rest[0]>>6) {
		p.refuseTruncated("bytes of an integer", len(p.rest), "all its bytes")
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
		p.refuseTruncated("length", n, "within the message")
		return nil
	}
	b := p.rest[:n]
	p.rest = p.rest[n:]
	return b
}

// visibleText takes a string of visible ASCII.
func (p *parser) visibleText(what string) string {
	s := string(p.bytes())
	if !isVisible(s) {
		p.refuse(what, s, "visible ASCII")
	}
	return s
}

// Part says which part of a message is available.
type Part int

// The parts of a message.
const (
	Whole     Part = iota
	Beginning      // nothing of the message is left out before its end
)

// ErrShort is the error of a [Beginning] that ends within the head.
var ErrShort = errors.New("binary http: the head goes on")

// Parse reads the head of a message, and returns what follows it.
type Parse func(b []byte, part Part) (h Head, rest []byte, err error)

// ParseRequest reads the head of a request and returns what follows it.
func ParseRequest(b []byte, part Part) (Head, []byte, error) {
	p := &parser{rest: b, more: part == Beginning}
	h := p.request()
	return p.result(h)
}

func (p *parser) result(h Head) (Head, []byte, error) {
	if p.short {
		return Head{}, nil, ErrShort
	}
	return h, p.rest, p.err
}

func (p *parser) request() Head {
	framing := p.integer()
	if framing != knownRequest && framing != indeterminateRequest {
		p.refuse("framing indicator", framing, "a request's")
	}
	h := Head{Method: p.visibleText("method"), Scheme: p.visibleText("scheme"), Authority: p.visibleText("authority"), Path: p.visibleText("path")}
	if p.err == nil && !isToken(h.Method) {
		p.refuse("method", h.Method, "a token")
	}
	p.known = framing == knownRequest
	p.readHead(&h)
	return h
}

// ParseResponse is [ParseRequest] for a response. Informational responses before it are
// checked and left out.
func ParseResponse(b []byte, part Part) (Head, []byte, error) {
	p := &parser{rest: b, more: part == Beginning}
	h := p.response()
	return p.result(h)
}

func (p *parser) response() Head {
	framing := p.integer()
	if framing != knownResponse && framing != indeterminateResponse {
		p.refuse("framing indicator", framing, "a response's")
	}
	p.known = framing == knownResponse
	h := Head{Status: int(p.integer())}
	for p.err == nil && 100 <= h.Status && h.Status < 200 {
		p.section()
		h.Status = int(p.integer())
	}
	if p.err == nil && (h.Status < 200 || h.Status > 599) {
		p.refuse("status", h.Status, "200 to 599")
	}
	p.readHead(&h)
	return h
}

// readHead takes the field section and, if it is known, the length of the content.
// A message may end where nothing but zeros would follow.
func (p *parser) readHead(h *Head) {
	h.Fields, h.Length = p.section(), Indeterminate
	if p.known {
		h.Length = 0
		if len(p.rest) > 0 || p.more {
			h.Length = int64(p.integer())
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
		if p.err == nil && (key == "" || hopByHop[key] && key != "Host" || !isFieldValue(value)) {
			p.refuse("field", string(name), "a lower-case name that is not a connection's, a value without control characters")
		}
		fields[key] = append(fields[key], value)
	}
	if !p.known && p.err == nil {
		p.refuseTruncated("field section", "no end", "a terminator")
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

func isToken(s string) bool {
	for i := range len(s) {
		if !tokenChars[s[i]] {
			return false
		}
	}
	return s != ""
}

// isVisible reports whether s is ASCII without spaces and control characters.
func isVisible(s string) bool {
	return !strings.ContainsFunc(s, func(c rune) bool { return c <= ' ' || c >= 0x7f })
}

// isFieldValue reports whether s can be the value of a field: no control
// characters but tabs, no spaces around it (RFC 9110, section 5.5).
func isFieldValue(s string) bool {
	for i := range len(s) {
		if c := s[i]; c < ' ' && c != '\t' || c == 0x7f {
			return false
		}
	}
	return s == "" || s[0] > ' ' && s[len(s)-1] > ' '
}
