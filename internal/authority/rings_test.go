package authority

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cohort-tee/cohort/identity"
	"github.com/cohort-tee/cohort/internal/api"
	"github.com/cohort-tee/cohort/internal/testworld"
	"github.com/cohort-tee/cohort/internal/wire"
)

// keysOf returns all keys in parts of a report's ring keys.
func keysOf(all ...api.RingKeys) [][]byte {
	var list [][]byte
	for _, keys := range all {
		for _, key := range []*api.RingKey{keys.Previous, keys.Current, keys.Next} {
			if key != nil {
				list = append(list, key.Key)
			}
		}
	}
	return list
}

// shared counts the keys that are in both lists.
func shared(a, b [][]byte) int {
	n := 0
	for _, key := range a {
		if slices.ContainsFunc(b, func(k []byte) bool { return bytes.Equal(k, key) }) {
			n++
		}
	}
	return n
}

func wantKey(t *testing.T, what string, got *api.RingKey, want *api.RingKey) {
	t.Helper()
	if (got == nil) != (want == nil) || got != nil && (!bytes.Equal(got.Key, want.Key) || !got.End.Equal(want.End)) {
		t.Errorf("%s: got %+v, want %+v", what, got, want)
	}
}

// older returns an applicant of release 2026.10, which withReleases adds.
func (w *world) older() *applicant {
	p := w.scoring()
	p.device = w.Device("older")
	return p
}

// newest returns an applicant of release 2026.12.
func (w *world) newest() *applicant {
	p := w.scoring()
	p.device = w.Device("newest")
	return p
}

// withReleases adds a release that 2026.11 continues, and a release that continues 2026.11.
func withReleases() []string {
	program := func(name string) string { return wire.Sum([]byte(name)).String() }
	return []string{"[task.scoring.release.\"2026.11\"]\n", `[task.scoring.release."2026.10"]
reference = [ { platform = "soft", program = "` + program("older") + `" } ]
[task.scoring.release."2026.12"]
continues = "2026.11"
reference = [ { platform = "soft", program = "` + program("newest") + `" } ]
[task.scoring.release."2026.11"]
continues = "2026.10"
`}
}

// TestRings: units of one identity share ring keys, units of two identities none. The first
// report has no previous and no inherited keys.
func TestRings(t *testing.T) {
	w := newWorld(t)
	a := w.open()
	one, two := testworld.Must(w.scoring().enrol(direct{a})).Rings, testworld.Must(w.scoring().enrol(direct{a})).Rings
	other := testworld.Must(w.applicant("keys").enrol(direct{a})).Rings
	if got := shared(keysOf(one.Strict, one.Follow), keysOf(two.Strict, two.Follow)); got != 4 {
		t.Errorf("two units of one identity share %d keys, want 4", got)
	}
	if got := shared(keysOf(one.Strict, one.Follow), keysOf(other.Strict, other.Follow)); got != 0 {
		t.Errorf("two identities share %d keys, want none", got)
	}
	if got := shared(keysOf(one.Strict), keysOf(one.Follow)); got != 0 {
		t.Errorf("strict and follow share %d keys, want none", got)
	}
	if one.Strict.Previous != nil || one.Inherited != nil {
		t.Error("got a previous or an inherited key in the first report, want none")
	}
	// The lifetime of scoring is 1 h, so the lifetime of its ring keys is 1 h too.
	if got, want := one.Follow.Current.End, noon.Add(2*time.Hour); !got.Equal(want) {
		t.Errorf("got the current key's end %v, want %v", got, want)
	}
	if got, want := one.Follow.Next.End, noon.Add(3*time.Hour); !got.Equal(want) {
		t.Errorf("got the next key's end %v, want %v", got, want)
	}
}

