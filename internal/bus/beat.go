package bus

import (
	"encoding/binary"
	"math"
	"net"
	"strconv"
	"strings"

	"github.com/cohort-tee/cohort/internal/wire"
)

// Heartbeat is the state of a unit, which the unit sends every [HeartbeatInterval]. All of its
// fields are hints. The unit's certificate identifies the unit ([UnitOf]).
type Heartbeat struct {
	Address  string      // host:port of the unit's listener; empty: none
	Inherits wire.Digest // identity of the previous release, whose sessions the unit can open too; zero: none
	InFlight int         // requests in progress, 0 to 2^31-1
	Sessions int         // 0 to 2^31-1
	Ready    bool
	Relay    bool // the manager pushes sealed sessions of other units over this connection
}

// Flags of a heartbeat; all other bits are zero.
const (
	flagReady = 1 << iota
	flagRelay
)

// heartbeatFixed is the size of a heartbeat's body without the address, in bytes.
const heartbeatFixed = 1 + 4 + 4 + 32

// Append appends the body of the heartbeat's frame to b. It refuses with [wire.BadRequest]
// values that [ParseHeartbeat] would refuse.
func (h Heartbeat) Append(b []byte) ([]byte, error) {
	if !validCount(h.InFlight) || !validCount(h.Sessions) || !validAddress(h.Address) {
		return nil, wire.Refuse(wire.BadRequest, "heartbeat", h, "counts of 31 bits, host:port of at most 255 bytes")
	}
	var flags byte
	if h.Ready {
		flags |= flagReady
	}
	if h.Relay {
		flags |= flagRelay
	}
	b = append(b, flags)
	b = binary.BigEndian.AppendUint32(b, uint32(h.InFlight))
	b = binary.BigEndian.AppendUint32(b, uint32(h.Sessions))
	b = append(b, h.Inherits[:]...)
	return append(b, h.Address...), nil
}

// ParseHeartbeat is the inverse of Append. Its error has the reason [wire.Malformed].
func ParseHeartbeat(body []byte) (Heartbeat, error) {
	if len(body) < heartbeatFixed {
		return Heartbeat{}, wire.Refuse(wire.Malformed, "heartbeat: size in bytes", len(body), "at least 41")
	}
	inFlight, sessions := binary.BigEndian.Uint32(body[1:]), binary.BigEndian.Uint32(body[5:])
	h := Heartbeat{
		Inherits: wire.Digest(body[9:heartbeatFixed]), Ready: body[0]&flagReady != 0, Relay: body[0]&flagRelay != 0,
	}
	switch {
	case body[0]&^(flagReady|flagRelay) != 0:
		return Heartbeat{}, wire.Refuse(wire.Malformed, "heartbeat: flags", body[0], "bits 0 and 1")
	case inFlight > math.MaxInt32 || sessions > math.MaxInt32:
		return Heartbeat{}, wire.Refuse(wire.Malformed, "heartbeat: counts", max(inFlight, sessions), "below 2^31")
	case len(body)-heartbeatFixed > maxAddress || !validAddress(string(body[heartbeatFixed:])):
		return Heartbeat{}, wire.Refuse(wire.Malformed, "heartbeat: address", string(body[heartbeatFixed:]), "host:port of printable ASCII, at most 255 bytes")
	}
	h.InFlight, h.Sessions, h.Address = int(inFlight), int(sessions), string(body[heartbeatFixed:])
	return h, nil
}

func validCount(n int) bool { return n >= 0 && n <= math.MaxInt32 }

// validAddress reports whether an address is empty or host:port in printable ASCII.
func validAddress(address string) bool {
	if address == "" {
		return true
	}
	host, port, err := net.SplitHostPort(address)
	number, bad := strconv.ParseUint(port, 10, 16)
	strange := strings.IndexFunc(address, func(r rune) bool { return r <= ' ' || r > '~' }) >= 0
	return len(address) <= maxAddress && err == nil && host != "" && bad == nil && number > 0 && !strange
}
