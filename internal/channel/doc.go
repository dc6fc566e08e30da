// Package channel implements the trusted channel: a client attests one unit and agrees on a
// secret with it. From then on the client exchanges requests and responses, encrypted end to
// end, with every unit of the cluster. docs/spec/channel.md specifies every byte.
//
// The package is a state machine without network, disk or clock; only [Host.Watch] uses a ticker.
// Package channelhttp connects it to net/http. On the client's side, [NewClientHandshake] makes an
// open request and [ClientHandshake.Finish] makes a [Session] of the response; [Session.NewRequest]
// makes a [ClientRequest], which seals a request and opens its response. On the unit's side, a
// [Host] keeps ring keys and sessions: [Host.Accept] opens a session, [Host.ImportSession] imports
// a session that another unit sealed, and [Host.Open] returns a [ServerRequest], with its plaintext
// and a [Responder]. [SealOHTTP] and [Host.OpenOHTTP] are for one-off requests (Oblivious HTTP).
//
// A client trusts the approved policy, and a unit after package unitauth has verified it and,
// if wanted, its fresh evidence was appraised. A unit trusts its certificate report, and other
// units as far as they have a ring key. Intermediaries (gateway, manager, bus) are untrusted.
//
// A client refuses a changed response, missing evidence or a missing receipt if it wants them,
// and an unknown policy head. A unit refuses a second secret for a known session, a client's
// KEM key that was used before, a request number that it has seen, a request bound to a
// different unit, an unsafe request that is bound to no unit, and a request that is late or
// whose end is too far ahead. Both refuse a stream that ends before its final chunk.
//
// Its files, from the ground up: method.go, transcript.go, session.go,
// clientrequest.go, kemkeys.go, window.go, table.go, sealed.go, clienthandshake.go, known.go, host.go,
// watch.go, accept.go, serverrequest.go, ohttpkeys.go, ohttprequest.go, ohttpseal.go,
// responder.go.
package channel

import "github.com/cohort-tee/cohort/internal/wire"

// ErrClosed is the error of requests in a session that was closed on this side. It matches its
// reason: errors.Is(err, wire.SessionOver).
var ErrClosed = wire.Refuse(wire.SessionOver, "session", "closed on this side", "an open session")
