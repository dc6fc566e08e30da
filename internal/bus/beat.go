package bus

import (
	"encoding/binary"
	"math"
	"net"
	"strconv"
	"strings"

	"github.com/cohort-tee/cohort/internal/wire"
)

// Beat is a heartbeat, which a unit sends every [BeatEvery]. All of its fields are hints. The
// certificate says which unit it is ([Unit]).
type Beat struct {
	Address  string      // host:port of its listener; empty: none
	Inherits wire.Digest // identity whose sessions the unit can open too; zero: none
	InFlight int         // requests in progress, 0 to 2^31-1
	Sessions int         // 0 to 2^31-1
	Ready    bool
	Relay    bool // push sealed sessions of other units over this connection
}

// Flags of a heartbeat; all other bits are zero.
const (
	flagReady = 1 << iota
	flagRelay
)

// beatFixed is the size of a heartbeat's body without the address, in bytes.
const beatFixed = 1 + 4 + 4 + 32

// Append appends the body of the heartbeat's frame to b. It refuses with [wire.BadRequest]
// what [ParseBeat] would refuse.
func (h Beat) Append(b []byte) ([]byte, error) {
	if !count(h.InFlight) || !count(h.Sessions) || !addressOK(h.Address) {
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

// ParseBeat is the inverse of Append. Its error has the reason [wire.Malformed].
func ParseBeat(body []byte) (Beat, error) {
	if len(body) < beatFixed {
		return Beat{}, wire.Refuse(wire.Malformed, "heartbeat: size in bytes", len(body), "at least 41")
	}
	inFlight, sessions := binary.BigEndian.Uint32(body[1:]), binary.BigEndian.Uint32(body[5:])
	h := Beat{
		Inherits: wire.Digest(body[9:beatFixed]), Ready: body[0]&flagReady != 0, Relay: body[0]&flagRelay != 0,
	}
	switch {
	case body[0]&^(flagReady|flagRelay) != 0:
		return Beat{}, wire.Refuse(wire.Malformed, "heartbeat: flags", body[0], "bits 0 and 1")
	case inFlight > math.MaxInt32 || sessions > math.MaxInt32:
		return Beat{}, wire.Refuse(wire.Malformed, "heartbeat: counts", max(inFlight, sessions), "below 2^31")
	case len(body)-beatFixed > maxAddress || !addressOK(string(body[beatFixed:])):
		return Beat{}, wire.Refuse(wire.Malformed, "heartbeat: address", string(body[beatFixed:]), "host:port of printable ASCII, at most 255 bytes")
	}
	h.InFlight, h.Sessions, h.Address = int(inFlight), int(sessions), string(body[beatFixed:])
	return h, nil
}

func count(n int) bool { return n >= 0 && n <= math.MaxInt32 }

// addressOK reports whether an address is host:port in printable ASCII, or
// empty.
func addressOK(address string) bool {
	if address == "" {
		return true
	}
	host, port, err := net.SplitHostPort(address)
	number, bad := strconv.ParseUint(port, 10, 16)
	strange := strings.IndexFunc(address, func(r rune) bool { return r <= ' ' || r > '~' }) >= 0
	return len(address) <= maxAddress && err == nil && host != "" && bad == nil && number > 0 && !strange
}
