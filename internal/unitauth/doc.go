// Package unitauth authenticates units to clients. A [Pin] selects the units that a client
// accepts, and a [Trust] verifies them. The package verifies the unit's certificate chain in
// the response that opens a session ([Trust.Signer]), receipts ([VerifyReceipt]), and keys for
// one-off requests ([VerifyOHTTPKeys]). docs/spec/channel.md specifies the bytes.
//
// The package trusts the approved policy and the authority root that the policy names. It
// refuses a unit that [identity.Check] refuses or that the policy cuts off, an unknown policy
// head, a time that differs by more than 5 minutes from the client's, and every signature that
// does not have the lower s.
//
// Its files, from the ground up: pin.go, clock.go, signature.go, trust.go, introduction.go,
// receipt.go, keys.go.
package unitauth
