package localproxy

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"

	"github.com/cohort-tee/cohort/internal/api"
	"github.com/cohort-tee/cohort/internal/wire"
)

// Values of the member retry of a problem.
const (
	retrySafe   = "safe"   // the request was not executed, or its method may be repeated
	retryUnsafe = "unsafe" // the request was executed once or not at all
)

// fieldRetry is a response field that the SDKs of several services obey: without it they repeat a
// request after every status of 500 or more, also one whose outcome is unknown.
const fieldRetry = "X-Should-Retry"

// problem is a response of the proxy itself (RFC 9457).
type problem struct {
	api.Problem
	Retry string      `json:"retry"`           // retrySafe or retryUnsafe
	Cause wire.Reason `json:"cause,omitempty"` // why the outcome is unknown, where that is known
	again bool        // a later attempt may succeed
}

// refusal returns the problem for a request that the proxy does not forward.
func refusal(status int, reason wire.Reason, rule string, got, want any) *problem {
	r := &wire.Refusal{Reason: reason}
	errors.As(wire.Refuse(reason, rule, got, want), &r)
	return &problem{Problem: api.NewProblem(r, status), Retry: retrySafe}
}

// problemOf returns the problem for the error of a request that was forwarded. The texts are those
// of the refusal alone: the text of the whole error contains the URL.
func problemOf(err error) *problem {
	r := &wire.Refusal{Reason: wire.Unavailable}
	if !errors.As(err, &r) {
		r.Rule, r.Got, r.Want = "request", fmt.Sprintf("an error of type %T", err), "a response"
	}
	p := &problem{Retry: retrySafe, Cause: causeOf(err, r)}
	status := http.StatusBadGateway
	switch r.Reason {
	case wire.OutcomeUnknown:
		p.Retry = retryUnsafe
	case wire.NotExecuted, wire.Unavailable, wire.Overload, wire.Misdirected, wire.Rekey, wire.Truncated:
		p.again = true
	case wire.NotAllowed:
		status = http.StatusForbidden
	case wire.TooLarge:
		status = http.StatusRequestEntityTooLarge
	}
	p.Problem = api.NewProblem(r, status)
	return p
}

// causeOf returns the reason of the first refusal in err that differs from that of r.
func causeOf(err error, r *wire.Refusal) wire.Reason {
	switch e := err.(type) {
	case *wire.Refusal:
		if e.Reason != r.Reason {
			return e.Reason
		}
	case interface{ Unwrap() error }:
		return causeOf(e.Unwrap(), r)
	case interface{ Unwrap() []error }:
		for _, one := range e.Unwrap() {
			if cause := causeOf(one, r); cause != "" {
				return cause
			}
		}
	}
	return ""
}

// writeTo sends the problem as the whole response.
func (p *problem) writeTo(w http.ResponseWriter) {
	h := w.Header()
	h.Set("Content-Type", api.TypeProblem)
	h.Set("Cache-Control", "no-store")
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set(fieldRetry, fmt.Sprint(p.again))
	switch p.Status {
	case http.StatusServiceUnavailable:
		h.Set("Retry-After", "1")
	case http.StatusUnauthorized:
		h.Set("WWW-Authenticate", `Bearer realm="cohort proxy"`)
	}
	w.WriteHeader(p.Status)
	_ = json.NewEncoder(w).Encode(p) // the program may be gone
}
