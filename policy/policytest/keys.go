package policytest

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"encoding/hex"
	"slices"
	"testing"

	"golang.org/x/crypto/ssh"
)

func SignerOf(t testing.TB, key crypto.Signer) ssh.Signer {
	t.Helper()
	s, err := ssh.NewSignerFromSigner(key)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func ECKey(t testing.TB, bits string) ssh.Signer {
	t.Helper()
	curve := map[string]elliptic.Curve{"256": elliptic.P256(), "384": elliptic.P384(), "521": elliptic.P521()}[bits]
	key, err := ecdsa.GenerateKey(curve, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return SignerOf(t, key)
}

// PointKey is an Ed25519 key with the given coordinate, unchecked.
func PointKey(t testing.TB, kind string, point []byte) ssh.PublicKey {
	t.Helper()
	blob := ssh.Marshal(struct {
		Type string
		Key  []byte
	}{kind, point})
	if kind == ssh.KeyAlgoSKED25519 {
		blob = append(blob, ssh.Marshal(struct{ Application string }{"ssh:"})...)
	}
	key, err := ssh.ParsePublicKey(blob)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// SmallPoints are all spellings of small points: each coordinate with both signs.
func SmallPoints(t testing.TB) [][]byte {
	t.Helper()
	var points [][]byte
	for _, text := range []string{
		"0000000000000000000000000000000000000000000000000000000000000000",
		"0100000000000000000000000000000000000000000000000000000000000000",
		"26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05",
		"c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a",
		"ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
		"edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
		"eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
	} {
		y, err := hex.DecodeString(text)
		if err != nil {
			t.Fatal(err)
		}
		negative := slices.Clone(y)
		negative[31] |= 0x80
		points = append(points, y, negative)
	}
	return points
}

func RSAKey(t testing.TB) ssh.Signer {
	t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	return SignerOf(t, key)
}

// Certificate is an SSH certificate over an ed25519 key.
func Certificate(t testing.TB) ssh.PublicKey {
	t.Helper()
	c := &ssh.Certificate{Key: Fixed("ana").PublicKey(), CertType: ssh.UserCert, ValidBefore: ssh.CertTimeInfinity}
	if err := c.SignCert(rand.Reader, Fixed("ca")); err != nil {
		t.Fatal(err)
	}
	return c
}