// TestRingsAreNotKept: a second authority on the same store and root makes different keys, and
// neither store nor log contains the keys of the first.
func TestRingsAreNotKept(t *testing.T) {
	if os.Getenv(onServer) != "" {
		t.Skip("it searches files")
	}
	w := newWorld(t)
	first := testworld.Must(w.scoring().enrol(direct{w.open()})).Rings
	second := testworld.Must(w.scoring().enrol(direct{w.open()})).Rings
	if got := shared(keysOf(first.Strict, first.Follow), keysOf(second.Strict, second.Follow)); got != 0 {
		t.Errorf("an authority that started again gave %d keys of before, want none", got)
	}
	files, err := filepath.Glob(strings.TrimPrefix(w.dsn, "sqlite:") + "*")
	if err != nil || len(files) == 0 {
		t.Fatal("no store to search", err)
	}
	places := map[string][]byte{"log": w.log.Bytes()}
	for _, file := range files {
		places[filepath.Base(file)] = testworld.Must(os.ReadFile(file))
	}
	for _, key := range keysOf(first.Strict, first.Follow) {
		for place, content := range places {
			for _, form := range []string{string(key), hex.EncodeToString(key), base64.StdEncoding.EncodeToString(key)} {
				if bytes.Contains(content, []byte(form)) {
					t.Errorf("%s holds a ring key", place)
				}
			}
		}
	}
}

// TestRingsRoll: over four hours, with frequent and with rare enrolments, the keys of one
// identity roll at each hour and at no other time.
func TestRingsRoll(t *testing.T) {
	for _, asked := range []time.Duration{time.Minute, 20 * time.Minute, time.Hour} {
		t.Run(asked.String(), func(t *testing.T) {
			w := newWorld(t)
			a := w.open()
			last := testworld.Must(w.scoring().enrol(direct{a})).Rings
			for at := asked; at <= 4*time.Hour; at += asked {
				w.clock.Advance(asked)
				now := testworld.Must(w.scoring().enrol(direct{a})).Rings
				for kind, pair := range map[string][2]api.RingKeys{"strict": {last.Strict, now.Strict}, "follow": {last.Follow, now.Follow}} {
					before, after := pair[0], pair[1]
					if at%time.Hour != 0 {
						wantKey(t, kind+": current inside its life", after.Current, before.Current)
						wantKey(t, kind+": previous inside its life", after.Previous, before.Previous)
						continue
					}
					wantKey(t, kind+": previous after a roll", after.Previous, before.Current)
					wantKey(t, kind+": current after a roll", after.Current, before.Next)
				}
				last = now
			}
		})
	}
}

// TestInherited: along a chain of releases, each release gets the follow keys of the one it
// continues.
func TestInherited(t *testing.T) {
	w := newWorld(t, withReleases()...)
	a := w.open()
	middle := testworld.Must(w.scoring().enrol(direct{a})) // before any unit of the release it continues
	old, last := testworld.Must(w.older().enrol(direct{a})), testworld.Must(w.newest().enrol(direct{a}))

	if old.Rings.Inherited != nil {
		t.Error("a release that continues none inherits keys")
	}
	for _, row := range []struct {
		name     string
		from, to api.Report
	}{{"2026.11", old, middle}, {"2026.12", middle, last}} {
		got := row.to.Rings.Inherited
		if got == nil {
			t.Fatalf("%s inherits nothing", row.name)
		}
		if got.Identity != row.from.Identity {
			t.Errorf("%s inherits from %v, want %v", row.name, got.Identity, row.from.Identity)
		}
		wantKey(t, row.name+": current", got.Current, row.from.Rings.Follow.Current)
		wantKey(t, row.name+": next", got.Next, row.from.Rings.Follow.Next)
	}
	held := func(r api.Report) [][]byte {
		list := keysOf(r.Rings.Strict, r.Rings.Follow)
		if r.Rings.Inherited != nil {
			list = append(list, keysOf(r.Rings.Inherited.RingKeys)...)
		}
		return list
	}
	for name, pair := range map[string][2][][]byte{
		"keys of its successor at 2026.10":             {held(old), keysOf(middle.Rings.Strict, middle.Rings.Follow)},
		"keys of its successor's successor at 2026.10": {held(old), keysOf(last.Rings.Strict, last.Rings.Follow)},
		"keys of its successor at 2026.11":             {held(middle), keysOf(last.Rings.Strict, last.Rings.Follow)},
		"strict keys of its predecessor at 2026.11":    {held(middle), keysOf(old.Rings.Strict)},
		"strict keys of its predecessor at 2026.12":    {held(last), keysOf(middle.Rings.Strict)},
		"keys of the first release at 2026.12":         {held(last), held(old)},
	} {
		if got := shared(pair[0], pair[1]); got != 0 {
			t.Errorf("%s: got %d, want none", name, got)
		}
	}
}

