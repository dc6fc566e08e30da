package wire

import (
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"math"
	"strings"
	"time"
)

// Where the trusted channel is served, and the types of its bodies.
const (
	PathSession = "/.well-known/cohort/session"
	PathRequest = "/.well-known/cohort/request"
	PathOneOff  = "/.well-known/cohort/oneoff"  // GET: key configuration; POST: a one-off request
	PathHistory = "/.well-known/cohort/history" // GET: the policy history, as the authority responds
	PathTrust   = "/.well-known/cohort/trust"   // GET: what a client needs to trust a task, as the authority responds

	TypeSession  = "application/cohort-session" // open request and its response
	TypeRequest  = "application/cohort-request"
	TypeResponse = "application/cohort-response"

	TypeKeys       = "application/ohttp-keys" // RFC 9458, section 3
	TypeSignedKeys = "application/cohort-ohttp-keys"

	// Of one-off requests: RFC 9458, section 4, and
	// draft-ietf-ohai-chunked-ohttp.
	TypeOneOff                = "message/ohttp-req"
	TypeOneOffResponse        = "message/ohttp-res"
	TypeChunkedOneOff         = "message/ohttp-chunked-req"
	TypeChunkedOneOffResponse = "message/ohttp-chunked-res"
)

// Header fields of the trusted channel. Nothing in them is authenticated but
// the content of a ticket.
const (
	FieldTicket = "Cohort-Ticket" // a sealed session, base64url without padding
	FieldCookie = "Cohort-Cookie" // proof of an address, base64url without padding
	FieldUnits  = "Cohort-Units"  // unit ids, separated by commas: the gateway's hint
	FieldSender = "Cohort-Sender" // of an open request, a pseudonym of the client's address, 16 hex digits: the gateway's hint
	FieldHead   = "Cohort-Head"   // a proved policy head, base64url without padding
	FieldTime   = "Cohort-Time"   // the unit's time beside "expired", Unix milliseconds, decimal: a hint

	FieldAffinity = "Cohort-Affinity" // the client's key by which a gateway selects a unit, 1 to 64 characters of base64url: a hint

	FieldCredential = "Cohort-Credential" // for the unit with the challenged TPM, base64url without padding
	FieldUnit       = "Cohort-Unit"       // id of that unit, which alone can open it
)

// SessionID names a session: 8 bytes of the range that the manager allocated to
// the opening unit, and 16 bytes of a digest of the transcript.
type SessionID [24]byte

// Range returns the number from the manager's range.
func (s SessionID) Range() uint64 { return binary.BigEndian.Uint64(s[:]) }

// String returns 48 lower-case hexadecimal digits.
func (s SessionID) String() string { return hex.EncodeToString(s[:]) }

// ParseSessionID reads 48 lower-case hexadecimal digits. Its error has the
// reason [Malformed].
func ParseSessionID(s string) (SessionID, error) {
	b, err := hex.DecodeString(s)
	if err != nil || len(b) != len(SessionID{}) || strings.ToLower(s) != s {
		return SessionID{}, Refuse(Malformed, "session id", s, "48 lower-case hexadecimal digits")
	}
	return SessionID(b), nil
}

// Flags are options of a request.
type Flags byte

// The flags: at most one is set, all other bits are zero.
const (
	FlagReceipt Flags = 1 << iota // the response ends in a receipt
	FlagClose                     // ends the session; the request has no content
)

// Header is the outer header of a request, its only unencrypted part. Units authenticate it; a
// gateway routes by it unverified.
type Header struct {
	Session  SessionID
	Number   uint64    // from 1, below 2^63, never twice in a session
	Target   UnitID    // the unit it is bound to; zero: none
	NotAfter time.Time // in milliseconds; no unit begins to execute it later
	Flags    Flags
}

// HeaderSize is the size of an encoded [Header] in bytes.
const HeaderSize = 1 + 24 + 8 + 16 + 8 + 1

const headerVersion = 1

// Encode returns version, session, number, target, not after in Unix milliseconds,
// and flags.
func (h Header) Encode() [HeaderSize]byte {
	var b [HeaderSize]byte
	b[0] = headerVersion
	copy(b[1:], h.Session[:])
	binary.BigEndian.PutUint64(b[25:], h.Number)
	copy(b[33:], h.Target[:])
	binary.BigEndian.PutUint64(b[49:], uint64(h.NotAfter.UnixMilli()))
	b[57] = byte(h.Flags)
	return b
}

// ParseHeader is the inverse of Encode, from the first bytes of b. Its error
// has the reason [Malformed].
func ParseHeader(b []byte) (Header, error) {
	if len(b) < HeaderSize || b[0] != headerVersion {
		return Header{}, Refuse(Malformed, "request header", fmt.Sprintf("%d bytes that begin with %.1x", len(b), b), "58 bytes of version 1")
	}
	number, notAfter := binary.BigEndian.Uint64(b[25:]), binary.BigEndian.Uint64(b[49:])
	if number == 0 || number > math.MaxInt64 {
		return Header{}, Refuse(Malformed, "request header: number", number, "1 to 2^63-1")
	}
	if notAfter > math.MaxInt64 {
		return Header{}, Refuse(Malformed, "request header: not after in milliseconds", notAfter, "below 2^63")
	}
	flags := Flags(b[57])
	if flags&^(FlagReceipt|FlagClose) != 0 || flags == FlagReceipt|FlagClose {
		return Header{}, Refuse(Malformed, "request header: flags", flags, "at most one of the known flags")
	}
	return Header{
		Session: SessionID(b[1:25]), Number: number, Target: UnitID(b[33:49]),
		NotAfter: time.UnixMilli(int64(notAfter)), Flags: flags,
	}, nil
}
