package channelhttp

import (
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/cohort-tee/cohort/internal/wire"
)

// hint are unauthenticated claims of the carriers of a response, and never an argument of
// decide. A hint selects how a call continues that may continue.
type hint struct {
	Reason wire.Reason   // empty: none
	Units  []wire.UnitID // that may serve; nil: no claim
	Time   time.Time     // of the unit, with "expired"; zero: no claim
}

// maxUnits bounds the units of a hint.
const maxUnits = 1024

// hintOf reads the hint in an outer response.
func hintOf(response *http.Response) hint {
	var h hint
	if list := response.Header.Get(wire.FieldUnits); list != "" {
		h.Units = unitsOf(list)
	}
	switch response.StatusCode {
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
		h.Time, _ = timeHint(response)
	default:
		h.Reason = wire.Unavailable
	}
	return h
}

// timeHint returns the time in an outer response; ok is false if there is none.
func timeHint(response *http.Response) (at time.Time, ok bool) {
	ms, err := strconv.ParseInt(response.Header.Get(wire.FieldTime), 10, 64)
	if err != nil || ms < 0 {
		return time.Time{}, false
	}
	return time.UnixMilli(ms), true
}

// unitsOf reads the ids in a list, and leaves out what is not an id.
func unitsOf(list string) (units []wire.UnitID) {
	for s := range strings.SplitSeq(list, ",") {
		var id wire.UnitID
		if id.UnmarshalText([]byte(strings.TrimSpace(s))) == nil && len(units) < maxUnits {
			units = append(units, id)
		}
	}
	return units
}

// retryBudget bounds the attempts of a call, by their hint or fault.
type retryBudget struct{ misdirected, rekey, cut, ticket, notExecuted, expired, others int }

// maxOthers is how often a call looks for a unit that responds, with pauses that
// double: 5 seconds in all, within which a gateway starts again.
const maxOthers = 8

// maxProbes is how many calls of a transport probe at a time.
const maxProbes = 8

// newRetryBudget returns the budget of one call.
func newRetryBudget() retryBudget {
	return retryBudget{misdirected: 3, rekey: 1, cut: 2, ticket: 1, notExecuted: 2, expired: 2, others: maxOthers}
}

// allow reports whether one more attempt is allowed, and counts it.
func (t *retryBudget) allow(reason wire.Reason) bool {
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
