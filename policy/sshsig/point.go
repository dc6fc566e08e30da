package sshsig

import (
	"encoding/hex"
	"slices"

	"github.com/cohort-tee/cohort/internal/wire"
	"golang.org/x/crypto/ssh"
)

// smallOrder are the y coordinates, little-endian and without the bit for the sign
// of x, of the eight points of edwards25519 whose order divides 8. Under such a
// "key" some signatures verify for every eighth message, or for every message, without
// any private key. p and p + 1 are second spellings of 0 and 1.
var smallOrder = []string{
	"0000000000000000000000000000000000000000000000000000000000000000", // 0, order 4
	"0100000000000000000000000000000000000000000000000000000000000000", // 1, order 1
	"26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05", // order 8
	"c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a", // order 8
	"ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f", // p - 1, order 2
	"edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f", // p
	"eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f", // p + 1
}

// checkPoint refuses an Ed25519 key, plain or of hardware, that is a point of small
// order or is not encoded as RFC 8032, section 5.1.3 requires.
func checkPoint(key ssh.PublicKey) error {
	var fields struct {
		Type  string
		Point []byte
		Rest  []byte `ssh:"rest"`
	}
	if err := ssh.Unmarshal(key.Marshal(), &fields); err != nil || len(fields.Point) != 32 {
		return wire.Refuse(wire.Malformed, "SSH key: size in bytes", len(fields.Point), 32)
	}
	y := slices.Clone(fields.Point)
	y[31] &= 0x7f
	if slices.Contains(smallOrder, hex.EncodeToString(y)) {
		return wire.Refuse(wire.BadSignature, "SSH key: order of the point", "small: "+hex.EncodeToString(fields.Point), "a key that ssh-keygen makes")
	}
	if !reduced(y) {
		return wire.Refuse(wire.BadSignature, "SSH key: coordinate", "not below 2^255 - 19: "+hex.EncodeToString(fields.Point), "its one encoding")
	}
	return nil
}

// reduced reports whether a little-endian y of 255 bits is below 2^255 - 19.
func reduced(y []byte) bool {
	high := slices.ContainsFunc(y[1:31], func(b byte) bool { return b != 0xff })
	return high || y[31] != 0x7f || y[0] < 0xed
}

// KeyDigest returns the SHA-256 of an SSH public key in its wire form: the
// fingerprint that ssh-keygen -l prints, as a digest.
func KeyDigest(key ssh.PublicKey) wire.Digest { return wire.Sum(key.Marshal()) }