// erased reports whether all of the keys are erased.
func erased(keys ...*identity.RingKey) bool {
	return !slices.ContainsFunc(keys, func(k *identity.RingKey) bool { return !bytes.Equal(k.Expose(), make([]byte, 32)) })
}

// TestRingsNobodyAsksFor: without enrolments, the authority rolls the keys of a release that the
// policy names, and erases those of a removed release.
func TestRingsNobodyAsksFor(t *testing.T) {
	w := newWorld(t, withReleases()...)
	a := w.open()
	named, removed := testworld.Must(w.scoring().enrol(direct{a})).Identity, testworld.Must(w.newest().enrol(direct{a})).Identity
	next := w.SignPolicy(w.NextText(a.inForce().approved, "[task.scoring.release.\"2026.12\"]\ncontinues = \"2026.11\"\nreference = [ { platform = \"soft\", program = \""+
		wire.Sum([]byte("newest")).String()+"\" } ]\n", ""), "ana", "ben")
	keys := func(id wire.Digest) []*identity.RingKey {
		strict, follow := a.rings.KeysOf(id)
		return append(strict.Keys(), follow.Keys()...)
	}
	dropped := keys(removed)
	if err := a.history.Adopt(t.Context(), api.HistoryEntry{Policy: next.Policy, Signatures: next.Signatures}); err != nil {
		t.Fatal(err)
	}
	kept := keys(named)
	if _, err := w.newest().enrol(direct{a}); wire.ReasonOf(err) != wire.NotMeasured {
		t.Errorf("enrolling a removed release: got %v, want reason %q", err, wire.NotMeasured)
	}
	if len(keys(removed)) > 0 || !erased(dropped...) {
		t.Error("keys of a removed release are still there")
	}
	w.clock.Advance(2 * time.Hour)
	a.keepRings(t.Context())
	if len(keys(named)) == 0 || !erased(kept...) {
		t.Error("keys of a release that policy names were not rolled, or what was dropped is not erased")
	}
	if erased(keys(named)...) {
		t.Error("the keys that are given out are erased")
	}
}

// TestRingsRollAlone: keys roll at an authority that receives no requests.
func TestRingsRollAlone(t *testing.T) {
	w := newWorld(t)
	a := w.open()
	id := testworld.Must(w.scoring().enrol(direct{a})).Identity
	strict, _ := a.rings.KeysOf(id)
	first := strict.Next.ID()
	w.clock.Advance(time.Hour)
	w.serve(a)
	current := func() identity.RingID {
		strict, _ := a.rings.KeysOf(id)
		return strict.Current.ID()
	}
	testworld.Within(t, 10*tick, "the ring rolls", func() bool { return current() != first })
}

// TestRenewalBeforeTheRingEnds: a unit whose certificate outlives its ring keys renews before the
// current key ends. A unit with a shorter certificate renews at the usual time.
func TestRenewalBeforeTheRingEnds(t *testing.T) {
	for text, want := range map[string]bool{"24h": true, "2h": true, "1h": false, "10m": false} {
		w := newWorld(t, `lifetime = "1h"`, `lifetime = "`+text+`"`)
		a, life, early := w.open(), testworld.Must(time.ParseDuration(text)), false
		for range 50 {
			r := testworld.Must(w.scoring().enrol(direct{a}))
			now, _ := w.clock.Read()
			if latest := r.Rings.Strict.Current.End.Add(-identity.RingLifetime(life) / 4); r.RenewBefore.After(latest) {
				t.Errorf("life %s, at %v: got renewal until %v, want %v at the latest", text, now, r.RenewBefore, latest)
			}
			if r.RenewAfter.After(r.RenewBefore) || !r.RenewAfter.After(now) {
				t.Errorf("life %s, at %v: got renewal from %v to %v", text, now, r.RenewAfter, r.RenewBefore)
			}
			// A certificate is renewed at two thirds of its lifetime, which ends at a whole
			// second.
			early = early || r.NotAfter.Add(-life/3).Sub(r.RenewAfter) > time.Second
			w.clock.Advance(7 * time.Minute)
		}
		if early != want {
			t.Errorf("life %s: renewal ahead of the certificate's: got %v, want %v", text, early, want)
		}
	}
}
