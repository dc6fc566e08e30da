package unit

import (
	"bytes"
	"encoding/json"
	"testing"
	"time"

	"github.com/cohort-tee/cohort/identity"
	"github.com/cohort-tee/cohort/internal/api"
	"github.com/cohort-tee/cohort/internal/testworld"
	"github.com/cohort-tee/cohort/internal/wire"
	"github.com/cohort-tee/cohort/unit/unittest"
)

// continued returns a world where the scoring release continues another release, with the
// ring keys that it inherits.
func continued(t *testing.T) (*unittest.World, *api.InheritedRing) {
	t.Helper()
	w := unittest.New(t, "1h").Edited("[task.scoring.release.\"1\"]\n", "[task.scoring.release.\"0\"]\n"+
		"reference = [ { platform = \"soft\", program = \"zero\" } ]\n[task.scoring.release.\"1\"]\ncontinues = \"0\"\n")
	id, err := identity.ReleaseID(w.Policy(), "scoring", "0")
	testworld.NoError(t, err)
	return w, &api.InheritedRing{Identity: id, RingKeys: unittest.RingKeys(0x30, time.Now())}
}

// TestRings: the keys of a unit are those of its report.
func TestRings(t *testing.T) {
	w, inherited := continued(t)
	f := w.Authority(w.AuthorityKeys)
	want := unittest.Rings(time.Now())
	want.Inherited = inherited
	f.Faults.Report = func(r *api.Report) { r.Rings = want }
	u := started(w, "scoring", f)
	e := u.enrolled.Load()
	same := func(kind string, got identity.RingKeys, want api.RingKeys) {
		t.Helper()
		for _, pair := range []struct {
			got  *identity.RingKey
			want *api.RingKey
		}{{got.Previous, want.Previous}, {got.Current, want.Current}, {got.Next, want.Next}} {
			if !bytes.Equal(pair.got.Expose(), pair.want.Key) || !pair.got.Expires().Equal(pair.want.End) {
				t.Errorf("%s: got %x until %v, want %x until %v", kind, pair.got.Expose(), pair.got.Expires(), pair.want.Key, pair.want.End)
			}
		}
	}
	same("strict", e.ring.Strict, want.Strict)
	same("follow", e.ring.Follow, want.Follow)
	same("inherited", e.ring.Inherited.Keys, want.Inherited.RingKeys)
	if got, want := e.ring.Inherited.Identity, want.Inherited.Identity; got != want {
		t.Errorf("got keys inherited from %v, want %v", got, want)
	}
	if len(e.unit) == 0 {
		t.Error("got no unit certificate")
	}
}

// TestRingsRefused: one change to the keys of a valid report, and the unit refuses it.
func TestRingsRefused(t *testing.T) {
	for _, row := range []struct {
		name   string
		change func(*api.Rings)
		want   wire.Reason
	}{
		{"no strict key", func(r *api.Rings) { r.Strict.Current = nil }, wire.Malformed},
		{"no follow key", func(r *api.Rings) { r.Follow.Current = nil }, wire.Malformed},
		{"key too short", func(r *api.Rings) { r.Strict.Next.Key = r.Strict.Next.Key[1:] }, wire.Malformed},
		{"key of zeros", func(r *api.Rings) { clear(r.Follow.Previous.Key) }, wire.Malformed},
		{"key without an end", func(r *api.Rings) { r.Follow.Current.End = time.Time{} }, wire.Malformed},
		{"inherited from nobody", func(r *api.Rings) { r.Inherited.Identity = wire.Digest{} }, wire.WrongIdentity},
		{"inherited from another", func(r *api.Rings) { r.Inherited.Identity[0] ^= 1 }, wire.WrongIdentity},
		{"inherited without keys", func(r *api.Rings) { r.Inherited.RingKeys = api.RingKeys{} }, wire.Malformed},
		{"inherited key too long", func(r *api.Rings) { r.Inherited.Previous.Key = append(r.Inherited.Previous.Key, 1) }, wire.Malformed},
	} {
		t.Run(row.name, func(t *testing.T) {
			w, inherited := continued(t)
			f := w.Authority(w.AuthorityKeys)
			f.Faults.Report = func(r *api.Report) {
				r.Rings.Inherited = inherited
				row.change(&r.Rings)
			}
			_, err := Start(testworld.ShortContext(t), configOf(w, "scoring", f))
			testworld.Refused(t, err, row.want)
		})
	}
}

