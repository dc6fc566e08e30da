package bhttp

import (
	"net/http"
	"net/url"
	"strconv"
	"strings"

	"github.com/cohort-tee/cohort/internal/wire"
)

// Request changes r into the request that h is the head of, whose content is rest and then
// chunks, and returns r. It refuses, with "malformed", a path that is not absolute, a host that
// is not the authority, and a content-length that differs from the framing.
func (h Head) Request(r *http.Request, chunks Chunks, rest []byte) (*http.Request, error) {
	u, err := url.ParseRequestURI(h.Path)
	if err != nil || h.Method == http.MethodConnect || !strings.HasPrefix(h.Path, "/") && h.Path != "*" {
		return nil, wire.Refuse(wire.Malformed, "request: path", h.Path, "an absolute path")
	}
	u.Scheme, u.Host = h.Scheme, h.Authority
	host := h.Authority
	if field := h.Fields["Host"]; len(field) > 0 {
		if len(field) > 1 || host != "" && host != field[0] {
			return nil, wire.Refuse(wire.Malformed, "request: host", field, "one, the authority where that is given")
		}
		host = field[0]
	}
	delete(h.Fields, "Host")
	length, err := h.contentLength()
	if err != nil {
		return nil, err
	}
	delete(h.Fields, "Content-Length")
	body := NewContent(chunks, h, rest)
	body.length = length
	r.Method, r.URL, r.Host, r.RequestURI, r.Pattern = h.Method, u, host, h.Path, ""
	r.Proto, r.ProtoMajor, r.ProtoMinor, r.TransferEncoding = "HTTP/1.1", 1, 1, nil
	r.Header, r.Body, r.ContentLength, r.Trailer = h.Fields, body, length, body.trailer
	if h.Length == 0 && chunks.Done() && len(rest) == 0 {
		r.Body = http.NoBody
	}
	return r, nil
}

// Response returns the response to r that h is the head of. It refuses, with
// "malformed", a content-length that differs from the framing. In the response to a HEAD,
// and with status 304, the field is the length of content that is not sent (RFC 9110,
// section 8.6).
func (h Head) Response(r *http.Request, c *Content) (*http.Response, error) {
	about := h
	bodyless := r.Method == http.MethodHead || h.Status == http.StatusNotModified
	if bodyless {
		about.Length = Indeterminate
	}
	length, err := about.contentLength()
	if err != nil {
		return nil, err
	}
	if length == Indeterminate {
		length = h.Length
	}
	if !bodyless {
		c.length = length
	}
	return &http.Response{
		Status: strconv.Itoa(h.Status) + " " + http.StatusText(h.Status), StatusCode: h.Status,
		Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
		Header: h.Fields, Body: c, ContentLength: length, Trailer: c.trailer,
		Request: r,
	}, nil
}
