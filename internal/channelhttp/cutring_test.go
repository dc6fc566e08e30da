package channelhttp

import (
	"bytes"
	"context"
	"io"
	"net/http"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/internal/bhttp"
	"github.com/cohort-tee/cohort/internal/channel"
	"github.com/cohort-tee/cohort/internal/testworld"
	"github.com/cohort-tee/cohort/internal/wire"
)

// cutting is an attester that cuts the rings during its next calls, as often as left
// states.
type cutting struct {
	attest.Attester
	left *int
	cut  func()
}

func (c cutting) Attest(ctx context.Context, data attest.ReportData) (attest.Evidence, error) {
	if *c.left > 0 {
		*c.left--
		c.cut()
	}
	return c.Attester.Attest(ctx, data)
}

// TestCutBesideEvidence: the rings are cut while a unit makes fresh evidence for a client.
// The client still gets its session, with evidence for it.
func TestCutBesideEvidence(t *testing.T) {
	c := newCluster(t, 1, http.NotFoundHandler())
	left := maxReopens
	c.units[0].server.config.Attester = cutting{c.Device("scoring 1"), &left, func() { c.cutRings(c.units[0].Host) }}
	o := testworld.Must(channel.NewClientHandshake(c.byTask(), channel.WantEvidence))
	send := func(cookie string) *http.Response {
		r := testworld.Must(http.NewRequest(http.MethodPost, "http://unit"+wire.PathSession, bytes.NewReader(o.Request())))
		r.Header.Set("Content-Type", wire.TypeSession)
		r.Header.Set(wire.FieldCookie, cookie)
		return serve(c.units[0].server, r)
	}
	response := send(send("").Header.Get(wire.FieldCookie))
	body := testworld.Must(io.ReadAll(response.Body))
	if response.StatusCode != http.StatusOK {
		t.Fatalf("got status %d, %s, want 200", response.StatusCode, body)
	}
	s := testworld.Must(o.Finish(body, c.world.Trust(), c.clock.Now()))
	if left > 0 || !s.Evidence().Appraised() {
		t.Errorf("got %d cuts left to do and evidence %v, want none and good evidence", left, s.Evidence().Appraised())
	}
}

// TestCutsBesideEverything: sessions are opened, joined, resealed and closed while the
// rings are cut repeatedly. Every operation in progress is refused or completes, and
// nothing panics. The race detector observes all of it.
func TestCutsBesideEverything(t *testing.T) {
	c := newCluster(t, 2, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {}))
	h, other := c.units[0].Host, c.units[1].Host
	var all sync.WaitGroup
	var stop atomic.Bool
	var opened, joined atomic.Int64
	var failure atomic.Pointer[string]
	again := func(f func()) {
		all.Go(func() {
			for !stop.Load() {
				f()
			}
		})
	}
	type opening struct {
		session *channel.Session
		sealed  []byte
	}
	copies := make(chan opening, 64)
	for range 2 {
		again(func() {
			o := testworld.Must(channel.NewClientHandshake(c.byTask(), 0))
			r := testworld.Must(http.NewRequest(http.MethodPost, "http://unit"+wire.PathSession, bytes.NewReader(o.Request())))
			r.Header.Set("Content-Type", wire.TypeSession)
			response := serve(c.units[0].server, r)
			body := testworld.Must(io.ReadAll(response.Body)) // read to the end, so that the request's work is complete
			switch {
			case response.StatusCode == http.StatusOK:
				opened.Add(1)
			case !bytes.Contains(body, []byte(`"reason":"ring"`)): // the rings were cut three times during the request
				failure.Store(new(string(body)))
			}
		})
	}
	again(func() {
		o := testworld.Must(channel.NewClientHandshake(c.byTask(), 0))
		a, err := other.Accept(channel.OpenRequest{Body: o.Request(), Number: 7}, c.clock.Now())
		if err != nil {
			return
		}
		response, sealed, err := a.Finish(attest.Evidence{}, c.clock.Now())
		if err != nil {
			return
		}
		select {
		case copies <- opening{testworld.Must(o.Finish(response, c.trust(), c.clock.Now())), sealed}:
		default:
		}
	})
	again(func() {
		select {
		case o := <-copies:
			for range 8 {
				_, err := h.ImportSession(o.sealed, c.clock.Now())
				if err != nil {
					continue
				}
				joined.Add(1)
				// A unit's steps of closing; they are refused where the ring is gone.
				x := testworld.Must(o.session.NewRequest(channel.RequestConfig{Target: h.ID(), NotAfter: c.clock.Now().Add(time.Second), Flags: wire.FlagClose}))
				raw := testworld.Must(x.Whole(bhttp.Head{}, nil))
				in, err := h.Open([wire.HeaderSize]byte(raw), bytes.NewReader(raw[wire.HeaderSize:]), c.clock.Now())
				if err == nil && in.Authenticate(nil, c.unitClock) == nil {
					_, _ = in.Close()
				}
			}
		default:
		}
	})
	again(func() { _, _, _ = h.Reseal(64, c.clock.Now()) })
	for range 60 {
		time.Sleep(5 * time.Millisecond)
		c.cutRings(h)
		if err := other.Update(c.standing(c.keyOf(other), "1")); err != nil {
			t.Fatal(err)
		}
	}
	stop.Store(true)
	all.Wait()
	if opened.Load() == 0 || joined.Load() == 0 {
		t.Errorf("got %d opened and %d joined, want some: the test shows nothing", opened.Load(), joined.Load())
	}
	if said := failure.Load(); said != nil {
		t.Errorf("got an open request that failed, %s, want none", *said)
	}
}