// TestInheritedWithoutContinues: a release that continues no other refuses inherited keys.
func TestInheritedWithoutContinues(t *testing.T) {
	w := unittest.New(t, "1h")
	f := w.Authority(w.AuthorityKeys)
	f.Faults.Report = func(r *api.Report) {
		r.Rings.Inherited = &api.InheritedRing{Identity: r.Identity, RingKeys: unittest.RingKeys(0x30, time.Now())}
	}
	_, err := Start(testworld.ShortContext(t), configOf(w, "scoring", f))
	testworld.Refused(t, err, wire.WrongIdentity)
}

// FuzzRings parses ring keys of a report: accepted keys equal the parsed input.
func FuzzRings(f *testing.F) {
	seed, err := json.Marshal(unittest.RingKeys(0x10, time.Unix(1e9, 0)))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(seed)
	f.Add([]byte(`{"current":{"key":"AQ==","end":"2026-01-01T00:00:00Z"}}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		var from api.RingKeys
		if json.Unmarshal(b, &from) != nil {
			return
		}
		keys, err := openRing(from)
		if err != nil {
			return
		}
		for _, pair := range []struct {
			got  *identity.RingKey
			want *api.RingKey
		}{{keys.Previous, from.Previous}, {keys.Current, from.Current}, {keys.Next, from.Next}} {
			if (pair.got == nil) != (pair.want == nil) {
				t.Fatalf("got key %v, want %v", pair.got, pair.want)
			}
			if pair.got != nil && (!bytes.Equal(pair.got.Expose(), pair.want.Key) || !pair.got.Expires().Equal(pair.want.End)) {
				t.Errorf("got another key or end than %v", pair.want)
			}
		}
	})
}

// TestRingsAfterACut: a unit's second report has ring keys that do not follow its current
// ones. If the authority has restarted, the unit keeps the former keys to open sessions;
// after a cut it does not.
func TestRingsAfterACut(t *testing.T) {
	for _, row := range []struct {
		name, old, new string
		kept           bool
	}{
		{"started again", `env = { LANG = "C" }`, `env = { LANG = "D" }`, true},
		{"a cut", "[task.scoring]\n", "[task.scoring]\ncut_units = [\"" + wire.UnitID{1}.String() + "\"]\n", false},
	} {
		t.Run(row.name, func(t *testing.T) {
			w := unittest.New(t, "1h")
			f := w.Authority(w.AuthorityKeys)
			f.Spread = 0
			give := func(first byte) {
				rings := api.Rings{Strict: unittest.RingKeys(first, time.Now()), Follow: unittest.RingKeys(first+0x10, time.Now())}
				rings.Strict.Previous, rings.Follow.Previous = nil, nil
				f.Set(func(f *unittest.Authority) { f.Faults.Report = func(r *api.Report) { r.Rings = rings } })
			}
			give(0x10)
			u := started(w, "scoring", f)
			first := u.enrolled.Load()
			give(0x50)
			w = w.Edited(row.old, row.new)
			f.Step(w)
			testworld.Within(t, 5*time.Second, "the unit renews", func() bool { return u.enrolled.Load() != first })
			second := u.enrolled.Load()
			for kind, keys := range map[string][2]identity.RingKeys{"strict": {first.ring.Strict, second.ring.Strict}, "follow": {first.ring.Follow, second.ring.Follow}} {
				if previous := keys[1].Previous; (previous != nil) != row.kept || row.kept && previous.ID() != keys[0].Current.ID() {
					t.Errorf("%s: got a previous key %v, want one %v", kind, previous != nil, row.kept)
				}
			}
			want := 4
			if row.kept {
				want = 6
			}
			if got := u.cluster.host.Stats(u.currentTime()).Rings; got != want {
				t.Errorf("the channel holds %d ring keys, want %d", got, want)
			}
		})
	}
}
