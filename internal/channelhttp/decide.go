package channelhttp

// Attempt is what a client knows about an attempt that brought no answer: by
// itself, or authenticated by a unit. What an untrusted carrier says has no place here.
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
