package systest

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/cohort-tee/cohort/attest/attesttest"
	"github.com/cohort-tee/cohort/client"
	"github.com/cohort-tee/cohort/internal/channelhttp"
	"github.com/cohort-tee/cohort/internal/testworld"
	"github.com/cohort-tee/cohort/internal/unitauth"
)

// fixedTrust is trust that does not change during a test.
type fixedTrust struct{ of *client.Trust }

func (f fixedTrust) Trust() unitauth.Trust {
	return unitauth.Trust{Policy: f.of.Policy(), Root: f.of.AuthorityRoot(), Verifier: attesttest.Verifier()}
}

func (f fixedTrust) Renew(context.Context) unitauth.Trust { return f.Trust() }

// crowd is a set of sessions that share their connections to the gateway, as the sessions
// of separate clients would not.
type crowd struct {
	*fleet
	inner    *http.Transport
	opened   int
	every    int                      // one session in so many keeps its client
	sessions []*channelhttp.Transport // the sessions that keep their client
}

// grow opens sessions until there are n.
func (c *crowd) grow(n int) {
	c.t.Helper()
	c.sessions = append(c.sessions, make([]*channelhttp.Transport, (n-c.opened)/c.every)...)
	config := channelhttp.TransportConfig{
		Gateway: testworld.Must(url.Parse("http://" + c.gateway.Gateway)), Inner: c.inner, Trust: fixedTrust{c.trust}, Clock: time.Now,
		Pin: unitauth.Pin{Genesis: c.place.Genesis, Task: "scoring"},
	}
	c.each(c.opened, n, func(i int) error {
		rt := testworld.Must(channelhttp.NewTransport(config))
		if i%c.every == 0 {
			c.sessions[i/c.every] = rt
		}
		_, err := rt.Session(c.t.Context())
		return err
	})
	c.opened = n
}

// each calls f for the sessions in [from, to), a few at a time.
func (c *crowd) each(from, to int, f func(i int) error) {
	c.t.Helper()
	next := make(chan int)
	var workers sync.WaitGroup
	for range 8 {
		workers.Go(func() {
			for i := range next {
				if err := f(i); err != nil {
					c.t.Errorf("session %d: %v", i, err)
				}
			}
		})
	}
	for i := from; i < to && !c.t.Failed(); i++ {
		next <- i
	}
	close(next)
	workers.Wait()
}

// resident is the resident memory of a process in bytes.
func resident(t *testing.T, pid int) int {
	t.Helper()
	var pages, held int
	if _, err := fmt.Sscan(string(testworld.Must(os.ReadFile(fmt.Sprintf("/proc/%d/statm", pid)))), &pages, &held); err != nil {
		t.Fatal(err)
	}
	return held * os.Getpagesize()
}

// TestManySessions: very many sessions with units in processes. The memory for one more
// session, in a unit and in the manager, is the slope between two counts. Then a new unit
// replaces all units; it serves sessions that it knows only from the manager's copies,
// without another handshake.
func TestManySessions(t *testing.T) {
	counts, every := []int{500, 1000}, 20
	if full() {
		counts, every = []int{20_000, 60_000, 100_000, 1_000_000}, 200
	}
	c := &crowd{fleet: newFleet(t, time.Hour, 4), inner: &http.Transport{MaxIdleConnsPerHost: 64}, every: every}
	defer c.inner.CloseIdleConnections()
	var before [2]int
	for i, n := range counts {
		begin := time.Now()
		c.grow(n)
		if t.Failed() {
			return
		}
		took := time.Since(begin)
		for _, u := range c.units {
			u.collect(t)
		}
		now := [2]int{resident(t, c.units[0].pid), resident(t, c.manager.pid)}
		t.Logf("%d sessions: a unit %d MiB, the manager %d MiB", n, now[0]>>20, now[1]>>20)
		if i > 0 {
			more := n - counts[i-1]
			t.Logf("each more: %d bytes in a unit, %d in the manager; opened %.0f a second", (now[0]-before[0])/more, (now[1]-before[1])/more, float64(more)/took.Seconds())
		}
		before = now
	}
	late := c.start(c.bin)
	c.dirs = append(c.dirs, late.dir)
	for _, u := range c.units {
		u.end(syscall.SIGKILL)
	}
	asked := len(c.sessions)
	latency := make([]time.Duration, asked)
	c.each(0, asked, func(i int) error {
		rt := c.sessions[i]
		begin := time.Now()
		answer, err := rt.RoundTrip(testworld.Must(http.NewRequestWithContext(t.Context(), http.MethodGet, scoringURL+"/count", nil)))
		if err != nil {
			return err
		}
		defer answer.Body.Close()
		b, err := io.ReadAll(answer.Body)
		latency[i] = time.Since(begin)
		if id, _, _ := strings.Cut(string(b), " "); id != late.Unit.String() || rt.Opens() != 1 {
			return fmt.Errorf("got an answer of %q after %d handshakes, want one of the late unit after one: %v", id, rt.Opens(), err)
		}
		return err
	})
	slices.Sort(latency)
	t.Logf("%d first requests at a unit that came late, by way of units that are gone: p50 %v, p99 %v", asked, latency[asked/2], latency[asked*99/100])
}
