// Package channel is the trusted channel: a client attests one unit, agrees on one secret
// with it, and from then on exchanges requests and responses, encrypted end to end, with
// every unit of the cluster. docs/spec/channel.md has every byte.
//
// It is a state machine without network, disk or clock, but for [Host.Watch], which reads
// the clock. Package channelhttp connects it to net/http. On the client's side [NewClientHandshake]
// makes an open request and [ClientHandshake.Finish] makes a [Session] of the response;
// [Session.NewRequest] seals a request and opens its response. On the unit's side a [Host]
// keeps ring keys and sessions: [Host.Accept] opens a session, [Host.ImportSession] takes over one
// that another unit sealed, and [Host.Open] returns a [ServerRequest], with its plaintext
// and a [Responder]. One-off requests (Oblivious HTTP) have [SealOHTTP] and
// [Host.OpenOHTTP].
//
// A client trusts policy that its owners approved, and a unit as far as package unitauth
// and, where wanted, its fresh evidence go. A unit trusts its certificate report, and other
// units as far as they have a ring key. The carriers of the bytes (gateway, manager, bus)
// are untrusted.
//
// It refuses a response that any byte of was changed, wanted evidence or a wanted receipt
// that is missing, an unknown policy head, a second secret for a known session, a client's
// key that was used before, a request number that a unit has seen, a request bound to
// another unit, one that changes something and is bound to none, one that is late or ends
// too far ahead, and a stream that ends before its final chunk.
//
// Its files, from the ground up: method.go, transcript.go, session.go,
// clientrequest.go, kemkeys.go, window.go, table.go, sealed.go, open.go, known.go, host.go,
// watch.go, accept.go, serverrequest.go, ohttpkeys.go, ohttprequest.go, ohttpseal.go,
// responder.go.
package channel

import "github.com/cohort-tee/cohort/internal/wire"

// ErrClosed is the error of requests in a session that was closed on this side. It is also
// its reason: errors.Is(err, wire.SessionOver).
var ErrClosed = wire.Refuse(wire.SessionOver, "session", "closed on this side", "an open session")
