package attest

import (
	"slices"
	"time"
)

// Result is an Attestation Result: claims that hold. Only [Verifier.Appraise]
// makes one that is accepted anywhere.
type Result struct {
	claims  Claims
	checked []Checked // of the TEE's
	devices []Device
	issued  time.Time // of the TEE's documents and those of devices
	at      time.Time
	ok      bool
}

// Device is a further device of the machine whose evidence holds.
type Device struct {
	Platform Platform
	Chip     string    // names this one device
	Unjudged []string  // as [Claims.Unjudged]
	Checked  []Checked // as [Result.Checked]
	Debug    bool      // its host can read it; policy allowed that
}

// OK reports whether the result came from a successful appraisal.
func (r Result) OK() bool { return r.ok }

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

// Unjudged is what nobody compared of the TEE's own evidence.
func (r Result) Unjudged() []string { return r.claims.Unjudged }

// Dynamic reports whether the program loads code outside its measurement.
func (r Result) Dynamic() bool { return r.claims.Dynamic }

// Chip names the device that vouched.
func (r Result) Chip() string { return r.claims.Chip }

// Checked says when the vendor's documents were had from him, as whoever passed
// them on says it; the caller does not change it.
func (r Result) Checked() []Checked { return r.checked }

// Issued is when the newest of the vendors' signed documents that were checked was
// issued, as its signer says it: at most 2 minutes after At. Zero without any.
func (r Result) Issued() time.Time { return r.issued }

// At is the time the evidence was appraised for.
func (r Result) At() time.Time { return r.at }

// appraised is what one part of evidence says, once it holds.
type appraised struct {
	Claims
	checked []Checked
}

// sameChip reports whether two parts are of one chip.
func (a appraised) sameChip(other appraised) bool {
	return a.Measurement.Platform == other.Measurement.Platform && a.Chip == other.Chip
}

func devicesOf(parts []appraised) []Device {
	var devices []Device
	for _, d := range parts {
		devices = append(devices, Device{Platform: d.Measurement.Platform, Chip: d.Chip, Unjudged: d.Unjudged, Checked: d.checked, Debug: d.Debug})
	}
	return devices
}
