package api

import (
	"encoding/json"
	"errors"
	"io"
	"mime"
	"net/http"
	"strings"
	"time"
	"unicode"

	"github.com/cohort-tee/cohort/internal/limit"
	"github.com/cohort-tee/cohort/internal/wire"
)

// TypeProblem is the content type of a [Problem].
const TypeProblem = "application/problem+json"

// maxProblem bounds a problem in bytes; ours are below 4 KiB.
const maxProblem = 16 << 10

// unsentDetail are the reasons whose detail describes the authority's own disk or faults. The
// detail is logged and not sent.
var unsentDetail = map[wire.Reason]bool{wire.StoreFailed: true, wire.StoreForeign: true, wire.Internal: true}

// ProblemOf returns the problem for an error of the authority. An error that is not a refusal,
// or whose reason the API does not have, is "internal".
func ProblemOf(err error) Problem {
	r := refusalOf(err)
	status := statuses[r.Reason].authority
	if status == 0 {
		r, status = &wire.Refusal{Reason: wire.Internal}, http.StatusInternalServerError
	}
	if unsentDetail[r.Reason] {
		r = &wire.Refusal{Reason: r.Reason}
	}
	return NewProblem(r, status)
}

// GatewayProblem is [ProblemOf] for a gateway, on the paths of the trusted channel.
func GatewayProblem(err error) Problem {
	r := refusalOf(err)
	status := statuses[r.Reason].channel
	if status == 0 || r.Reason == wire.Internal {
		r, status = &wire.Refusal{Reason: wire.Internal}, http.StatusInternalServerError
	}
	return NewProblem(r, status)
}

// UnitProblem is [ProblemOf] for a unit, on the paths of the trusted channel. It contains the
// reason alone, because a client cannot verify more; the refusal of a quota also names the
// quota. A reason without a status of its own is 400.
func UnitProblem(err error) Problem {
	r := refusalOf(err)
	status := statuses[r.Reason].channel
	if status == 0 {
		status = http.StatusBadRequest
	}
	if _, quota := limit.QuotaOf(err); !quota {
		r = &wire.Refusal{Reason: r.Reason}
	}
	return NewProblem(r, status)
}

func refusalOf(err error) *wire.Refusal {
	r := &wire.Refusal{Reason: wire.Internal}
	errors.As(err, &r)
	return r
}

// NewProblem returns the problem for a refusal, with its texts shortened and filtered.
func NewProblem(r *wire.Refusal, status int) Problem {
	return Problem{
		Type: "urn:cohort:problem:" + string(r.Reason), Title: "refused: " + string(r.Reason), Status: status,
		Reason: r.Reason, Rule: sanitize(r.Rule), Got: sanitize(r.Got), Want: sanitize(r.Want),
	}
}

// Write sends the problem as the whole response. It waits at most a second for the rest of the
// request, which an HTTP/1.1 server reads before it responds.
func (p Problem) Write(w http.ResponseWriter) {
	_ = http.NewResponseController(w).SetReadDeadline(time.Now().Add(time.Second)) // a server that has none has its own limits
	w.Header().Set("Content-Type", TypeProblem)
	again := p.Status == http.StatusTooManyRequests || p.Status == http.StatusServiceUnavailable
	if again && w.Header().Get("Retry-After") == "" {
		w.Header().Set("Retry-After", "1")
	}
	w.WriteHeader(p.Status)
	// An error means that the peer is gone.
	_ = json.NewEncoder(w).Encode(p)
}

// readProblem parses a problem and returns its refusal. Texts of the peer are truncated and
// filtered, since terminals display them.
func readProblem(response *http.Response) error {
	kind, _, err := mime.ParseMediaType(response.Header.Get("Content-Type"))
	if err != nil || kind != TypeProblem {
		return wire.Refuse(wire.Unavailable, "response: status", response.Status, "a response of a Cohort authority")
	}
	body, err := io.ReadAll(io.LimitReader(response.Body, maxProblem))
	if err != nil {
		return err
	}
	var p Problem
	if err := json.Unmarshal(body, &p); err != nil {
		return wire.Refuse(wire.Malformed, "response: problem", err, "RFC 9457")
	}
	if statuses[p.Reason].authority == 0 {
		p.Reason = wire.Internal
	}
	return &wire.Refusal{Reason: p.Reason, Rule: sanitize(p.Rule), Got: sanitize(p.Got), Want: sanitize(p.Want)}
}

// sanitize keeps at most 1,000 printable characters.
func sanitize(s string) string {
	n := 0
	return strings.Map(func(c rune) rune {
		if n++; n > 1000 || !unicode.IsPrint(c) {
			return -1
		}
		return c
	}, s)
}
