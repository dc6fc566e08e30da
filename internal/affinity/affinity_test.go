package affinity

import (
	"encoding/json"
	"flag"
	"fmt"
	"math"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/cohort-tee/cohort/internal/testworld"
	"github.com/cohort-tee/cohort/internal/wire"
)

var update = flag.Bool("update", false, "write the vectors anew")

func itself(u wire.UnitID) wire.UnitID { return u }

// unitsOf returns units with distinct ids.
func unitsOf(n int) (units []wire.UnitID) {
	for i := range n {
		digest := wire.Sum([]byte{byte(i), byte(i >> 8)})
		units = append(units, wire.UnitID(digest[:16]))
	}
	return units
}

// first returns the first unit for a key.
func first(k Key, units []wire.UnitID) wire.UnitID {
	sorted := slices.Clone(units)
	Sort(k, sorted, itself)
	return sorted[0]
}

// vector is one key with the order of the units.
type vector struct {
	Key    Key           `json:"key"`
	Units  []wire.UnitID `json:"units"`  // in the order of the key
	Scores []string      `json:"scores"` // of each, 16 hexadecimal digits
}

// TestVectors: the order of units for a key is that of the vectors, so that other implementations
// select the same units.
func TestVectors(t *testing.T) {
	const file = "testdata/vectors/order.json"
	var made []vector
	for _, k := range []Key{"a", "conversation-1", "AAAAAAAAAAAAAAAAAAAAAA", Key(strings.Repeat("z", maxKey))} {
		v := vector{Key: k, Units: unitsOf(5)}
		Sort(k, v.Units, itself)
		for _, u := range v.Units {
			v.Scores = append(v.Scores, fmt.Sprintf("%016x", k.Score(u)))
		}
		made = append(made, v)
	}
	if *update {
		if err := os.WriteFile(file, append(testworld.Must(json.MarshalIndent(made, "", "  ")), '\n'), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	var want []vector
	if err := json.Unmarshal(testworld.Must(os.ReadFile(file)), &want); err != nil {
		t.Fatal(err)
	}
	if len(want) != len(made) {
		t.Fatalf("got %d vectors, want %d", len(want), len(made))
	}
	for i, v := range want {
		if got := made[i]; got.Key != v.Key || !slices.Equal(got.Units, v.Units) || !slices.Equal(got.Scores, v.Scores) {
			t.Errorf("%s: got %v, want %v", v.Key, got, v)
		}
	}
}

// TestParseKey: a field of another form is no key.
func TestParseKey(t *testing.T) {
	for _, field := range []string{"a", "_-09AZaz", strings.Repeat("x", maxKey)} {
		if ParseKey(field) != Key(field) {
			t.Errorf("%q is no key", field)
		}
	}
	for _, field := range []string{"", " a", "a b", "a,b", "a=", "a+", "a/", "ä", "a\r\nb", "a\x00", strings.Repeat("x", maxKey+1), strings.Repeat("x", 1<<16)} {
		if got := ParseKey(field); got != "" {
			t.Errorf("%.80q: got %q, want none", field, got)
		}
	}
}

// FuzzParseKey: what is a key is the field itself, and safe in a header field.
func FuzzParseKey(f *testing.F) {
	f.Add("a")
	f.Fuzz(func(t *testing.T, field string) {
		if k := ParseKey(field); k != "" && (string(k) != field || ParseKey(string(k)) != k || strings.ContainsAny(field, " ,;\r\n\x00")) {
			t.Fatalf("%q became %q", field, k)
		}
	})
}

// TestSpread: keys are spread evenly over units, and when a unit leaves or joins, only its own
// keys move.
func TestSpread(t *testing.T) {
	const keys, n = 20_000, 10
	units, counts, moved := unitsOf(n), map[wire.UnitID]int{}, 0
	for i := range keys {
		k := Key(fmt.Sprint("key-", i))
		before, after := first(k, units), first(k, units[1:])
		counts[before]++
		if before != after {
			moved++
			if before != units[0] {
				t.Fatalf("key %s left unit %v, which stays", k, before)
			}
		}
	}
	mean := float64(keys) / n
	for unit, got := range counts {
		if math.Abs(float64(got)-mean) > 6*math.Sqrt(mean) {
			t.Errorf("unit %v has %d of %d keys, want about %.0f", unit, got, keys, mean)
		}
	}
	if moved != counts[units[0]] || len(counts) != n {
		t.Errorf("%d keys moved and %d units have keys, want %d and %d", moved, len(counts), counts[units[0]], n)
	}
}

// TestBlind: a Blinder returns one key for one name, another for any other name, and no other
// Blinder returns the same.
func TestBlind(t *testing.T) {
	var a, b Blinder
	const name = "user@example.com"
	k := a.Blind(name)
	if ParseKey(string(k)) != k || len(k) != 22 || k != a.Blind(name) {
		t.Errorf("got %q, then %q", k, a.Blind(name))
	}
	if k == b.Blind(name) || k == a.Blind(name+"x") || strings.Contains(string(k), "user") {
		t.Error("the key tells the name")
	}
	if a.Blind("") != "" {
		t.Error("an empty name has a key")
	}
	if long := a.Blind(strings.Repeat("x", 1<<16)); ParseKey(string(long)) != long || long == "" {
		t.Errorf("a long name: got %q", long)
	}
}
