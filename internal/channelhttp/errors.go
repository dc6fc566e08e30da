package channelhttp

import "github.com/cohort-tee/cohort/internal/wire"

// Errors of calls. Each matches its reason, for example errors.Is(err, wire.Rekey).
var (
	// ErrOutcomeUnknown means that a request was cut off and may not be repeated. The request was
	// executed once or not at all.
	ErrOutcomeUnknown = wire.Refuse(wire.OutcomeUnknown, "call", "cut off after it was sent", "a response")
	// ErrNotExecuted means that the unit reported, authenticated, that it has not executed
	// the request and will not execute it.
	ErrNotExecuted = wire.Refuse(wire.NotExecuted, "call", "refused by the unit", "a response")
	// errMisdirected means that no attempt reached the unit to which it was bound.
	errMisdirected = wire.Refuse(wire.Misdirected, "call", "sent to a unit that it is not bound to", "the unit it is bound to")
	// errRekey means that the units do not recognize the client's sessions.
	errRekey = wire.Refuse(wire.Rekey, "call", "a session that no unit opens", "a session that the cluster has")
	// ErrUnreachable means that no unit responds to the request.
	ErrUnreachable = wire.Refuse(wire.Unavailable, "call", "no unit responds", "a response")
)
