// Package channelhttp is the trusted channel over net/http: [Transport] is the
// [http.RoundTripper] of a client, [Server] the [http.Handler] of a unit, and
// [OHTTPTransport] the [http.RoundTripper] of one-off requests. Package channel seals, opens
// and decides about sessions; this package has connections, attempts and quotas.
//
// A transport opens a session when it needs one, keeps it until its expiry, and sends a
// request again as far as its function decide allows. Claims of untrusted carriers are
// hints: they select how a request is sent again, and never whether it may be.
//
// A server refuses what its quotas do not allow, and sends the reason of each refusal as a
// problem (RFC 9457), without its detail. A transport refuses a configuration that leaves
// something out, a response that package channel refuses, and a unit that policy cuts off.
//
// Its files, from the ground up: errors.go, decide.go, heads.go, writer.go, caller.go,
// hint.go, times.go, intake.go, server.go, ohttpserver.go, transport.go, introduce.go,
// negotiate.go, call.go, ohttptransport.go.
package channelhttp
