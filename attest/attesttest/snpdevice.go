package attesttest

import (
	"context"
	"crypto/ecdsa"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/binary"
	"math/big"
	"slices"

	"github.com/cohort-tee/cohort/attest"
)

// Attester returns the chip as a guest sees it. The measurement comes from [MeasureSNP].
func (c *SNPChip) Attester(m attest.Measurement) *SNPDevice {
	return &SNPDevice{chip: c, measurement: m}
}

// MeasureSNP returns the measurement of a guest that exists only as a name.
func MeasureSNP(name string) attest.Measurement {
	launch := sha512.Sum384([]byte(name))
	return attest.Measurement{Platform: attest.SNP, Registers: []attest.Register{
		{Name: "measurement", Value: launch[:]}, {Name: "host-data", Value: make([]byte, 32)},
	}}
}

// SNPDevice is a chip seen from inside one guest. It implements
// [attest.Attester].
type SNPDevice struct {
	// Edit changes a report before the chip signs it.
	Edit func(report []byte)

	chip        *SNPChip
	measurement attest.Measurement
}

var _ attest.Attester = (*SNPDevice)(nil)

// Attest returns a report of version 3, from a guest without debug, migration or SMT at
// privilege level 0.
func (d *SNPDevice) Attest(ctx context.Context, data attest.ReportData) (attest.Evidence, error) {
	if err := ctx.Err(); err != nil {
		return attest.Evidence{}, err
	}
	report := d.report(data)
	if d.Edit != nil {
		d.Edit(report)
	}
	digest := sha512.Sum384(report[:0x2a0])
	r, s, err := ecdsa.Sign(rand.Reader, d.chip.key, digest[:])
	if err != nil {
		return attest.Evidence{}, err
	}
	for at, n := range map[int]*big.Int{0x2a0: r, 0x2e8: s} {
		field := report[at : at+72]
		n.FillBytes(field)
		slices.Reverse(field)
	}
	return attest.Evidence{Platform: attest.SNP, Raw: report}, nil
}

// DeriveSNP plays the firmware's key derivation for the guest of a report. It derives from
// the fields that bits 0 and 3 of the selection name, guest policy and launch digest, and
// from the privilege level.
func DeriveSNP(report []byte, selected, vmpl uint64) []byte {
	mac := hmac.New(sha256.New, []byte("root key of the chip"))
	mac.Write(report[0x1a0:0x1e0])
	if selected&(1<<0) != 0 {
		mac.Write(report[0x08:0x10])
	}
	if selected&(1<<3) != 0 {
		mac.Write(report[0x90:0xc0])
	}
	mac.Write(binary.LittleEndian.AppendUint64(nil, vmpl))
	return mac.Sum(nil)
}

// report returns the report's fields in AMD's layout (SEV-SNP firmware ABI, table
// ATTESTATION_REPORT), all but the signature.
func (d *SNPDevice) report(data attest.ReportData) []byte {
	b := make([]byte, 0x4a0)
	le := binary.LittleEndian
	le.PutUint32(b[0x00:], 3)
	le.PutUint64(b[0x08:], 1<<17) // guest policy: the bit that is always 1
	le.PutUint32(b[0x34:], 1)     // ECDSA P-384 with SHA-384
	b[0x40] = 1<<2 | 1<<5         // platform info: error-correcting memory, no aliases
	if d.chip.cloud != "" {
		b[0x48] = 1 << 2 // signed by the VLEK
	}
	copy(b[0x50:], data[:])
	copy(b[0x90:], d.measurement.Registers[0].Value)
	copy(b[0xc0:], d.measurement.Registers[1].Value)
	cpu := map[string][3]byte{"Milan": {0x19, 0x01, 1}, "Genoa": {0x19, 0x11, 1}, "Turin": {0x1a, 0x02, 1}}[d.chip.vendor.product]
	copy(b[0x188:], cpu[:])
	copy(b[0x1a0:], d.chip.id[:])
	for _, at := range []int{0x38, 0x180, 0x1e0, 0x1f0} { // current, reported, committed, launch
		d.chip.vendor.putTCB(b[at:], d.chip.tcb)
	}
	return b
}

// putTCB writes a TCB version in the layout of the generation.
func (v *SNPVendor) putTCB(b []byte, tcb attest.SNPTCB) {
	if v.product == "Turin" {
		b[0], b[1], b[2], b[3], b[7] = tcb.FMC, tcb.Bootloader, tcb.TEE, tcb.SNP, tcb.Microcode
		return
	}
	b[0], b[1], b[6], b[7] = tcb.Bootloader, tcb.TEE, tcb.SNP, tcb.Microcode
}
