package channelhttp

// attempt are the facts that a client knows about an attempt without a response: by
// itself, or authenticated by a unit. Claims of untrusted carriers are not among them.
type attempt struct {
	Safe        bool // its method is safe, RFC 9110, section 9.2.1
	Marked      bool // the caller gave it an Idempotency-Key that is not empty
	Left        bool // a part of it may have left this machine
	NotExecuted bool // authenticated, by the unit it is bound to
	Whole       bool // its content can be sent again
}

// verdict is the decision after an attempt.
type verdict int

// The verdicts.
const (
	outcomeUnknown verdict = iota // it may have been executed, and may not be repeated
	repeatAttempt                 // another attempt may follow
	giveUp                        // it could be repeated, had its content not been read
)

// decide returns what may follow an attempt without a response. An attempt that is neither
// safe nor marked is repeated only when it certainly was not executed. A not after that
// has passed does not prove that, and is not considered.
func decide(a attempt) verdict {
	switch {
	case a.Left && !a.NotExecuted && !a.Safe && !a.Marked:
		return outcomeUnknown
	case !a.Whole:
		return giveUp
	}
	return repeatAttempt
}
