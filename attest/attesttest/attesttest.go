// Package attesttest plays the vendor of a TEE, so that tests of every other
// package run the real [attest.Verifier] with the real appraiser on evidence
// that needs no hardware and no daemon.
//
// A [Vendor] has a root key and makes chips; a [Chip] returns a [Device] for any
// program a test names with [Measure]. A device makes genuine evidence, or
// evidence with the [Faults] a test asks for, and seals as the platform does.
// It plays the platform [attest.Soft].
//
// It is for tests only: no package of the product imports it.
package attesttest

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/attest/soft"
	"github.com/cohort-tee/cohort/internal/wire"
)

// Vendor is a maker of TEEs: its root vouches for the evidence of all its
// chips. Another Vendor is a stranger.
type Vendor struct {
	key  *ecdsa.PrivateKey
	root attest.Digest
}

// NewVendor draws a vendor with a root of its own.
func NewVendor() *Vendor {
	key := newKey()
	root, err := soft.RootOf(&key.PublicKey)
	if err != nil {
		panic(err) // a P-256 key always has an encoding
	}
	return &Vendor{key: key, root: root}
}

func newKey() *ecdsa.PrivateKey {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		panic(err) // the system's random source does not fail
	}
	return key
}

// Root is the digest that names the vendor in policy.
func (v *Vendor) Root() attest.Digest { return v.root }

// Rules accept this vendor, and no debug.
func (v *Vendor) Rules() map[attest.Platform]attest.Rules {
	return map[attest.Platform]attest.Rules{attest.Soft: {Roots: []attest.Digest{v.root}}}
}

// Verifier knows the platform that a Vendor plays, and further ones.
func Verifier(more ...attest.Appraiser) *attest.Verifier {
	return attest.NewVerifier(append(more, soft.Platform().Appraiser())...)
}

// Chip makes a chip with a sealing key of its own: what one chip sealed no
// other unseals.
func (v *Vendor) Chip() *Chip {
	c := &Chip{vendor: v, sealing: make([]byte, soft.SealingKeySize)}
	rand.Read(c.sealing)
	return c
}

// Chip is one TEE machine.
type Chip struct {
	vendor  *Vendor
	sealing []byte
}

// Attester is the device as a program with the given measurement sees it. The
// measurement is one of [Measure] or of [soft.Statement].
func (c *Chip) Attester(m attest.Measurement) *Device {
	return &Device{chip: c, measurement: m}
}

// Measure is the measurement of a program that exists only as a name. Other
// names and other arguments have other measurements.
func Measure(name string, args ...string) attest.Measurement {
	return soft.Statement{Program: wire.Sum([]byte(name)), Arguments: soft.Arguments(args)}.Measurement()
}
