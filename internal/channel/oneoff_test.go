package channel

import (
	"bytes"
	"crypto/hpke"
	"encoding/binary"
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/cohort-tee/cohort/internal/bhttp"
	"github.com/cohort-tee/cohort/internal/ohttp"
	"github.com/cohort-tee/cohort/internal/testworld"
	"github.com/cohort-tee/cohort/internal/unitauth"
	"github.com/cohort-tee/cohort/internal/wire"
)

// x25519 returns a key configuration without its first key.
func x25519(k unitauth.OHTTPKeys) unitauth.OHTTPKeys {
	return testworld.Must(unitauth.UnverifiedOHTTPKeys(k.Plain[2+binary.BigEndian.Uint16(k.Plain):]))
}

// TestOneOffKeysEnd: a unit opens one-off requests under every ring key that it has, and under
// none that was erased or has expired.
func TestOneOffKeysEnd(t *testing.T) {
	w := newWorld(t)
	key := newKey()
	h := testworld.Must(NewHost(key, Limits{}))
	stand := func() {
		t.Helper()
		if err := h.Update(w.standing(key, "1")); err != nil {
			t.Fatal(err)
		}
	}
	stand()
	keys := func() unitauth.OHTTPKeys {
		signed, _, err := h.OHTTPKeys(w.byTask(), w.clock.Now())
		if err != nil {
			t.Fatal(err)
		}
		return x25519(testworld.Must(unitauth.VerifyOHTTPKeys(signed, w.byTask(), w.trust(), w.clock.Now())))
	}
	first := sealedOneOff(keys(), ohttp.Whole, "/")
	opens := func() error {
		x, err := h.OpenOHTTP(ohttp.Whole, bytes.NewReader(first), w.clock.Now())
		if err == nil { // by chance, another ring key may have the same key id
			_, _, err = x.body.ReadHead(bhttp.ParseRequest)
		}
		return err
	}
	gone := func() {
		t.Helper()
		if err := opens(); !errors.Is(err, wire.OneOffKey) && !errors.Is(err, wire.BadSignature) {
			t.Errorf("got %v, want nobody to hold the key", err)
		}
	}
	roll := func() {
		w.ring.Follow = w.ring.Follow.Rotate(w.clock.Now(), time.Hour)
		stand()
	}
	roll()
	if err := opens(); err != nil {
		t.Errorf("under the previous key: %v", err)
	}
	w.ring.Follow.Previous = w.ring.Follow.Previous.Until(w.clock.Now())
	stand()
	if w.clock.Now().Before(w.ring.Follow.Previous.Expires()) {
		t.Fatal("the previous key has not ended")
	}
	gone()
	roll()
	gone()
	first = sealedOneOff(keys(), ohttp.Whole, "/")
	if err := opens(); err != nil {
		t.Errorf("under the current key: %v", err)
	}
	for id, r := range h.credentials.rings {
		r.erase()
		if r.oneOffs != [len(ohttp.KEMs)]hpke.PrivateKey{} {
			t.Errorf("ring %s keeps one-off keys", id)
		}
	}
	gone()
}

