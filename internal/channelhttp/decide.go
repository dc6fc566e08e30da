package channelhttp

// attempt is what a client knows about an attempt that brought no response: by
// itself, or authenticated by a unit. What an untrusted carrier says has no place here.
type attempt struct {
	Safe        bool // its method is safe, RFC 9110, section 9.2.1
	Marked      bool // the caller gave it an Idempotency-Key that is not empty
	Left        bool // a part of it may have left this machine
	NotExecuted bool // the unit it is bound to says so, authenticated
	Whole       bool // its content can be sent again
}

// verdict is what may follow an attempt.
type verdict int

// The verdicts.
const (
	outcomeUnknown verdict = iota // it may have been executed, and may not be repeated
	repeatAttempt                 // another attempt may follow
	giveUp                        // it could be repeated, had its content not been read
)

// decide says what may follow an attempt that brought no response. An attempt that
// is neither safe nor marked is repeated only when it surely was not executed.
// That its time is over does not say so, and is not asked.
func decide(a attempt) verdict {
	switch {
	case a.Left && !a.NotExecuted && !a.Safe && !a.Marked:
		return outcomeUnknown
	case !a.Whole:
		return giveUp
	}
	return repeatAttempt
}
