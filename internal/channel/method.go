package channel

import "net/textproto"

// IsSafe reports whether a method is safe (RFC 9110, section 9.2.1). The empty method means GET.
func IsSafe(method string) bool {
	switch method {
	case "", "GET", "HEAD", "OPTIONS", "TRACE":
		return true
	}
	return false
}

// HasIdempotencyKey reports whether a request has an Idempotency-Key that is not empty: with it
// the caller allows that units execute the request more than once.
func HasIdempotencyKey(fields map[string][]string) bool {
	return textproto.MIMEHeader(fields).Get("Idempotency-Key") != ""
}
