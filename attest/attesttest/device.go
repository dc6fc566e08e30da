package attesttest

import (
	"context"
	"crypto/ecdsa"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/attest/soft"
)

// Faults selects what is wrong with a device's evidence. The zero value selects nothing.
type Faults struct {
	BadSignature    bool  // the last bit of the signature is flipped
	OtherRoot       bool  // signed by an unknown vendor
	OtherReportData bool  // bound to different report data
	Truncated       bool  // the last byte is missing
	Debug           bool  // the host can read the TEE
	Dynamic         bool  // the program loads unmeasured code
	Error           error // the device returns only this error
}

// Device is a chip seen from inside one program. It implements
// [attest.Attester] and [attest.Sealer].
type Device struct {
	Faults Faults // set before use

	chip        *Chip
	measurement attest.Measurement
}

var (
	_ attest.Attester = (*Device)(nil)
	_ attest.Sealer   = (*Device)(nil)
)

// Measurement returns the measurement of the device's program.
func (d *Device) Measurement() attest.Measurement { return d.measurement }

// Attest returns evidence with the faults of the device.
func (d *Device) Attest(ctx context.Context, data attest.ReportData) (attest.Evidence, error) {
	if err := d.failure(ctx); err != nil {
		return attest.Evidence{}, err
	}
	if d.Faults.OtherReportData {
		data[0] ^= 1
	}
	raw, err := soft.Sign(d.key(), d.statement(data))
	if err != nil {
		return attest.Evidence{}, err
	}
	if d.Faults.BadSignature {
		raw[len(raw)-1] ^= 1
	}
	if d.Faults.Truncated {
		raw = raw[:len(raw)-1]
	}
	return attest.Evidence{Platform: attest.Soft, Raw: raw}, nil
}

func (d *Device) failure(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	return d.Faults.Error
}

func (d *Device) key() *ecdsa.PrivateKey {
	if d.Faults.OtherRoot {
		return newKey()
	}
	return d.chip.vendor.key
}

func (d *Device) statement(data attest.ReportData) soft.Statement {
	s := soft.Statement{Debug: d.Faults.Debug, Dynamic: d.Faults.Dynamic, ReportData: data}
	for i, digest := range []*attest.Digest{&s.Agent, &s.Program, &s.Arguments} {
		copy(digest[:], d.measurement.Registers[i].Value)
	}
	return s
}

// Seal seals to programs as the platform does, in memory only.
func (d *Device) Seal(ctx context.Context, secret []byte, to []attest.ReferenceValue) ([]byte, error) {
	if err := d.failure(ctx); err != nil {
		return nil, err
	}
	return soft.Seal(d.chip.sealing, secret, d.measurement, to)
}

// Unseal returns a secret that the same chip sealed to this device's program.
func (d *Device) Unseal(ctx context.Context, sealed []byte) ([]byte, error) {
	if err := d.failure(ctx); err != nil {
		return nil, err
	}
	return soft.Unseal(d.chip.sealing, sealed, d.measurement)
}
