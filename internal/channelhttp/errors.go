package channelhttp

import "github.com/cohort-tee/cohort/internal/wire"

// Errors of calls. Each is also its reason: errors.Is(err, wire.Rekey).
var (
	// ErrOutcomeUnknown says that a request which may not be repeated was cut
	// off: it was executed once or not at all.
	ErrOutcomeUnknown = wire.Refuse(wire.OutcomeUnknown, "call", "cut off after it was sent", "a response")
	// ErrNotExecuted says, authenticated, that the unit has not executed the
	// request and will not.
	ErrNotExecuted = wire.Refuse(wire.NotExecuted, "call", "refused by the unit", "a response")
	// errMisdirected says that every attempt reached another unit than it was bound to.
	errMisdirected = wire.Refuse(wire.Misdirected, "call", "sent to a unit that it is not bound to", "the unit it is bound to")
	// errRekey says that the cluster opens no session of this client.
	errRekey = wire.Refuse(wire.Rekey, "call", "a session that no unit opens", "a session that the cluster has")
	// ErrUnreachable says that no unit takes the request.
	ErrUnreachable = wire.Refuse(wire.Unavailable, "call", "no unit responds", "a response")
)
