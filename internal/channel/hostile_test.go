package channel

import (
	"bytes"
	"testing"
	"time"

	"github.com/cohort-tee/cohort/internal/bhttp"
	"github.com/cohort-tee/cohort/internal/testworld"
	"github.com/cohort-tee/cohort/internal/wire"
)

// TestNotExecutedByAnother: a unit responds "not executed" to a request that is bound to another
// unit. The client refuses that response.
func TestNotExecutedByAnother(t *testing.T) {
	w := newWorld(t)
	bound, other := w.host(Limits{}), w.host(Limits{})
	s, _ := w.opened(bound, w.byTask())
	x := testworld.Must(s.NewRequest(RequestConfig{Target: bound.ID(), NotAfter: noon.Add(time.Minute)}))
	for _, h := range []*Host{bound, other} {
		in := &ServerRequest{host: h, at: noon, raw: x.raw, keys: newKeys(&s.secret)}
		_, err := x.Open(bytes.NewReader(testworld.Must(in.NotExecuted(wire.Expired))))
		if h == bound {
			testworld.Must(0, err)
			continue
		}
		testworld.Refused(t, err, wire.WrongIdentity)
	}
}

// TestRequestRefusals: requests that a unit refuses before its program runs.
func TestRequestRefusals(t *testing.T) {
	w := newWorld(t)
	a, b := w.host(Limits{}), w.host(Limits{})
	s, _ := w.opened(a, w.byTask())
	send := func(h *Host, edit func(*ClientRequest)) error {
		x := testworld.Must(s.newRequest(a.ID(), noon.Add(time.Minute), 0))
		edit(x)
		body := testworld.Must(x.Whole(bhttp.Head{Method: "GET", Scheme: "https", Path: "/"}, nil))
		in, err := h.findSession([wire.HeaderSize]byte(body), noon)
		if err == nil {
			err = in.openFirst(bytes.NewReader(body[wire.HeaderSize:]), atNoon)
		}
		return err
	}
	set := func(at int, v byte) func(*ClientRequest) { return func(x *ClientRequest) { x.raw[at] = v } }
	same := func(*ClientRequest) {}
	for _, c := range []struct {
		name string
		err  error
		want wire.Reason
	}{
		{"another version", send(a, set(0, 2)), wire.Malformed},
		{"number 0", send(a, func(x *ClientRequest) { clear(x.raw[25:33]) }), wire.Malformed},
		{"unknown flags", send(a, set(57, 4)), wire.Malformed},
		{"a time beyond all", send(a, set(49, 0x80)), wire.Malformed},
		{"bound to another unit", send(b, same), wire.Misdirected},
		{"an unknown session", send(a, set(1, 9)), wire.TicketWanted},
		{"a session that did not come", send(b, func(x *ClientRequest) { clear(x.raw[33:49]) }), wire.TicketWanted},
	} {
		if wire.ReasonOf(c.err) != c.want {
			t.Errorf("%s: got %v, want %v", c.name, c.err, c.want)
		}
	}
	if err := send(a, same); err != nil {
		t.Errorf("unchanged: %v", err)
	}
	x := testworld.Must(s.newRequest(a.ID(), noon.Add(time.Minute), 0))
	body := testworld.Must(x.Whole(bhttp.Head{Method: "GET", Scheme: "https", Path: "/"}, nil))
	for i, at := range []int{25 + 7, 33, 49 + 7, 57} { // number, target, not after, flags
		bad := bytes.Clone(body)
		bad[at] ^= 1
		in, err := a.findSession([wire.HeaderSize]byte(bad), noon)
		if err == nil {
			err = in.openFirst(bytes.NewReader(bad[wire.HeaderSize:]), atNoon)
		}
		if want := []wire.Reason{wire.BadSignature, wire.Misdirected, wire.BadSignature, wire.BadSignature}[i]; wire.ReasonOf(err) != want {
			t.Errorf("header byte %d: got %v, want %v", at, err, want)
		}
	}
}
