// Package channelhttp implements the trusted channel over net/http. [Transport] is the
// [http.RoundTripper] of a client, [Server] the [http.Handler] of a unit, and
// [OHTTPTransport] the [http.RoundTripper] of one-off requests. Package channel seals and opens
// messages and decides about sessions; this package handles connections, attempts and quotas.
//
// A transport opens a session when it needs one, keeps it until its expiry, and sends a request
// again as far as the function decide allows. Claims of untrusted intermediaries are hints: a
// hint affects how a request is sent again, but never whether it may be sent again.
//
// A server refuses requests beyond its quotas. It sends the reason of each refusal, without
// details, as a problem (RFC 9457). A transport refuses an incomplete configuration, a response
// that package channel refuses, and a unit that the policy cuts off.
//
// Its files, from the ground up: errors.go, decide.go, heads.go, writer.go, caller.go,
// hint.go, times.go, intake.go, server.go, ohttpserver.go, transport.go, introduce.go,
// negotiate.go, call.go, ohttptransport.go.
package channelhttp
