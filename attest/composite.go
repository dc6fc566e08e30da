package attest

import (
	"context"
	"fmt"
)

// WithDevices is a TEE together with devices beside it: an [Attester] whose evidence
// is the TEE's, with that of every device for the same report data. It is what the
// TEE is besides that does not make evidence: a [CredentialAttester] one stays challenged. An
// attester that asks several devices at once returns the others' evidence as the devices
// of the first one's.
func WithDevices(tee Attester, devices ...Attester) Attester {
	c := composite{tee, devices}
	if challenged, ok := tee.(CredentialAttester); ok {
		return credentialComposite{c, challenged}
	}
	return c
}

type composite struct {
	tee     Attester
	devices []Attester
}

// Attest asks the TEE, and then one device after the other.
func (c composite) Attest(ctx context.Context, data ReportData) (Evidence, error) {
	e, err := c.tee.Attest(ctx, data)
	if err != nil {
		return Evidence{}, err
	}
	return c.addDevices(ctx, e, data)
}

func (c composite) addDevices(ctx context.Context, e Evidence, data ReportData) (Evidence, error) {
	for i, device := range c.devices {
		part, err := device.Attest(ctx, data)
		if err != nil {
			return Evidence{}, fmt.Errorf("asking device %d: %w", i, err)
		}
		others := part.Devices
		part.Devices = nil
		e.Devices = append(append(e.Devices, part), others...)
	}
	return e, e.checkDevices()
}

type credentialComposite struct {
	composite
	challenged CredentialAttester
}

var _ CredentialAttester = credentialComposite{}

// TPMKeys implements [CredentialAttester].
func (c credentialComposite) TPMKeys() TPMKeys { return c.challenged.TPMKeys() }

// AttestFor implements [CredentialAttester].
func (c credentialComposite) AttestFor(ctx context.Context, data ReportData, credential []byte) (Evidence, error) {
	e, err := c.challenged.AttestFor(ctx, data, credential)
	if err != nil {
		return Evidence{}, err
	}
	return c.addDevices(ctx, e, data)
}
