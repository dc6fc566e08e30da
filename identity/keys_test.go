package identity

import (
	"bytes"
	"encoding/gob"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"log/slog"
	"testing"

	"github.com/cohort-tee/cohort/internal/testworld"
	"github.com/cohort-tee/cohort/internal/wire"
)

func TestSecretIsNeverPrinted(t *testing.T) {
	raw := bytes.Repeat([]byte{0xA7}, 32)
	secret := testworld.Must(OpenSecret(raw))
	keys := testworld.Must(Derive(secret))
	type nested struct {
		secret Secret
		keys   Keys
	}
	var out bytes.Buffer
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%x", "%X", "%d", "%q", "%o"} {
		fmt.Fprintf(&out, verb+verb+verb+verb, secret, &secret, keys, *keys)
		fmt.Fprintf(&out, verb+verb, nested{secret, *keys}, &nested{secret, *keys})
	}
	for _, h := range []slog.Handler{slog.NewTextHandler(&out, nil), slog.NewJSONHandler(&out, nil)} {
		slog.New(h).Info("x", "secret", secret, "nested", nested{secret, *keys}, "keys", keys)
	}
	nonceKey := testworld.Must(keys.secret.deriveBytes(wire.LabelNonceKey))
	forms := []string{"a7a7", "A7A7", "167 167", "0xa7, 0xa7", `\xa7`, "247 247", // of the secret, in every number base
		fmt.Sprint(nonceKey), fmt.Sprintf("%x", nonceKey), fmt.Sprintf("%X", nonceKey), string(nonceKey)}
	for _, s := range forms {
		if bytes.Contains(out.Bytes(), []byte(s)) {
			t.Errorf("got %q in the output, want no byte of the secret", s)
		}
	}
	if got := fmt.Sprintf("%v %#v %x", secret, secret, secret); got != "secret secret secret" {
		t.Errorf("got %q, want %q", got, "secret secret secret")
	}
}

func TestSecretIsNotMarshalled(t *testing.T) {
	secret := secretOf('s')
	if b, err := json.Marshal(secret); err == nil {
		t.Errorf("json: got %s, want an error", b)
	}
	if b, err := json.Marshal(map[string]any{"s": &secret}); err == nil {
		t.Errorf("json: got %s, want an error", b)
	}
	if b, err := secret.MarshalText(); err == nil {
		t.Errorf("text: got %s, want an error", b)
	}
	if err := gob.NewEncoder(new(bytes.Buffer)).Encode(secret); err == nil {
		t.Error("gob: got no error, want one")
	}
}

func TestSecret(t *testing.T) {
	raw := bytes.Repeat([]byte{1}, 32)
	secret := testworld.Must(OpenSecret(raw))
	raw[0] = 9
	secret.Expose()[1] = 9
	if got, want := secret.Expose(), bytes.Repeat([]byte{1}, 32); !bytes.Equal(got, want) {
		t.Errorf("got %x, want %x: the secret shares memory with its caller", got, want)
	}
	if a, b := NewSecret().Expose(), NewSecret().Expose(); bytes.Equal(a, b) {
		t.Errorf("got %x twice, want two secrets", a)
	}
	for _, b := range [][]byte{nil, make([]byte, 32), bytes.Repeat([]byte{1}, 31), bytes.Repeat([]byte{1}, 33)} {
		_, err := OpenSecret(b)
		testworld.Refused(t, err, wire.StoreForeign)
	}
	_, err := Derive(Secret{})
	testworld.Refused(t, err, wire.StoreForeign)
}

// TestKeysAreApart derives values for every label, with the same fields, from two secrets. No two
// of them are equal.
func TestKeysAreApart(t *testing.T) {
	seen := map[string]string{}
	add := func(name string, b []byte) {
		t.Helper()
		if other, ok := seen[string(b)]; ok {
			t.Errorf("got the same bytes for %s and %s, want others", name, other)
		}
		seen[string(b)] = name
	}
	for _, seed := range []byte("ab") {
		k := testworld.Must(Derive(secretOf(seed)))
		for _, label := range []wire.Label{wire.LabelRootKey, wire.LabelIdentityKey, wire.LabelLeafKey, wire.LabelSignerKey} {
			for _, fields := range [][][]byte{nil, {{1}}, {{1}, {2}}, {{1, 2}}} {
				key := testworld.Must(k.secret.deriveSigningKey(label, fields...))
				add(fmt.Sprintf("%c %s %x", seed, label, fields), testworld.Must(key.Bytes()))
			}
		}
		add(string(seed)+" nonce mac", k.NonceMAC([]byte("x")))
		add(string(seed)+" nonce mac, two fields", k.NonceMAC([]byte("x"), nil))
		add(string(seed)+" row mac", k.RowMAC(wire.LabelRow, []byte("x")))
		add(string(seed)+" adopted mac", k.RowMAC(wire.LabelAdopted, []byte("x")))
		add(string(seed)+" row mac under the nonce label", k.RowMAC(wire.LabelNonce, []byte("x")))
	}
}

// TestFieldsAreNotKept: derivation appends a counter, and does not write it into the caller's
// memory.
func TestFieldsAreNotKept(t *testing.T) {
	k := testworld.Must(Derive(secretOf('a')))
	fields := make([][]byte, 1, 2)
	fields[0] = []byte("x")
	testworld.Must(k.secret.deriveSigningKey(wire.LabelLeafKey, fields...))
	if got := fields[:2][1]; got != nil {
		t.Errorf("got %s behind the caller's fields, want nothing", hex.EncodeToString(got))
	}
}
