package manager

import (
	"io"
	"net/http"
	"testing"

	"github.com/cohort-tee/cohort/internal/bus"
	"github.com/cohort-tee/cohort/internal/bus/bustest"
	"github.com/cohort-tee/cohort/internal/testworld"
	"github.com/cohort-tee/cohort/internal/wire"
)

// TestSilentUnits: a request at a unit that is silent and unreachable ends, and goes to another
// unit if it may. A request at a unit that is only silent continues.
func TestSilentUnits(t *testing.T) {
	w := newWorld(t)
	after := func(told chan struct{}) http.HandlerFunc {
		return func(rw http.ResponseWriter, _ *http.Request) { <-told; io.WriteString(rw, "in the end") }
	}
	never, later := make(chan struct{}), make(chan struct{})
	t.Cleanup(func() { close(never) })
	gone, quiet := w.replica(bustest.Scoring, after(never)), w.replica(bustest.Scoring, after(later))
	for _, r := range []*replica{quiet, w.named(bustest.Scoring)} {
		w.claim(r, func(b *bus.Heartbeat) { b.InFlight = 1000 }) // so that requests go to gone first
	}
	c := w.client(bustest.DNSName(bustest.Scoring))
	type outcome struct {
		status int
		body   string
		reason wire.Reason
	}
	ask := func(h wire.Header, at *replica) chan outcome {
		before, got := at.calls.Load(), make(chan outcome, 1)
		go func() {
			status, body, p := c.request(t, h, "x")
			got <- outcome{status, body, p.Reason}
		}()
		testworld.Eventually(t, "the request is at its unit", func() bool { return at.calls.Load() > before })
		return got
	}
	unbound, bound := ask(wire.Header{}, gone), ask(wire.Header{Target: gone.ID}, gone)
	patient := ask(wire.Header{Target: quiet.ID}, quiet)
	gone.vanish()
	quiet.hush()
	if got := <-unbound; got.status != http.StatusOK || got.body == "in the end" {
		t.Errorf("unbound: got %+v, want the third unit's answer", got)
	}
	if got := <-bound; got.status != http.StatusServiceUnavailable || got.reason != wire.Unavailable {
		t.Errorf("bound: got %+v, want 503 %q", got, wire.Unavailable)
	}
	testworld.Eventually(t, "both are forgotten", func() bool { n, _ := w.manager.registry.counts(); return n == 1 })
	close(later)
	if got := <-patient; got.body != "in the end" {
		t.Errorf("at the silent unit: got %+v, want its answer", got)
	}
}
