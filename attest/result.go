package attest

import (
	"slices"
	"time"
)

// Result is an Attestation Result: claims that are verified. Only [Verifier.Appraise]
// makes one that is accepted anywhere.
type Result struct {
	claims  Claims
	fetched []Fetched // of the TEE's
	devices []Device
	issued  time.Time // of the TEE's documents and those of devices
	at      time.Time
	ok      bool
}

// Device is a further device of the machine whose evidence is accepted.
type Device struct {
	Platform    Platform
	Chip        string    // names this one device
	NotVerified []string  // as [Claims.NotVerified]
	Fetched     []Fetched // as [Result.Fetched]
	Debug       bool      // its host can read it; policy allowed that
}

// Appraised reports whether the result came from a successful appraisal.
func (r Result) Appraised() bool { return r.ok }

// Measurement is the measurement of the attested program.
func (r Result) Measurement() Measurement { return r.claims.Measurement }

// Debug reports whether the host can read the TEE or a device beside it; policy
// allowed it.
func (r Result) Debug() bool {
	return r.claims.Debug || slices.ContainsFunc(r.devices, func(d Device) bool { return d.Debug })
}

// Devices are the devices beside the TEE, in the order of the evidence; no two are
// one chip.
func (r Result) Devices() []Device { return slices.Clone(r.devices) }

// NotVerified is what was not compared of the TEE's own evidence.
func (r Result) NotVerified() []string { return r.claims.NotVerified }

// Dynamic reports whether the program loads code outside its measurement.
func (r Result) Dynamic() bool { return r.claims.Dynamic }

// ChipID names the device that vouched.
func (r Result) ChipID() string { return r.claims.Chip }

// Fetched states when the vendor's documents were fetched from the vendor, as the party that passed
// them on states it; the caller does not change it.
func (r Result) Fetched() []Fetched { return r.fetched }

// Issued is when the newest of the vendors' signed documents that were checked was
// issued, as its signer states it: at most 2 minutes after At. Zero without any.
func (r Result) Issued() time.Time { return r.issued }

// AppraisedAt is the time the evidence was appraised for.
func (r Result) AppraisedAt() time.Time { return r.at }

// appraised is what one part of evidence states, once it is verified.
type appraised struct {
	Claims
	fetched []Fetched
}

// sameChip reports whether two parts are of one chip.
func (a appraised) sameChip(other appraised) bool {
	return a.Measurement.Platform == other.Measurement.Platform && a.Chip == other.Chip
}

func devicesOf(parts []appraised) []Device {
	var devices []Device
	for _, d := range parts {
		devices = append(devices, Device{Platform: d.Measurement.Platform, Chip: d.Chip, NotVerified: d.NotVerified, Fetched: d.fetched, Debug: d.Debug})
	}
	return devices
}
