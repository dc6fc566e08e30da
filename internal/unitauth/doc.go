// Package unitauth authenticates units to clients: which units a client accepts ([Pin]), the
// trust to verify them ([Trust]), and what units sign: certificate chains beside the responses
// that open a session, receipts ([VerifyReceipt]), and keys for one-off requests
// ([VerifyOHTTPKeys]). docs/spec/channel.md has the bytes.
//
// It trusts policy that owners approved, and the authority root that policy names. It
// refuses a unit that [identity.Check] refuses, one that policy cuts off, a policy head that
// is not known, a time more than 5 minutes from the client's, and any signature but the
// one with the lower s.
//
// Its files, from the ground up: pin.go, clock.go, signature.go, trust.go, introduction.go,
// receipt.go, keys.go.
package unitauth
