package wire

import (
	"errors"
	"fmt"
	"strings"
)

// Reason is one stable word for the cause of a refusal. The list is closed: it is the `reason`
// of API problems and the argument of `cohort explain`. A Reason is an error, so that
// errors.Is(err, ReasonX) works on any error that wraps a [Refusal].
type Reason string

// Error makes a Reason usable as a target of errors.Is.
func (r Reason) Error() string { return string(r) }

// Reasons of appraisal.
const (
	Malformed     Reason = "malformed"       // bytes that are not the one encoding
	UnknownRoot   Reason = "unknown-root"    // no accepted root vouches
	BadChain      Reason = "chain"           // a certificate chain that does not verify
	Revoked       Reason = "revoked"         // revoked by its issuer
	WrongChip     Reason = "wrong-chip"      // another chip's certificate
	BadSignature  Reason = "signature"       // a signature that does not verify
	BadDigest     Reason = "digest"          // bytes that do not hash to what was signed
	BadNonce      Reason = "nonce"           // evidence made for another use
	Expired       Reason = "expired"         // outside its time, at either end
	CRLMissing    Reason = "crl-missing"     // no revocation list though one is required
	BadTCB        Reason = "tcb-status"      // platform version or status not allowed
	Debug         Reason = "debug"           // a TEE that its host can read
	NoPlatform    Reason = "platform"        // platform that policy does not name
	NotMeasured   Reason = "measurement"     // code that no reference value names
	DeviceMissing Reason = "device-missing"  // a device that policy demands beside a TEE is not there
	NotThisDevice Reason = "not-this-device" // this machine has no such TEE, or it does not respond
)

// Reasons of policy.
const (
	BadPolicy     Reason = "policy"         // a policy file that breaks a rule
	NoQuorum      Reason = "quorum"         // too few owners signed
	NotOwner      Reason = "not-owner"      // a signature by a key of no owner or party
	WrongSequence Reason = "sequence"       // not the next policy
	WrongGenesis  Reason = "genesis"        // another history than the pinned one
	WrongDomain   Reason = "trust-domain"   // another trust domain
	WrongRoot     Reason = "authority-root" // a root that the signed policy does not name
	WrongDraft    Reason = "draft"          // a root that was made for another first policy
	RootUnbound   Reason = "root-unbound"   // a root of the first format, made for no first policy
	Behind        Reason = "behind"         // newer policy has been seen
	NotFound      Reason = "not-found"      // no such task, proposal, release
	ProposalOver  Reason = "proposal-over"  // a proposal that was cancelled or has run out
	Withdrawn     Reason = "withdrawn"      // a party that withdrew from a group, or a roster that another succeeded
	NoParty       Reason = "party"          // a unit of no party of the group, or of another than it is pinned to
)

// Reasons of identity and issuance.
const (
	BadRequest     Reason = "request"             // a request that breaks the API's form
	TooLarge       Reason = "too-large"           // over a size limit
	TooMany        Reason = "rate"                // over a rate limit, or too many at once
	NonceUsed      Reason = "nonce-used"          // a challenge that was used before, or is not ours
	BadCSR         Reason = "csr"                 // a CSR with more than a key
	WrongKind      Reason = "kind"                // certificate of another kind
	WrongIdentity  Reason = "identity"            // certificate of another identity
	WrongName      Reason = "name"                // a name that policy does not contain
	WrongGroup     Reason = "group"               // of another group
	WrongRole      Reason = "role"                // of another role of the group, or none
	StaleRoster    Reason = "roster"              // a group's identity that is no longer the one in force
	NoExtension    Reason = "extension"           // without, or with a broken, extension of ours
	ClockSkew      Reason = "clock"               // clocks too far apart, or one that jumped
	StoreFailed    Reason = "store"               // nothing was recorded, so nothing was issued
	StoreForeign   Reason = "store-foreign"       // an empty, damaged or foreign store
	RingElsewhere  Reason = "ring-elsewhere"      // another authority of the store issues ring keys
	GroupElsewhere Reason = "group-authority"     // the group's parties do not name this authority, or it cannot open their secret
	Unavailable    Reason = "unavailable"         // not ready, or shutting down
	CertExpired    Reason = "certificate-expired" // a unit past its certificate's end
	NotEnrolled    Reason = "not-enrolled"        // a unit without a certificate yet
	NotAllowed     Reason = "not-allowed"         // a call that policy does not allow
	OutcomeUnknown Reason = "outcome-unknown"     // cut off: may have been executed
	CutOff         Reason = "cut-off"             // a unit that owners cut off
	Retired        Reason = "retired"             // a release that gets no new certificates
	NoPlace        Reason = "units"               // the task has no place for another unit, or the unit has left
	NoRecipient    Reason = "recipient"           // an owner to whom no share can be sealed
	BadShare       Reason = "share"               // a share that is forged, repeated or of another backup
	StaleShare     Reason = "share-stale"         // a share for owners of an older policy
	Internal       Reason = "internal"            // a fault of ours
)

// Reasons of the trusted channel.
const (
	Misdirected     Reason = "misdirected"      // bound to another unit than it came to
	Rekey           Reason = "rekey"            // the unit cannot open the session: open another
	TicketWanted    Reason = "ticket-wanted"    // the unit does not have the session: send the ticket
	CookieWanted    Reason = "cookie-wanted"    // open again with the cookie that came along
	NotExecuted     Reason = "not-executed"     // authenticated: the unit has not executed it and will not
	Replayed        Reason = "replayed"         // a request number that was seen before, or is too old to check
	Overload        Reason = "overload"         // no room for another session or request
	UnknownRing     Reason = "ring"             // sealed under a ring key that the unit does not have
	SessionOver     Reason = "session-over"     // a session past its expiry, or closed
	Truncated       Reason = "truncated"        // a stream that ends before its final chunk
	EvidenceMissing Reason = "evidence-missing" // fresh evidence, or a receipt, was wanted and is not there
	OneOffKey       Reason = "ohttp-key"        // a one-off request under a key that the unit does not have
)

// Refusal is the error of every check: a reason of the closed list, the rule
// that was broken, the value seen and the value wanted. It contains no secret.
type Refusal struct {
	Reason Reason
	Rule   string
	Got    string
	Want   string
}

// Refuse makes a [Refusal]; got and want are printed with %v.
func Refuse(reason Reason, rule string, got, want any) error {
	return &Refusal{Reason: reason, Rule: rule, Got: fmt.Sprint(got), Want: fmt.Sprint(want)}
}

// Error is "REASON: RULE: got GOT, want WANT", without what is empty.
func (r *Refusal) Error() string {
	var b strings.Builder
	b.WriteString(string(r.Reason))
	b.WriteString(": ")
	b.WriteString(r.Rule)
	if r.Got != "" {
		fmt.Fprintf(&b, ": got %q", r.Got)
	}
	if r.Want != "" {
		fmt.Fprintf(&b, ", want %q", r.Want)
	}
	return b.String()
}

// Is makes errors.Is(err, reason) true for the refusal's own reason.
func (r *Refusal) Is(target error) bool {
	reason, ok := target.(Reason)
	return ok && reason == r.Reason
}

// ReasonOf is the reason of the first Refusal that err wraps, and [Internal]
// for any other error.
func ReasonOf(err error) Reason {
	var r *Refusal
	if errors.As(err, &r) {
		return r.Reason
	}
	return Internal
}