// TestSignedKeysRefusals changes each field of a signed key configuration. Each change is
// refused.
func TestSignedKeysRefusals(t *testing.T) {
	w := newWorld(t)
	h := w.host(Limits{})
	signed, plain, err := h.OHTTPKeys(w.byTask(), noon)
	if err != nil {
		t.Fatal(err)
	}
	strict, _, _ := h.OHTTPKeys(w.byID(), noon)
	f := testworld.Must(wire.Unframe(wire.LabelOneOffKeys, signed, 8))
	with := func(i int, b []byte) []byte {
		g := slices.Clone(f)
		g[i] = b
		return wire.Frame(wire.LabelOneOffKeys, g...)
	}
	if k, err := unitauth.VerifyOHTTPKeys(signed, w.byTask(), w.trust(), noon); err != nil || !bytes.Equal(k.Plain, plain) || k.Unit.UnitID() != h.ID() || !k.Expires.Equal(noon.Add(time.Hour)) {
		t.Fatalf("got %v until %v, %v", k.Unit.UnitID(), k.Expires, err)
	}
	thief := w.host(Limits{})
	evil, _, _ := thief.OHTTPKeys(w.byTask(), noon)
	other := testworld.Must(wire.Unframe(wire.LabelOneOffKeys, evil, 8))
	long := wire.Uint64(uint64(noon.Add(3 * time.Hour).Unix()))
	for _, row := range []struct {
		name string
		b    []byte
		at   time.Duration
		want wire.Reason
	}{
		{"nothing", nil, 0, wire.Malformed},
		{"too large", make([]byte, unitauth.MaxSignedKeys+1), 0, wire.TooLarge},
		{"a short identity", with(1, f[1][1:]), 0, wire.Malformed},
		{"a large chain", with(6, make([]byte, unitauth.MaxChain+1)), 0, wire.TooLarge},
		{"the configuration of another pin", strict, 0, wire.WrongIdentity},
		{"a pin put in", with(0, testworld.Must(wire.Unframe(wire.LabelOneOffKeys, strict, 8))[0]), 0, wire.WrongIdentity},
		{"another identity", with(1, flip(bytes.Clone(f[1]))), 0, wire.WrongIdentity},
		{"another ring", with(2, flip(bytes.Clone(f[2]))), 0, wire.BadSignature},
		{"an unknown head", with(3, flip(bytes.Clone(f[3]))), 0, wire.Behind},
		{"no head", with(3, make([]byte, 32)), 0, wire.Malformed},
		{"a later expiry", with(4, long), 0, wire.Expired},
		{"an earlier expiry", with(4, wire.Uint64(uint64(noon.Unix()+1))), 0, wire.BadSignature},
		{"expired", signed, time.Hour, wire.Expired},
		{"somebody's keys", with(5, flip(bytes.Clone(f[5]))), 0, wire.BadSignature},
		{"keys left out", with(5, x25519(unitauth.OHTTPKeys{Plain: plain}).Plain), 0, wire.BadSignature},
		{"another unit's chain", with(6, other[6]), 0, wire.BadSignature},
		{"another signature", with(7, flip(bytes.Clone(f[7]))), 0, wire.BadSignature},
	} {
		if _, err := unitauth.VerifyOHTTPKeys(row.b, w.byTask(), w.trust(), noon.Add(row.at)); wire.ReasonOf(err) != row.want {
			t.Errorf("%s: got %v, want %v", row.name, err, row.want)
		}
	}
	trust := w.trust()
	trust.Policy = newWorld(t).policy
	_, err = unitauth.VerifyOHTTPKeys(signed, w.byTask(), trust, noon)
	testworld.Refused(t, err, wire.Behind)
}

// TestPlainKeysRefusals: malformed key configurations are refused; unknown algorithms are
// skipped.
func TestPlainKeysRefusals(t *testing.T) {
	w := newWorld(t)
	_, plain, err := w.host(Limits{}).OHTTPKeys(w.byTask(), noon)
	if err != nil {
		t.Fatal(err)
	}
	list := func(keys ...[]byte) (b []byte) {
		for _, k := range keys {
			b = append(binary.BigEndian.AppendUint16(b, uint16(len(k))), k...)
		}
		return b
	}
	hybrid := plain[2 : 2+binary.BigEndian.Uint16(plain)]
	short := plain[2+len(hybrid)+2:]
	unknown := append([]byte{1, 0, 0x10}, make([]byte, 65+6)...)
	edit := func(f func([]byte)) []byte { b := bytes.Clone(short); f(b); return b }
	for _, row := range []struct {
		name string
		b    []byte
		want wire.Reason
	}{
		{"both", plain, ""},
		{"one of an unknown KEM first", list(unknown, short), ""},
		{"nothing", nil, wire.Malformed},
		{"too large", make([]byte, 4<<10+1), wire.TooLarge},
		{"unknown KEMs alone", list(unknown), wire.Malformed},
		{"a cut length", []byte{0}, wire.Malformed},
		{"cut", plain[:len(plain)-1], wire.Malformed},
		{"more behind", append(bytes.Clone(plain), 0), wire.Malformed},
		{"two bytes", list([]byte{1, 2}), wire.Malformed},
		{"no algorithms", list(edit(func(b []byte) { b[35], b[36] = 0, 0 })[:37]), wire.Malformed},
		{"half a pair", list(edit(func(b []byte) { b[36] = 6 })[:43]), wire.Malformed},
		{"unknown algorithms alone", list(edit(func(b []byte) { b[38], b[42] = 9, 9 })), wire.Malformed},
		{"a key that is none", list(append(append([]byte{1, 0x64, 0x7a}, bytes.Repeat([]byte{0xff}, kemKeySize)...), 0, 4, 0, 1, 0, 2)), wire.Malformed},
	} {
		_, err := unitauth.UnverifiedOHTTPKeys(row.b)
		if row.want == "" && err != nil || row.want != "" && wire.ReasonOf(err) != row.want {
			t.Errorf("%s: got %v, want %v", row.name, err, row.want)
		}
	}
}

// FuzzOneOffKeys: every accepted input is a key list with a usable key.
func FuzzOneOffKeys(f *testing.F) {
	w := newWorld(f)
	_, plain, err := w.host(Limits{}).OHTTPKeys(w.byTask(), noon)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(plain)
	f.Add(x25519(unitauth.OHTTPKeys{Plain: plain}).Plain)
	f.Fuzz(func(t *testing.T, b []byte) {
		k, err := unitauth.UnverifiedOHTTPKeys(b)
		if err == nil && (k.Key.Public == nil || !bytes.Equal(k.Plain, b)) {
			t.Error("accepted without a key")
		}
	})
}
