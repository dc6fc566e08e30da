package loopback

import (
	"net"
	"testing"
)

func TestFreeAddress(t *testing.T) {
	given := map[string]bool{}
	for range 200 {
		address := FreeAddress(t)
		if given[address] {
			t.Fatalf("%s was given twice", address)
		}
		given[address] = true
		for range 2 { // a server that starts again
			l, err := net.Listen("tcp", address)
			if err != nil {
				t.Fatal(err)
			}
			l.Close()
		}
	}
}
