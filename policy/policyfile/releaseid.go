package policyfile

import (
	"slices"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/internal/wire"
)

// ReleaseID returns the identity of code as a task of a policy's trust domain: H("cohort
// identity v1", trust domain, authority root, genesis digest, task name, sorted
// measurements).
func (d *Document) ReleaseID(genesis attest.Digest, task string, list []attest.Measurement) attest.Digest {
	root := d.Authority.Root
	fields := [][]byte{[]byte(d.TrustDomain), root[:], genesis[:], []byte(task)}
	for _, m := range SortedMeasurements(list) {
		fields = append(fields, m.Bytes())
	}
	return wire.Hash(wire.LabelIdentity, fields...)
}

// SortedMeasurements returns a copy of list in the order of its encoding, each measurement
// once.
func SortedMeasurements(list []attest.Measurement) []attest.Measurement {
	list = slices.Clone(list)
	slices.SortFunc(list, attest.Measurement.Compare)
	return slices.CompactFunc(list, func(a, b attest.Measurement) bool { return a.Compare(b) == 0 })
}
