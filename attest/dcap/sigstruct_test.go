package dcap

import (
	"bytes"
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"math/big"
	"slices"
	"sync"
	"testing"

	"github.com/cohort-tee/cohort/internal/wire"
)

// signerKey is a 3072-bit RSA key with exponent 3, which SGX demands.
var signerKey = sync.OnceValue(func() *rsa.PrivateKey {
	three, one := big.NewInt(3), big.NewInt(1)
	prime := func() *big.Int {
		for {
			p, err := rand.Prime(rand.Reader, 1536)
			if err != nil {
				panic(err)
			}
			if new(big.Int).Mod(p, three).Cmp(one) != 0 {
				return p
			}
		}
	}
	p, q := prime(), prime()
	phi := new(big.Int).Mul(new(big.Int).Sub(p, one), new(big.Int).Sub(q, one))
	key := &rsa.PrivateKey{PublicKey: rsa.PublicKey{N: new(big.Int).Mul(p, q), E: 3}, D: new(big.Int).ModInverse(three, phi), Primes: []*big.Int{p, q}}
	key.Precompute()
	return key
})

// sigstruct returns the signature structure of an enclave with product 258 and SVN 3.
func sigstruct(t testing.TB, edit func(b []byte)) []byte {
	t.Helper()
	b := make([]byte, sigstructSize)
	copy(b, sigstructHead)
	copy(b[24:], sigstructBody)
	modulus := signerKey().N.FillBytes(make([]byte, 384))
	slices.Reverse(modulus)
	copy(b[128:], modulus)
	binary.LittleEndian.PutUint32(b[512:], 3)
	b[928], b[944] = 4, 0xff // 64-bit attribute; the mask demands every flag exactly
	copy(b[960:], bytes.Repeat([]byte{0xaa}, 32))
	binary.LittleEndian.PutUint16(b[1024:], 258)
	binary.LittleEndian.PutUint16(b[1026:], 3)
	if edit != nil {
		edit(b)
	}
	digest := sha256.Sum256(append(bytes.Clone(b[:128]), b[900:1028]...))
	signature, err := rsa.SignPKCS1v15(rand.Reader, signerKey(), crypto.SHA256, digest[:])
	if err != nil {
		t.Fatal(err)
	}
	slices.Reverse(signature)
	copy(b[516:], signature)
	return b
}

func TestReadSigstruct(t *testing.T) {
	b := sigstruct(t, nil)
	got, err := readSigstruct(b)
	if err != nil {
		t.Fatal(err)
	}
	signer := sha256.Sum256(b[128:512])
	for i, want := range [][]byte{bytes.Repeat([]byte{0xaa}, 32), signer[:], {1, 2}, make([]byte, 64)} {
		if r := got.Measurement.Registers[i]; !bytes.Equal(r.Value, want) {
			t.Errorf("%s: got %x, want %x", r.Name, r.Value, want)
		}
	}
	if got.SVN != 3 || got.Debug {
		t.Errorf("SVN %d, debug %v, want 3 and no debug", got.SVN, got.Debug)
	}
	for name, edit := range map[string]func(b []byte){"set": func(b []byte) { b[928] |= 2 }, "left open": func(b []byte) { b[944] = 0xfd }} {
		if got, err := readSigstruct(sigstruct(t, edit)); err != nil || !got.Debug {
			t.Errorf("debug %s: got %v, %v", name, got.Debug, err)
		}
	}
}

func TestReadSigstructRefuses(t *testing.T) {
	for name, tt := range map[string]struct {
		edit func(b []byte) []byte
		want wire.Reason
	}{
		"cut":             {func(b []byte) []byte { return b[:len(b)-1] }, wire.Malformed},
		"another head":    {func(b []byte) []byte { b[0]++; return b }, wire.Malformed},
		"another middle":  {func(b []byte) []byte { b[24]++; return b }, wire.Malformed},
		"exponent":        {func(b []byte) []byte { b[512] = 5; return b }, wire.Malformed},
		"no modulus":      {func(b []byte) []byte { clear(b[128:512]); return b }, wire.BadSignature},
		"another enclave": {func(b []byte) []byte { b[960]++; return b }, wire.BadSignature},
		"another product": {func(b []byte) []byte { b[1024]++; return b }, wire.BadSignature},
	} {
		if got, err := readSigstruct(tt.edit(sigstruct(t, nil))); !errors.Is(err, tt.want) {
			t.Errorf("%s: got %v, %v, want reason %q", name, got, err, tt.want)
		}
	}
}

func FuzzSigstruct(f *testing.F) {
	f.Add(sigstruct(f, nil))
	f.Fuzz(func(t *testing.T, b []byte) {
		if _, err := readSigstruct(b); err != nil {
			if refused := (*wire.Refusal)(nil); !errors.As(err, &refused) {
				t.Errorf("untyped error %v", err)
			}
		}
	})
}
