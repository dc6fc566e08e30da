package channel

import "net/textproto"

// IsSafe reports whether a method changes nothing, RFC 9110, section 9.2.1. The empty one
// is GET.
func IsSafe(method string) bool {
	switch method {
	case "", "GET", "HEAD", "OPTIONS", "TRACE":
		return true
	}
	return false
}

// HasIdempotencyKey reports whether the caller of a request allows, by an Idempotency-Key that is
// not empty, that it is executed more than once.
func HasIdempotencyKey(fields map[string][]string) bool {
	return textproto.MIMEHeader(fields).Get("Idempotency-Key") != ""
}
