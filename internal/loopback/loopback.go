// Package loopback gives tests addresses for the servers that they start.
package loopback

import (
	"math/rand/v2"
	"net"
	"strconv"
	"testing"
)

// The ports that are given out. They lie below the range that Linux gives to
// outgoing connections and to listeners on port 0 (32768 and above), so that no
// such socket takes one while its server is not there yet, or starts again.
const lowest, highest = 10000, 32000

// FreeAddress is an address on 127.0.0.1 that no TCP socket is bound to. It is
// this test's until the test ends: the UDP port of the same number is held, and
// whoever else asks, in any process, passes it by.
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
