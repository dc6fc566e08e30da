package api

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
		if got := c.moved(conns[step.conn], step.state); got != want {
			t.Errorf("step %d: closed %v, want %v", i, got, want)
		}
	}
	if rawConn(tls.Client(conns[0], &tls.Config{InsecureSkipVerify: true})) != conns[0] {
		t.Error("rawConn did not find the connection below TLS")
	}
}
