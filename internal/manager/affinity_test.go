package manager

import (
	"bytes"
	"fmt"
	"io"
	"math"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cohort-tee/cohort/internal/affinity"
	"github.com/cohort-tee/cohort/internal/bus"
	"github.com/cohort-tee/cohort/internal/bus/bustest"
	"github.com/cohort-tee/cohort/internal/wire"
)

// TestAffinity: requests with one key reach one unit over all paths, whichever unit has the fewest
// requests. The unit receives no key. When a unit leaves, only its keys move.
func TestAffinity(t *testing.T) {
	w := newWorld(t)
	var units []*replica
	for range 3 {
		r := w.replica(bustest.Scoring, nil)
		r.server.Handler = http.HandlerFunc(func(rw http.ResponseWriter, rq *http.Request) {
			if rq.Header.Get(wire.FieldAffinity) != "" {
				t.Errorf("a unit received %v", rq.Header)
			}
			rw.Header().Set("Cohort-Served-By", r.ID.String())
		})
		units = append(units, r)
	}
	w.cool()
	c := w.client(bustest.DNSName(bustest.Scoring))
	send := func(path, key string) (unit, hint string) {
		t.Helper()
		body := header(wire.UnitID{})
		if path == wire.PathSession {
			body = openBody("task", bustest.Scoring)
		}
		r, err := http.NewRequest(http.MethodPost, c.url+path, bytes.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		r.Host = c.host
		r.Header.Set("Content-Type", map[string]string{wire.PathSession: wire.TypeSession, wire.PathRequest: wire.TypeRequest, wire.PathOneOff: wire.TypeOneOff}[path])
		if key != "" {
			r.Header.Set(wire.FieldAffinity, key)
		}
		response, err := c.http.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		defer response.Body.Close()
		_, _ = io.Copy(io.Discard, response.Body)
		if response.StatusCode != http.StatusOK {
			t.Fatalf("%s with key %q: got %s", path, key, response.Status)
		}
		return response.Header.Get("Cohort-Served-By"), response.Header.Get(wire.FieldUnits)
	}
	where := map[string]string{}
	for i := range 24 {
		key := fmt.Sprint("key-", i)
		order := slices.Clone(units)
		affinity.Sort(affinity.Key(key), order, func(r *replica) wire.UnitID { return r.ID })
		where[key] = order[0].ID.String()
		want := []string{order[0].ID.String(), order[1].ID.String(), order[2].ID.String()}
		for _, path := range []string{wire.PathSession, wire.PathRequest, wire.PathOneOff, wire.PathRequest} {
			if unit, hint := send(path, key); unit != where[key] || hint != strings.Join(want, ",") {
				t.Errorf("%s on %s: got unit %s and hint %s, want %v", key, path, unit, hint, want)
			}
		}
	}
	for _, key := range []string{"", "not a key", strings.Repeat("x", 65), "a,b"} { // and they reach all units
		served := map[string]bool{}
		for range 30 {
			unit, _ := send(wire.PathRequest, key)
			served[unit] = true
		}
		if len(served) != 3 {
			t.Errorf("%q: reached %d units, want all 3", key, len(served))
		}
	}
	gone := units[0].ID.String()
	units[0].kill()
	for key, before := range where {
		unit, _ := send(wire.PathRequest, key)
		if unit == gone || before != gone && unit != before {
			t.Errorf("%s: moved from %s to %s; %s left", key, before, unit, gone)
		}
	}
}

// TestAffinityUnderLoad: a key selects the next unit when the first has 8 requests in progress and
// a quarter more than the mean. So one key, however it is chosen, concentrates no more on a unit,
// and a unit that rests is skipped.
func TestAffinityUnderLoad(t *testing.T) {
	const key, now = affinity.Key("hostile"), int64(1e9)
	for _, row := range []struct {
		units, others int // units, and requests that others have in progress at each
	}{{1, 0}, {2, 0}, {5, 0}, {5, 1}, {5, 7}, {5, 100}, {50, 3}} {
		r := newRegistry(Limits{}.withDefaults(), dialer{clock: time.Now})
		for i := range row.units {
			id := wire.UnitID{byte(i + 1)}
			m := newBackend(bus.Unit{ID: id}, time.Unix(now, 0), 2_000)
			m.heartbeat.Ready = true
			m.inFlight.Store(int64(row.others))
			r.units[id] = m
		}
		filter := unitFilter{affinity: key}
		first := r.selectUnit(filter, time.Unix(now, 0))
		for n := range 500 {
			m := r.selectUnit(filter, time.Unix(now, 0))
			total := row.units*row.others + n + 1
			if got, most := m.inFlight.Add(1), max(8, math.Ceil(1.25*float64(total)/float64(row.units))); float64(got) > most {
				t.Fatalf("%+v: %d of %d requests at one unit, want at most %v", row, got, total, most)
			}
			if n < minLoaded-row.others && m != first {
				t.Errorf("%+v: request %d is not at the first unit, which is not loaded", row, n)
			}
			if ids := r.alternatives(filter); row.units > 1 && n > 20 && ids == "" {
				t.Fatalf("%+v: no hint", row)
			}
		}
		for _, m := range r.units {
			m.inFlight.Store(0)
		}
		if m := r.selectUnit(filter, time.Unix(now, 0)); m != first {
			t.Errorf("%+v: after the load the key is at %v, want %v", row, m.id, first.id)
		}
		first.recordFailure(time.Unix(now, 0))
		if m := r.selectUnit(filter, time.Unix(now, 0)); row.units > 1 && m == first || m == nil {
			t.Errorf("%+v: got unit %v, which rests", row, m)
		}
	}
}
