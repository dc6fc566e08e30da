package natsd

import (
	"errors"
	"io"
	"log/slog"
	"testing"
	"time"

	"github.com/cohort-tee/cohort/internal/wire"
)

// TestListensNowhere: the server accepts only connections from its own process, even while the
// cluster that it joins is not reachable.
func TestListensNowhere(t *testing.T) {
	s, err := Start(Join{URLs: []string{"nats://127.0.0.1:1"}}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	defer s.Stop()
	if a := s.nats.Addr(); a != nil {
		t.Errorf("listens on %v", a)
	}
	if s.Joined() {
		t.Error("joined to nobody")
	}
	c, err := s.InProcessConn()
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_ = c.SetReadDeadline(time.Now().Add(5 * time.Second))
	if first, err := io.ReadAll(io.LimitReader(c, 5)); err != nil || string(first) != "INFO " {
		t.Errorf("in process: got %q, %v", first, err)
	}
}

func TestStartRefusals(t *testing.T) {
	for _, join := range []Join{{}, {URLs: []string{"http://127.0.0.1:1"}}} {
		s, err := Start(join, slog.New(slog.DiscardHandler))
		if err == nil {
			s.Stop()
		}
		if !errors.Is(err, wire.BadRequest) {
			t.Errorf("%v: got %v, want %v", join.URLs, err, wire.BadRequest)
		}
	}
}
