package channelhttp

import (
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/cohort-tee/cohort/internal/affinity"
	"github.com/cohort-tee/cohort/internal/testworld"
	"github.com/cohort-tee/cohort/internal/wire"
)

// TestAffinity: requests with one Cohort-Affinity field are bound to one unit, the first one for
// the key of those in the hint, and to the next when that unit is away. The gateway receives a
// blinded key, and the unit none; the user's request is not changed.
func TestAffinity(t *testing.T) {
	var mu sync.Mutex
	var outer []string // fields of the outer requests
	c := newCluster(t, 4, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get(wire.FieldAffinity) != "" || r.Header.Get("Other") != "kept" {
			t.Errorf("the unit received %v", r.Header)
		}
		caller, _ := CallerOf(r.Context())
		fmt.Fprint(w, caller.Unit)
	}))
	c.tampers = func(r *http.Request) (*http.Response, error) {
		mu.Lock()
		defer mu.Unlock()
		outer = append(outer, r.Header.Get(wire.FieldAffinity))
		return nil, nil
	}
	rt := c.client(c.byTask(), 0)
	send := func(name string) wire.UnitID {
		t.Helper()
		r := testworld.Must(http.NewRequest(http.MethodPost, base, strings.NewReader("x")))
		r.Header.Set("Other", "kept")
		if name != "" {
			r.Header.Set(wire.FieldAffinity, name)
		}
		if response, err := rt.RoundTrip(r); err != nil {
			t.Fatal(err)
		} else {
			response.Body.Close()
		}
		if r.Header.Get(wire.FieldAffinity) != name {
			t.Errorf("the user's request has %q", r.Header.Get(wire.FieldAffinity))
		}
		return rt.chooseUnit(rt.active, nil, rt.blinder.Blind(name))
	}
	send("")
	if len(outer) == 0 || slices.ContainsFunc(outer, func(s string) bool { return s != "" }) {
		t.Errorf("without a name: got fields %q", outer)
	}
	used := map[wire.UnitID]bool{}
	for i := range 40 {
		name := fmt.Sprint("user ", i, "@example.com")
		outer = nil
		unit := send(name)
		used[unit] = true
		units := slices.Clone(rt.units)
		key := rt.blinder.Blind(name)
		affinity.Sort(key, units, func(id wire.UnitID) wire.UnitID { return id })
		if unit != units[0] || unit != send(name) {
			t.Errorf("%s: got unit %v, want %v", name, unit, units[0])
		}
		for _, field := range outer {
			if field != string(key) || strings.Contains(field, "user") {
				t.Errorf("%s: the gateway received %q, want %q", name, field, key)
			}
		}
		if next := rt.chooseUnit(rt.active, []wire.UnitID{unit}, key); next != units[1] {
			t.Errorf("%s: after unit %v got %v, want %v", name, unit, next, units[1])
		}
	}
	if len(used) < 3 {
		t.Errorf("40 names reach %d of 4 units", len(used))
	}
}

// TestAffinityOfOneOffs: the gateway receives a blinded key with a one-off request, and the unit
// none. Without a Blinder neither receives any.
func TestAffinityOfOneOffs(t *testing.T) {
	c := newCluster(t, 1, http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		if r.Header.Get(wire.FieldAffinity) != "" {
			t.Errorf("the unit received %v", r.Header)
		}
	}))
	outer := ""
	c.tampers = func(r *http.Request) (*http.Response, error) {
		outer = r.Header.Get(wire.FieldAffinity)
		return nil, nil
	}
	for _, blinder := range []*Blinder{nil, {}} {
		o := c.oneOffs(c.keysOf(c.units[0], c.byTask()), false)
		o.config.Blinder = blinder
		r := testworld.Must(http.NewRequest(http.MethodGet, base, nil))
		r.Header.Set(wire.FieldAffinity, "user@example.com")
		testworld.Must(o.RoundTrip(r)).Body.Close()
		want := ""
		if blinder != nil {
			want = string(blinder.Blind("user@example.com"))
		}
		if outer != want {
			t.Errorf("got %q, want %q", outer, want)
		}
	}
}
