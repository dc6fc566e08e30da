package api

import (
	"encoding/json"
	"errors"
	"io"
	"mime"
	"net/http"
	"strings"
	"unicode"

	"github.com/cohort-tee/cohort/internal/wire"
)

// TypeProblem is the content type of a [Problem].
const TypeProblem = "application/problem+json"

// maxProblem bounds a problem in bytes; ours are below 4 KiB.
const maxProblem = 16 << 10

// statuses is the HTTP status of every reason that an authority answers. A
// reason outside the table is never sent, and is read as "internal".
var statuses = map[wire.Reason]int{
	wire.Malformed:  http.StatusBadRequest,
	wire.BadRequest: http.StatusBadRequest,
	wire.BadPolicy:  http.StatusBadRequest,
	wire.BadCSR:     http.StatusBadRequest,
	wire.WrongName:  http.StatusBadRequest,

	wire.UnknownRoot:   http.StatusForbidden,
	wire.BadChain:      http.StatusForbidden,
	wire.Revoked:       http.StatusForbidden,
	wire.WrongChip:     http.StatusForbidden,
	wire.BadSignature:  http.StatusForbidden,
	wire.BadDigest:     http.StatusForbidden,
	wire.BadNonce:      http.StatusForbidden,
	wire.Expired:       http.StatusForbidden,
	wire.CRLMissing:    http.StatusForbidden,
	wire.BadTCB:        http.StatusForbidden,
	wire.Debug:         http.StatusForbidden,
	wire.NoPlatform:    http.StatusForbidden,
	wire.NotMeasured:   http.StatusForbidden,
	wire.DeviceMissing: http.StatusForbidden,
	wire.NoQuorum:      http.StatusForbidden,
	wire.NotOwner:      http.StatusForbidden,
	wire.WrongGenesis:  http.StatusForbidden,
	wire.WrongDomain:   http.StatusForbidden,
	wire.WrongRoot:     http.StatusForbidden,
	wire.WrongKind:     http.StatusForbidden,
	wire.WrongIdentity: http.StatusForbidden,
	wire.WrongGroup:    http.StatusForbidden,
	wire.WrongRole:     http.StatusForbidden,
	wire.StaleRoster:   http.StatusForbidden,
	wire.NoExtension:   http.StatusForbidden,
	wire.CertExpired:   http.StatusForbidden,
	wire.NotAllowed:    http.StatusForbidden,
	wire.CutOff:        http.StatusForbidden,
	wire.BadShare:      http.StatusForbidden,
	wire.NoRecipient:   http.StatusConflict,
	wire.StaleShare:    http.StatusConflict,

	wire.NotFound:      http.StatusNotFound,
	wire.Behind:        http.StatusConflict,
	wire.WrongSequence: http.StatusConflict,
	wire.NonceUsed:     http.StatusConflict,
	wire.Withdrawn:     http.StatusConflict,
	wire.TooLarge:      http.StatusRequestEntityTooLarge,
	wire.TooMany:       http.StatusTooManyRequests,

	wire.NotThisDevice: http.StatusServiceUnavailable,
	wire.ClockSkew:     http.StatusServiceUnavailable,
	wire.StoreFailed:   http.StatusServiceUnavailable,
	wire.StoreForeign:  http.StatusServiceUnavailable,
	wire.RingElsewhere: http.StatusServiceUnavailable,
	wire.Unavailable:   http.StatusServiceUnavailable,
	wire.Internal:      http.StatusInternalServerError,
}

// private are the reasons whose detail speaks of the authority's own disk or
// faults. It belongs in its log and is not sent.
var private = map[wire.Reason]bool{wire.StoreFailed: true, wire.StoreForeign: true, wire.Internal: true}

// ProblemOf is the problem that tells err to the other side. An error that is
// no refusal, or one with a reason the API does not have, is "internal".
func ProblemOf(err error) Problem {
	refusal := &wire.Refusal{Reason: wire.Internal}
	errors.As(err, &refusal)
	reason := refusal.Reason
	status, known := statuses[reason]
	if !known {
		reason, status = wire.Internal, http.StatusInternalServerError
	}
	p := Problem{
		Type:   "urn:cohort:problem:" + string(reason),
		Title:  "refused: " + string(reason),
		Status: status,
		Reason: reason,
	}
	if !private[reason] {
		p.Rule, p.Got, p.Want = cut(refusal.Rule), cut(refusal.Got), cut(refusal.Want)
	}
	return p
}

// Write sends the problem as the whole answer.
func (p Problem) Write(w http.ResponseWriter) {
	w.Header().Set("Content-Type", TypeProblem)
	if p.Status == http.StatusTooManyRequests || p.Status == http.StatusServiceUnavailable {
		w.Header().Set("Retry-After", "1")
	}
	w.WriteHeader(p.Status)
	// The peer may be gone, and there is nobody else to tell.
	_ = json.NewEncoder(w).Encode(p)
}

// refusal reads a problem back into the refusal it tells of. What the peer says
// is cut and cleaned, since it ends up on terminals.
func refusal(answer *http.Response) error {
	kind, _, err := mime.ParseMediaType(answer.Header.Get("Content-Type"))
	if err != nil || kind != TypeProblem {
		return wire.Refuse(wire.Unavailable, "answer: status", answer.Status, "an answer of a Cohort authority")
	}
	body, err := io.ReadAll(io.LimitReader(answer.Body, maxProblem))
	if err != nil {
		return err
	}
	var p Problem
	if err := json.Unmarshal(body, &p); err != nil {
		return wire.Refuse(wire.Malformed, "answer: problem", err, "RFC 9457")
	}
	if _, known := statuses[p.Reason]; !known {
		p.Reason = wire.Internal
	}
	return &wire.Refusal{Reason: p.Reason, Rule: cut(p.Rule), Got: cut(p.Got), Want: cut(p.Want)}
}

// cut keeps at most 1,000 printable characters.
func cut(s string) string {
	n := 0
	return strings.Map(func(c rune) rune {
		if n++; n > 1000 || !unicode.IsPrint(c) {
			return -1
		}
		return c
	}, s)
}
