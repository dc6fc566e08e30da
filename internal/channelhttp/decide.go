package channelhttp

// attempt contains the facts about an attempt that ended without a response. They come from the
// client itself or are authenticated by a unit, never from untrusted intermediaries.
type attempt struct {
	Safe        bool // the method is safe (RFC 9110, section 9.2.1)
	Marked      bool // the request has an Idempotency-Key that is not empty
	Left        bool // a part of the request may have left this machine
	NotExecuted bool // the unit that the request is bound to reported so, authenticated
	Whole       bool // the content can be sent again
}

// verdict is the decision after an attempt.
type verdict int

// The verdicts.
const (
	outcomeUnknown verdict = iota // the request may have been executed, and must not be repeated
	repeatAttempt                 // the call may make a further attempt
	giveUp                        // repetition would be allowed, but the content cannot be read again
)

// decide returns the verdict on an attempt that ended without a response. A request that is neither
// safe nor marked may be repeated only if it certainly was not executed. decide ignores whether the
// NotAfter has passed, because that does not prove that the unit did not execute the request.
func decide(a attempt) verdict {
	switch {
	case a.Left && !a.NotExecuted && !a.Safe && !a.Marked:
		return outcomeUnknown
	case !a.Whole:
		return giveUp
	}
	return repeatAttempt
}
