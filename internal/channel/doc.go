// Package channel is the trusted channel: a client attests one unit, agrees on
// one secret with it, and from then on speaks, end to end encrypted, with every
// unit of the cluster. docs/spec/channel.md has every byte.
//
// It is a state machine without network, disk or clock, but for [Host.Watch], which
// looks at it, and two faces for net/http. On the client's side [NewOpening] makes an open request,
// [Opening.Finish] judges the answer and gives a [Session]; [Transport] is the
// [http.RoundTripper] around them. On the unit's side a [Host] holds ring keys
// and sessions: [Host.Accept] opens a session, [Host.Join] takes over one that
// another unit sealed; [Server] is the [http.Handler] around it.
//
// A client trusts policy that its owners approved, and a unit as far as
// [identity.Check] and, where wanted, its fresh evidence go. A unit trusts its
// certificate report, and other units as far as they hold a ring key. Whoever
// carries the bytes (gateway, manager, bus) is trusted with nothing; what they
// say is a [Hint], which selects how something is tried again and never whether
// it may be.
//
// Refused are: an answer that any byte of was changed, wanted evidence or a
// wanted receipt that is missing, an unknown policy head, a second secret for a
// known session, a client's key that was used before, a request number that a unit
// has seen, a request bound to another unit, one that changes something and is
// bound to none, one that is late or ends too far ahead, and a stream that ends
// before its final chunk.
package channel

import "github.com/cohort-tee/cohort/internal/wire"

// Errors of calls. Each is also its reason: errors.Is(err, wire.Rekey).
var (
	// ErrOutcomeUnknown says that a request which may not be repeated was cut
	// off: it was executed once or not at all.
	ErrOutcomeUnknown = wire.Refuse(wire.OutcomeUnknown, "call", "cut off after it was sent", "an answer")
	// ErrNotExecuted says, authenticated, that the unit has not executed the
	// request and will not.
	ErrNotExecuted = wire.Refuse(wire.NotExecuted, "call", "refused by the unit", "an answer")
	// ErrMisdirected says that requests came to other units than they were
	// bound to, however often they were tried.
	ErrMisdirected = wire.Refuse(wire.Misdirected, "call", "another unit", "the unit it is bound to")
	// ErrRekey says that the cluster opens no session of this client's.
	ErrRekey = wire.Refuse(wire.Rekey, "call", "a session that no unit opens", "one that the cluster holds")
	// ErrUnreachable says that nobody takes the request.
	ErrUnreachable = wire.Refuse(wire.Unavailable, "call", "nobody answers", "a unit that does")
	// ErrTruncated says that a stream ended before its final chunk.
	ErrTruncated = wire.Refuse(wire.Truncated, "stream", "an early end", "a final chunk")
	// ErrClosed says that a session was closed on this side.
	ErrClosed = wire.Refuse(wire.SessionOver, "session", "closed", "an open one")
)
