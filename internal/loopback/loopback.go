// Package loopback reserves addresses for the servers that tests start.
package loopback

import (
	"math/rand/v2"
	"net"
	"strconv"
	"testing"
)

// The range of ports. It is below the range that Linux uses for outgoing connections and for
// listeners on port 0 (32768 and above), so that no such socket takes a port before its server
// has started or while it restarts.
const lowest, highest = 10000, 32000

// FreeAddress returns an address on 127.0.0.1 that no TCP socket is bound to. It is reserved
// until the test ends: the UDP port of the same number stays open, and other callers, in any
// process, skip it.
func FreeAddress(t testing.TB) string {
	t.Helper()
	for range 1000 {
		address := net.JoinHostPort("127.0.0.1", strconv.Itoa(lowest+rand.IntN(highest-lowest)))
		held, err := net.ListenPacket("udp", address)
		if err != nil {
			continue
		}
		l, err := net.Listen("tcp", address)
		if err != nil {
			held.Close()
			continue
		}
		l.Close()
		t.Cleanup(func() { held.Close() })
		return address
	}
	t.Fatal("no free address on loopback")
	return ""
}
