package agent

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"os"
	"testing"
	"time"

	"github.com/cohort-tee/cohort/internal/testworld"
	"github.com/cohort-tee/cohort/unit/unittest"
)

// TestCrowdedForwarding: of what is forwarded as TCP a connection too many is cut, and
// the program does not see it.
func TestCrowdedForwarding(t *testing.T) {
	w := unittest.New(t, "1h")
	u := started(w, "scoring", w.Authority(w.AuthorityKeys))
	program, err := net.Listen("tcp", "127.0.0.1:0")
	testworld.NoError(t, err)
	defer program.Close()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	testworld.NoError(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- serveTCP(ctx, u, l, program.Addr().String()) }()
	defer func() { cancel(); testworld.NoError(t, <-done) }()
	for err == nil { // the places of this machine
		_, err = u.Admit("127.0.0.1:1")
	}
	const quota = "unit: requests under way"
	before := u.Stats().Refused[quota]
	c, err := tls.Dial("tcp", l.Addr().String(), &tls.Config{InsecureSkipVerify: true})
	testworld.NoError(t, err)
	defer c.Close()
	if _, err := c.Read(make([]byte, 1)); err == nil || errors.Is(err, io.EOF) {
		t.Errorf("got %v, want a connection that is cut", err)
	}
	testworld.NoError(t, program.(*net.TCPListener).SetDeadline(time.Now().Add(100*time.Millisecond)))
	if _, err := program.Accept(); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("the program: got %v, want no connection", err)
	}
	if got := u.Stats().Refused[quota] - before; got != 1 {
		t.Errorf("counted %d, want 1", got)
	}
}
