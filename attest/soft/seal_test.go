package soft

import (
	"bytes"
	"crypto/rand"
	"errors"
	"testing"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/internal/wire"
)

func program(name string) attest.Measurement {
	return Statement{Program: wire.Sum([]byte(name)), Arguments: Arguments(nil)}.Measurement()
}

func newSealingKey() []byte {
	key := make([]byte, SealingKeySize)
	rand.Read(key)
	return key
}

func mustSeal(t testing.TB, key []byte, to ...attest.ReferenceValue) []byte {
	t.Helper()
	sealed, err := Seal(key, []byte("secret"), program("me"), to)
	if err != nil {
		t.Fatal(err)
	}
	return sealed
}

func TestSealing(t *testing.T) {
	key := newSealingKey()
	anyProgram := program("me")
	anyProgram.Registers[1] = attest.Register{Name: "program", Any: true}
	for _, c := range []struct {
		name   string
		key    []byte
		sealed []byte
		caller attest.Measurement
		want   error
	}{
		{"own measurement", key, mustSeal(t, key), program("me"), nil},
		{"another program", key, mustSeal(t, key), program("you"), wire.NotMeasured},
		{"a set with it", key, mustSeal(t, key, program("a"), program("b")), program("b"), nil},
		{"a set without the sealer", key, mustSeal(t, key, program("a"), program("b")), program("me"), wire.NotMeasured},
		{"any program", key, mustSeal(t, key, anyProgram), program("you"), nil},
		{"no measurement", key, mustSeal(t, key), attest.Measurement{}, wire.NotMeasured},
		{"another daemon", newSealingKey(), mustSeal(t, key), program("me"), wire.BadSignature},
		{"nothing", key, nil, program("me"), wire.Malformed},
		{"evidence", key, sign(t, newKey(t), goodStatement()), program("me"), wire.Malformed},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := Unseal(c.key, c.sealed, c.caller)
			if !errors.Is(err, c.want) {
				t.Fatalf("got %v, want %v", err, c.want)
			}
			if c.want == nil && string(got) != "secret" {
				t.Errorf("got %q, want the secret", got)
			}
			if c.want != nil && got != nil {
				t.Errorf("refused with %q", got)
			}
		})
	}
}

func TestEveryBitOfASealedSecretIsCovered(t *testing.T) {
	key := newSealingKey()
	sealed := mustSeal(t, key)
	for i := range sealed {
		for bit := range 8 {
			sealed[i] ^= 1 << bit
			if _, err := Unseal(key, sealed, program("me")); err == nil {
				t.Errorf("byte %d bit %d flipped: accepted", i, bit)
			}
			sealed[i] ^= 1 << bit
		}
	}
}

func TestSealingSizes(t *testing.T) {
	key := newSealingKey()
	if _, err := Seal(key, make([]byte, wire.MaxSealed), program("me"), nil); err != nil {
		t.Errorf("64 KiB: %v", err)
	}
	if _, err := Seal(key, make([]byte, wire.MaxSealed+1), program("me"), nil); !errors.Is(err, wire.TooLarge) {
		t.Errorf("64 KiB and one byte: got %v, want %v", err, wire.TooLarge)
	}
	to := make([]attest.ReferenceValue, 1000)
	for i := range to {
		to[i] = program("me")
	}
	if _, err := Seal(key, nil, program("me"), to); !errors.Is(err, wire.TooLarge) {
		t.Errorf("1000 reference values: got %v, want %v", err, wire.TooLarge)
	}
	if _, err := Seal(key[:16], nil, program("me"), nil); !errors.Is(err, wire.Internal) {
		t.Errorf("a short key: got %v, want %v", err, wire.Internal)
	}
}

func TestSealingTwiceDiffers(t *testing.T) {
	key := newSealingKey()
	if bytes.Equal(mustSeal(t, key), mustSeal(t, key)) {
		t.Error("two seals of one secret are equal")
	}
}
