// Package attesttest plays TEE vendors, so that tests of every other package run the real
// [attest.Verifier] with real appraisers, on evidence that needs no hardware and no daemon.
//
// A [Vendor] has a root key and makes chips; a [Chip] returns a [Device] for any program
// that a test names with [Measure]. A device makes genuine evidence, or evidence with the
// [Faults] that a test sets, and seals as the platform does. These types play the platform
// [attest.Soft]; others play hardware vendors.
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

// Vendor is a maker of TEEs. Its root certifies the evidence of all its chips; a second
// Vendor has a different root.
type Vendor struct {
	key  *ecdsa.PrivateKey
	root attest.Digest
}

// NewVendor returns a vendor with a new random root.
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

// Root returns the digest that names the vendor in policy.
func (v *Vendor) Root() attest.Digest { return v.root }

// Rules returns rules that accept this vendor, and no debug.
func (v *Vendor) Rules() map[attest.Platform]attest.Rules {
	return map[attest.Platform]attest.Rules{attest.Soft: {Roots: []attest.Digest{v.root}}}
}

// Verifier returns a verifier of the platform that a Vendor plays, and of more.
func Verifier(more ...attest.Appraiser) *attest.Verifier {
	return attest.NewVerifier(append(more, soft.Platform().Appraiser())...)
}

// Chip returns a chip with its own sealing key: only that chip can unseal what it sealed.
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

// Attester returns the device as a program with the given measurement sees it. The
// measurement comes from [Measure] or [soft.Statement].
func (c *Chip) Attester(m attest.Measurement) *Device {
	return &Device{chip: c, measurement: m}
}

// Measure returns the measurement of a program that exists only as a name. Different names
// or arguments have different measurements.
func Measure(name string, args ...string) attest.Measurement {
	return soft.Statement{Program: wire.Sum([]byte(name)), Arguments: soft.Arguments(args)}.Measurement()
}
