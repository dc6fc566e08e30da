package wire

import "time"

// Sizes in bytes of input. Each is checked before memory is allocated for it.
const (
	MaxPolicy         = 256 << 10 // one policy file
	MaxStatement      = 4 << 10   // a cancel, approve or withdraw statement
	MaxSignature      = 8 << 10   // one armored SSH signature
	MaxEvidence       = 256 << 10 // evidence with event logs
	MaxRequest        = 1 << 20   // body of any API request
	MaxResponse       = 16 << 20  // body of any API response: large enough for a whole policy history
	MaxHistory        = 10_000    // steps of one history
	MaxStatements     = 8_000     // of them, statements of parties
	MaxHead           = 2 << 10   // one proved policy head
	MaxTrustStatement = 2 << 10   // one trust statement
	MaxShare          = 64 << 10  // one share of a backup
	MaxSealed         = 64 << 10  // secret that a TEE seals
	MaxPartyKeys      = 4         // SSH keys of one party in a unit's or client's configuration, 32 bytes each: the old, the new, and a spare of each

	MaxSealedBlob = 2 * MaxSealed // the sealed secret with its reference values
)

// Times of the enrolment protocol.
const (
	NonceLifetime = 2 * time.Minute  // time to respond to a challenge
	WindowLead    = 60 * time.Second // a leaf is valid this long before its window begins
	MaxClockSkew  = 5 * time.Minute  // a unit refuses a certificate window further off than this
	TrustLifetime = 10 * time.Minute // a client accepts no older trust statement: MaxClockSkew, and time in caches
	MaxClockJump  = 2 * time.Minute  // wall clock against the time that has passed since the start
	MinLifetime   = 3 * time.Second  // shortest certificate lifetime in a policy
	MaxLifetime   = 24 * time.Hour   // longest certificate lifetime in a policy
	RootLifetime  = 10 * 365 * 24 * time.Hour
)
