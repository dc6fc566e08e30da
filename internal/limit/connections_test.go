package limit

import (
	"crypto/tls"
	"net"
	"net/http"
	"testing"
)

// TestCrowd follows the bookkeeping of connections.
func TestCrowd(t *testing.T) {
	c := NewConnections(2)
	conns := make([]net.Conn, 4)
	for i := range conns {
		conns[i], _ = net.Pipe()
	}
	steps := []struct {
		conn  int
		state http.ConnState
		shut  int // which is closed, or -1
	}{
		{0, http.StateNew, -1},
		{0, http.StateActive, -1},
		{1, http.StateNew, -1},
		{2, http.StateNew, 1}, // 0 is at work, 1 waits longest
		{1, http.StateClosed, -1},
		{0, http.StateIdle, -1},
		{3, http.StateNew, 2},
		{2, http.StateClosed, -1},
	}
	for i, step := range steps {
		want := net.Conn(nil)
		if step.shut >= 0 {
			want = conns[step.shut]
		}
		if got := c.recordState(conns[step.conn], step.state); got != want {
			t.Errorf("step %d: closed %v, want %v", i, got, want)
		}
	}
	if rawConn(tls.Client(conns[0], &tls.Config{InsecureSkipVerify: true})) != conns[0] {
		t.Error("rawConn did not find the connection below TLS")
	}
}

// from is a connection of an address.
type from struct {
	net.Conn
	address string
}

func (f *from) RemoteAddr() net.Addr { return &net.TCPAddr{IP: net.ParseIP(f.address), Port: 1} }

// TestCrowdByAddress: the address with the most connections that wait loses the one
// that has waited longest, whoever came last; one with fewer keeps its own.
func TestCrowdByAddress(t *testing.T) {
	c := NewConnections(4)
	honest, newcomer := &from{address: "192.0.2.1"}, &from{address: "192.0.2.2"}
	flood := []net.Conn{&from{address: "2001:db8::1"}, &from{address: "2001:db8::2"}, &from{address: "2001:db8::3"}, &from{address: "2001:db8::4"}}
	c.recordState(honest, http.StateNew) // and waits longest
	for _, conn := range flood[:3] {
		if got := c.recordState(conn, http.StateNew); got != nil {
			t.Fatalf("with room: closed %v", got)
		}
	}
	if got := c.recordState(newcomer, http.StateNew); got != flood[0] {
		t.Errorf("for a newcomer: closed %v, want the flood's first", got)
	}
	c.recordState(flood[0], http.StateClosed)
	if got := c.recordState(flood[3], http.StateNew); got != flood[1] {
		t.Errorf("for one more of the flood: closed %v, want the flood's second", got)
	}
	for _, conn := range []net.Conn{flood[2], flood[3], honest, newcomer} {
		c.recordState(conn, http.StateActive)
	}
	if got := c.recordState(flood[0], http.StateNew); got != flood[0] {
		t.Errorf("all at work: closed %v, want the one that came last", got)
	}
	for _, conn := range []net.Conn{flood[2], flood[3], honest, newcomer} {
		c.recordState(conn, http.StateClosed)
	}
	if len(c.open) != 0 || len(c.waiting) != 0 || len(c.crowds) != 0 {
		t.Errorf("all closed: got %d connections, %d and %d addresses", len(c.open), len(c.waiting), len(c.crowds))
	}
}
