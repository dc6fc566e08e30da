package attest_test

import (
	"bytes"
	"errors"
	"slices"
	"testing"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/attest/attesttest"
	"github.com/cohort-tee/cohort/internal/wire"
)

// TestOwnKey: a program's own key unseals what it sealed for its own measurement, whichever other
// measurements were named.
func TestOwnKey(t *testing.T) {
	own, other := attesttest.MeasureSNP("own"), attesttest.MeasureSNP("other")
	key := attest.OwnKey{Key: bytes.Repeat([]byte{7}, 16), Measurement: own}
	for _, to := range [][]attest.ReferenceValue{nil, {own}, {other, own}} {
		sealed, err := key.Seal([]byte("root"), to)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := key.Unseal(sealed); err != nil || string(got) != "root" {
			t.Errorf("got %q, %v", got, err)
		}
	}
}

func TestOwnKeyRefusals(t *testing.T) {
	own, other := attesttest.MeasureSNP("own"), attesttest.MeasureSNP("other")
	hostData := attesttest.MeasureSNP("own")
	hostData.Registers[1].Value = bytes.Repeat([]byte{1}, 32)
	key := attest.OwnKey{Key: bytes.Repeat([]byte{7}, 16), Measurement: own}
	sealed, err := key.Seal([]byte("root"), nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name   string
		key    attest.OwnKey
		sealed []byte
		want   wire.Reason
	}{
		{"another chip", attest.OwnKey{Key: bytes.Repeat([]byte{8}, 16), Measurement: own}, sealed, wire.BadSignature},
		{"other host data under one launch digest", attest.OwnKey{Key: key.Key, Measurement: hostData}, sealed, wire.BadSignature},
		{"a changed byte", key, append(slices.Clone(sealed[:len(sealed)-1]), sealed[len(sealed)-1]^1), wire.BadSignature},
		{"cut short", key, sealed[:len(sealed)-1], wire.Malformed},
		{"no key", attest.OwnKey{Measurement: own}, sealed, wire.NotThisDevice},
	} {
		if got, err := tt.key.Unseal(tt.sealed); !errors.Is(err, tt.want) || got != nil {
			t.Errorf("%s: got %q, %v, want reason %q", tt.name, got, err, tt.want)
		}
	}
	if _, err := key.Seal([]byte("root"), []attest.ReferenceValue{other}); !errors.Is(err, wire.NotThisDevice) {
		t.Errorf("to another program alone: %v", err)
	}
	if _, err := key.Seal(make([]byte, wire.MaxSealed+1), nil); !errors.Is(err, wire.TooLarge) {
		t.Errorf("too large: %v", err)
	}
	if _, err := (attest.NoSealer{Platform: attest.TDX}).Seal(t.Context(), nil, nil); !errors.Is(err, wire.NotThisDevice) {
		t.Errorf("a platform that seals nothing: %v", err)
	}
	if _, err := (attest.NoSealer{Platform: attest.Nitro}).Unseal(t.Context(), sealed); !errors.Is(err, wire.NotThisDevice) {
		t.Errorf("a platform that seals nothing: %v", err)
	}
}
