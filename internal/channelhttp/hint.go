package channelhttp

import (
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/cohort-tee/cohort/internal/wire"
)

// hint contains unauthenticated claims in an outer response. It is never an argument of decide:
// decide determines whether a call continues, and a hint only how.
type hint struct {
	Reason wire.Reason   // empty: no claim
	Units  []wire.UnitID // units that may serve; nil: no claim
	Time   time.Time     // the unit's time, with "expired"; zero: no claim
}

// maxUnits is the maximum number of units in a hint.
const maxUnits = 1024

// hintOf returns the hint in an outer response.
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

// timeHint returns the time in an outer response. ok is false if the response contains none.
func timeHint(response *http.Response) (at time.Time, ok bool) {
	ms, err := strconv.ParseInt(response.Header.Get(wire.FieldTime), 10, 64)
	if err != nil || ms < 0 {
		return time.Time{}, false
	}
	return time.UnixMilli(ms), true
}

// unitsOf parses a list of unit ids. It skips malformed ids.
func unitsOf(list string) (units []wire.UnitID) {
	for s := range strings.SplitSeq(list, ",") {
		var id wire.UnitID
		if id.UnmarshalText([]byte(strings.TrimSpace(s))) == nil && len(units) < maxUnits {
			units = append(units, id)
		}
	}
	return units
}

// retryBudget contains the number of attempts that a call has left, per reason.
type retryBudget struct{ misdirected, rekey, cut, ticket, notExecuted, expired, others int }

// maxOthers is the maximum number of attempts of a call to find a unit that responds. The pauses
// between them double, to 5 seconds in all; a gateway restarts within that time.
const maxOthers = 8

// maxProbes is the maximum number of concurrent calls of a transport that probe.
const maxProbes = 8

// newRetryBudget returns the budget of a new call.
func newRetryBudget() retryBudget {
	return retryBudget{misdirected: 3, rekey: 1, cut: 2, ticket: 1, notExecuted: 2, expired: 2, others: maxOthers}
}

// allow counts one more attempt for a reason, and reports whether it is allowed.
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
