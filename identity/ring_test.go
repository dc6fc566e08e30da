package identity

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/cohort-tee/cohort/internal/testworld"
	"github.com/cohort-tee/cohort/internal/wire"
)

func ringKeyOf(seed byte) *RingKey {
	return testworld.Must(OpenRingKey(bytes.Repeat([]byte{seed}, 32), noon))
}

func TestRingIDsNameKeys(t *testing.T) {
	k := ringKeyOf(1)
	want := wire.Hash(wire.LabelRingID, bytes.Repeat([]byte{1}, 32))
	if got := k.ID(); got.String() != want.Hex()[:32] || got == ringKeyOf(2).ID() {
		t.Errorf("got %v, want %s", got, want.Hex()[:32])
	}
	if !k.Expires().Equal(noon) || !k.Until(noon.Add(1)).Expires().Equal(noon.Add(1)) || k.Until(noon.Add(1)).ID() != k.ID() {
		t.Error("another end, or another key")
	}
	if a, b := NewRingKey(noon), NewRingKey(noon); a.ID() == b.ID() {
		t.Error("two fresh keys are one")
	}
}

func TestOpenRingKeyRefusals(t *testing.T) {
	for name, b := range map[string][]byte{"nothing": nil, "zeros": make([]byte, 32), "short": bytes.Repeat([]byte{1}, 31), "long": bytes.Repeat([]byte{1}, 33)} {
		if _, err := OpenRingKey(b, noon); !errors.Is(err, wire.Malformed) {
			t.Errorf("%s: got %v, want %v", name, err, wire.Malformed)
		}
	}
	if _, err := OpenRingKey(bytes.Repeat([]byte{1}, 32), time.Time{}); !errors.Is(err, wire.Malformed) {
		t.Errorf("no end: got %v, want %v", err, wire.Malformed)
	}
}

// TestRingKeysDerive: different labels and fields derive different keys.
func TestRingKeysDerive(t *testing.T) {
	k := ringKeyOf(1)
	seen := map[string]string{}
	for name, derive := range map[string]func() ([]byte, error){
		"one":           func() ([]byte, error) { return k.Derive(32, wire.LabelSealKey, []byte("a")) },
		"another label": func() ([]byte, error) { return k.Derive(32, wire.LabelCookieKey, []byte("a")) },
		"another field": func() ([]byte, error) { return k.Derive(32, wire.LabelSealKey, []byte("b")) },
		"two fields":    func() ([]byte, error) { return k.Derive(32, wire.LabelSealKey, []byte("a"), nil) },
		"another key":   func() ([]byte, error) { return ringKeyOf(2).Derive(32, wire.LabelSealKey, []byte("a")) },
	} {
		b := hex.EncodeToString(testworld.Must(derive()))
		if other, taken := seen[b]; taken {
			t.Errorf("%s and %s are one", name, other)
		}
		seen[b] = name
	}
}

func TestErasedRingKeys(t *testing.T) {
	k := ringKeyOf(1)
	k.Erase()
	k.Erase()
	if !bytes.Equal(k.Expose(), make([]byte, 32)) {
		t.Error("an erased key is still there")
	}
	if _, err := k.Derive(32, wire.LabelSealKey); !errors.Is(err, wire.UnknownRing) {
		t.Errorf("got %v, want %v", err, wire.UnknownRing)
	}
}

func TestRingKeysDoNotPrint(t *testing.T) {
	k := ringKeyOf(0x41)
	r := Ring{Strict: RingKeys{Current: k}}
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%x", "%q", "%d"} {
		for _, s := range []string{fmt.Sprintf(verb, k), fmt.Sprintf(verb, r), fmt.Sprintf(verb, &r)} {
			if strings.Contains(s, "AAAA") || strings.Contains(s, "4141") || strings.Contains(s, "65 65") {
				t.Errorf("%s prints %s", verb, s)
			}
		}
	}
	if b, err := json.Marshal(r); err == nil {
		t.Errorf("marshalled to %s", b)
	}
}

// TestRolls follows two keys from their creation through a roll to their expiry.
func TestRolls(t *testing.T) {
	const life = time.Hour
	a := NewRingKeys(noon, life)
	if a.Previous != nil || !a.Current.Expires().Equal(noon.Add(2*life)) || len(a.Keys()) != 2 {
		t.Errorf("fresh: got %d keys, end %v", len(a.Keys()), a.Current.Expires())
	}
	b := a.Rotate(noon.Add(life), life)
	if b.Previous.ID() != a.Current.ID() || b.Current.ID() != a.Next.ID() || b.Next.ID() == a.Next.ID() || len(b.Keys()) != 3 {
		t.Error("a roll moves the keys otherwise")
	}
	if !b.Previous.Expires().Equal(noon.Add(2*life)) || !b.Current.Expires().Equal(noon.Add(3*life)) {
		t.Errorf("got ends %v and %v", b.Previous.Expires(), b.Current.Expires())
	}
	if got := b.WithoutExpired(noon.Add(2*life - 1)); got.Previous == nil {
		t.Error("previous is gone while sessions live")
	}
	if got := b.WithoutExpired(noon.Add(2 * life)); got.Previous != nil {
		t.Error("previous outlives its sessions")
	}
	if RingLifetime(10*time.Minute) != 20*time.Minute || RingLifetime(24*time.Hour) != time.Hour {
		t.Error("ring life is not min(1 h, 2 lives)")
	}
}
