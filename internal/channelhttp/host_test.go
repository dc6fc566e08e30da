package channelhttp

import (
	"bytes"
	"testing"

	"github.com/cohort-tee/cohort/internal/testworld"
	"github.com/cohort-tee/cohort/internal/wire"
)

func TestTombstones(t *testing.T) {
	c := newCluster(t, 3, echo)
	rt := c.client(c.byTask(), 0)
	if _, err := say(t, rt, "GET", "/", ""); err != nil {
		t.Fatal(err)
	}
	s := testworld.Must(rt.Session(t.Context()))
	ticket := s.Ticket()
	closed := rt.Close(t.Context())
	if len(closed.Confirmed) != len(c.units) || !closed.Others.Equal(s.Expires()) {
		t.Errorf("got %+v", closed)
	}
	if _, err := say(t, rt, "GET", "/", ""); wire.ReasonOf(err) != wire.SessionOver {
		t.Errorf("after Close: got %v, want %v", err, wire.SessionOver)
	}
	for _, u := range c.units {
		_, err := u.ImportSession(ticket, noon)
		testworld.Refused(t, err, wire.SessionOver)
		if got := u.Stats(noon); got.Sessions != 0 || got.Closed != 1 {
			t.Errorf("got %+v, want a record in place of the session", got)
		}
	}
	late := c.start()
	if _, err := late.Terminate(c.stored[s.ID()], noon); err != nil {
		t.Fatal(err)
	}
	_, err := late.ImportSession(ticket, noon)
	testworld.Refused(t, err, wire.SessionOver)
	_, err = late.Terminate(ticket, noon)
	testworld.Refused(t, err, wire.Malformed)
	_, err = late.Terminate(flip(bytes.Clone(c.stored[s.ID()])), noon)
	testworld.Refused(t, err, wire.BadSignature)
}
