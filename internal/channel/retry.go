package channel

import (
	"net/http"
	"strings"
	"time"

	"github.com/cohort-tee/cohort/internal/wire"
)

// Attempt is what a client knows about an attempt that brought no answer: by
// itself, or authenticated by a unit. What a [Hint] says has no place here.
type Attempt struct {
	Safe        bool // its method is safe, RFC 9110, section 9.2.1
	Marked      bool // the caller gave it an Idempotency-Key that is not empty
	Left        bool // a part of it may have left this machine
	NotExecuted bool // the unit it is bound to says so, authenticated
	Whole       bool // its content can be sent again
}

// Verdict is what may follow an attempt.
type Verdict int

// The verdicts.
const (
	OutcomeUnknown Verdict = iota // it may have been executed, and may not be repeated
	Repeat                        // another attempt may follow
	GiveUp                        // it could be repeated, had its content not been read
)

// Decide says what may follow an attempt that brought no answer. An attempt that
// is neither safe nor marked is repeated only when it surely was not executed.
// That its time is over does not say so, and is not asked.
func Decide(a Attempt) Verdict {
	switch {
	case a.Left && !a.NotExecuted && !a.Safe && !a.Marked:
		return OutcomeUnknown
	case !a.Whole:
		return GiveUp
	}
	return Repeat
}

// safeMethods are those that change nothing.
var safeMethods = map[string]bool{
	"": true, http.MethodGet: true, http.MethodHead: true, http.MethodOptions: true, http.MethodTrace: true,
}

// marked reports whether the caller says of a request, by an Idempotency-Key that is not
// empty, that it may be executed more than once.
func marked(h http.Header) bool { return h.Get("Idempotency-Key") != "" }

// Hint is what whoever carries the bytes says: unauthenticated, and never an
// argument of what decides. It selects how a call goes on that may go on.
type Hint struct {
	Reason wire.Reason   // empty: none
	Units  []wire.UnitID // that are said to be there; nil: nothing said
	Time   time.Time     // said to be the unit's, beside "expired"; zero: nothing said
}

// maxUnits bounds the units of a hint.
const maxUnits = 1024

// hintOf reads the hint in an outer answer.
func hintOf(answer *http.Response) Hint {
	var h Hint
	if list := answer.Header.Get(wire.FieldUnits); list != "" {
		h.Units = unitsOf(list)
	}
	switch answer.StatusCode {
	case http.StatusMisdirectedRequest:
		h.Reason = wire.Misdirected
	case http.StatusGone:
		h.Reason = wire.Rekey
	case http.StatusPreconditionRequired:
		h.Reason = wire.TicketWanted
	case http.StatusConflict:
		h.Reason = wire.Replayed
	case http.StatusPreconditionFailed:
		h.Reason = wire.Expired
		h.Time, _ = timeHint(answer)
	default:
		h.Reason = wire.Unavailable
	}
	return h
}

// unitsOf reads the ids in a list; what is none is left out.
func unitsOf(list string) (units []wire.UnitID) {
	for s := range strings.SplitSeq(list, ",") {
		var id wire.UnitID
		if id.UnmarshalText([]byte(strings.TrimSpace(s))) == nil && len(units) < maxUnits {
			units = append(units, id)
		}
	}
	return units
}

// tries bounds what a call does again, by the hint or fault that made it.
type tries struct{ misdirected, rekey, cut, ticket, notExecuted, expired, others int }

// maxOthers is how often a call looks for somebody who answers, with pauses that
// double: 5 seconds in all, within which a gateway starts again.
const maxOthers = 8

// maxTurns is how many calls of a transport do so at a time.
const maxTurns = 8

// newTries are what one call may do again.
func newTries() tries {
	return tries{misdirected: 3, rekey: 1, cut: 2, ticket: 1, notExecuted: 2, expired: 2, others: maxOthers}
}

// spend reports whether one more is allowed.
func (t *tries) spend(reason wire.Reason) bool {
	left := &t.others
	switch reason {
	case wire.Misdirected:
		left = &t.misdirected
	case wire.Rekey:
		left = &t.rekey
	case wire.CutOff:
		left = &t.cut
	case wire.TicketWanted:
		left = &t.ticket
	case wire.NotExecuted:
		left = &t.notExecuted
	case wire.Expired:
		left = &t.expired
	}
	*left--
	return *left >= 0
}
