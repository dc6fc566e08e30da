package channelhttp

import (
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cohort-tee/cohort/internal/channel"
	"github.com/cohort-tee/cohort/internal/testworld"
	"github.com/cohort-tee/cohort/internal/unitauth"
	"github.com/cohort-tee/cohort/internal/wire"
)

// TestCutUnitServesNothing: an honest unit that learns of its own cut refuses every
// operation with the reason of a cut-off.
func TestCutUnitServesNothing(t *testing.T) {
	c := newCluster(t, 1, echo)
	h := c.units[0].Host
	s, sealed := c.opened(c.host(channel.Limits{}), c.byTask())
	h.Follow(c.cutOff(h.ID()))
	testworld.Refused(t, h.CutOff(noon), wire.CutOff)
	_, err := h.Accept(channel.OpenRequest{Body: testworld.Must(channel.NewClientHandshake(c.byTask(), 0)).Request()}, noon)
	testworld.Refused(t, err, wire.CutOff)
	_, err = h.ImportSession(sealed, noon)
	testworld.Refused(t, err, wire.CutOff)
	testworld.Refused(t, brought(h, asked(s, http.MethodGet, h.ID(), noon.Add(time.Minute)), noon), wire.CutOff)
	_, _, err = h.OHTTPKeys(unitauth.Pin{Task: "scoring"}, noon)
	testworld.Refused(t, err, wire.CutOff)
	_, _, err = h.Reseal(1, noon)
	testworld.Refused(t, err, wire.CutOff)
}

// heads records the proved heads on one side; they are opaque to the channel.
type heads struct {
	mu    sync.Mutex
	head  []byte
	heard []string
}

func (h *heads) set(s string) { h.mu.Lock(); defer h.mu.Unlock(); h.head = []byte(s) }

func (h *heads) taken() string {
	h.mu.Lock()
	defer h.mu.Unlock()
	s := strings.Join(h.heard, " ")
	h.heard = nil
	return s
}

func (h *heads) both() Heads {
	return Heads{
		Newest:   func() []byte { h.mu.Lock(); defer h.mu.Unlock(); return h.head },
		Received: func(b []byte) { h.mu.Lock(); defer h.mu.Unlock(); h.heard = append(h.heard, string(b)) },
	}
}

// TestHeadsTravel: proved heads travel with each open request and its response, and with
// other requests and responses once for each session and head.
func TestHeadsTravel(t *testing.T) {
	c := newCluster(t, 1, echo)
	unit, client := &heads{}, &heads{}
	c.units[0].server.config.Heads = unit.both()
	rt := c.client(c.byTask(), 0)
	rt.config.Heads = client.both()
	call := func() {
		t.Helper()
		if _, err := say(t, rt, "GET", "/", ""); err != nil {
			t.Fatal(err)
		}
	}
	want := func(what, atUnit, atClient string) {
		t.Helper()
		if a, b := unit.taken(), client.taken(); a != atUnit || b != atClient {
			t.Errorf("%s: got %q at the unit and %q at the client, want %q and %q", what, a, b, atUnit, atClient)
		}
	}
	call()
	want("without any", "", "")
	unit.set("u1")
	client.set("c1")
	call()
	want("the first", "c1", "u1")
	call()
	want("the same again", "", "")
	unit.set("u2")
	call()
	want("a newer one at the unit", "", "u2")
	client.set("c3")
	call()
	want("a newer one at the client", "c3", "")
	rt.dropSession(rt.active)
	call()
	want("another session", "c3 c3", "u2 u2")

	var none Heads
	for _, field := range []string{"", "=", "a", strings.Repeat("A", 2800), "a b"} {
		none.receive(http.Header{wire.FieldHead: {field}})
		unit.both().receive(http.Header{wire.FieldHead: {field}})
	}
	want("what is no head", "", "")
}

// TestOneOffAnswerAfterTheCut: a client refuses a one-off response once its keys are cut
// off.
func TestOneOffAnswerAfterTheCut(t *testing.T) {
	for _, whole := range []bool{false, true} {
		c := newCluster(t, 1, repeat)
		signed, _, err := c.units[0].OHTTPKeys(unitauth.Pin{Task: "scoring"}, noon)
		if err != nil {
			t.Fatal(err)
		}
		o := c.oneOffs(testworld.Must(unitauth.VerifyOHTTPKeys(signed, c.byTask(), c.trust(), noon)), whole)
		if _, err := say(t, o, http.MethodGet, "/", ""); err != nil {
			t.Errorf("whole %v: before: %v", whole, err)
		}
		o.config.Valid = func() error { return wire.Refuse(wire.CutOff, "keys", "cut off", "others") }
		_, err = say(t, o, http.MethodGet, "/", "")
		testworld.Refused(t, err, wire.CutOff)
	}
}
