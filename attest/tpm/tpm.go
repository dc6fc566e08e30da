// Package tpm appraises what a TPM 2.0 states about the machine it is part of and
// the programs that were launched there, and asks a TPM for it.
//
// The appraiser trusts the manufacturers' certificate authorities whose digests
// the rules name, and nothing else. Evidence is a framing of the endorsement key's
// certificate, an attestation key, a quote over the boot PCRs and PCR 14 with
// their values, the log of launches that PCR 14 represents, the firmware's event
// log, and the secret of the credential that binds the attestation key to the
// device. The endorsement, by role, is
//
//	ek_ca  the certificates that the endorsement key's is issued under, PEM
//
// It refuses an endorsement key that no named authority vouches for, a key that
// could sign anything but the TPM's own words, a signature that does not verify, a
// quote over other PCRs or none, a log that does not replay to what was quoted,
// and a machine on which anything was launched since it booted that policy does
// not name. docs/spec/evidence-tpm.md has every byte and check.
//
// A TPM proves what was started. It keeps nothing from root: who rules the
// machine after it booted reads the program's memory. Package tpm states so
// wherever it states that evidence is accepted.
//
// [VerifyQuote] and [ParseSignature] are independent, for TEEs that have a TPM
// inside.
//
// Files, each using those before it: quote.go, key.go, chain.go, launch.go, tpm.go,
// machine.go, eventlog.go, evidence.go, credential.go, attester.go, activate.go,
// persistent.go, platform.go, probe.go, seal.go.
package tpm

import (
	"fmt"
	"slices"
	"time"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/attest/internal/closed"
	"github.com/cohort-tee/cohort/attest/tpm/tpmrules"
	"github.com/cohort-tee/cohort/internal/wire"
)

// programPCR holds the launches; before the first it holds what the firmware or
// loader put there.
const programPCR = 14

// bootPCRs are the PCRs that a measurement names with programPCR, in its order:
// firmware (0 to 3), loader (4, 5), platform state (6, 7), kernel, command line
// and initial files (8, 9, 11 to 13).
var bootPCRs = []int{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 11, 12, 13}

// quotedPCRs are what evidence quotes.
var quotedPCRs = append(slices.Clone(bootPCRs), programPCR)

// pcrSize is the size of a PCR of the SHA-256 bank.
const pcrSize = 32

// quoteAppraiser appraises TPM evidence. It is safe for concurrent use; the zero
// Appraiser is ready. It remembers the devices and keys it has checked, by their
// bytes, so that a key seen before costs one signature; times, rules and the
// credential are checked anew each time, so the cache changes no result.
type quoteAppraiser struct {
	known memory
}

// Platform is [attest.TPM].
func (*quoteAppraiser) Platform() attest.Platform { return attest.TPM }

// UnverifiedKeys reads whom evidence speaks of.
func (*quoteAppraiser) UnverifiedKeys(raw []byte) (attest.TPMKeys, error) {
	e, err := parse(raw)
	return e.TPMKeys, err
}

// Genuine implements [attest.Appraiser].
func (a *quoteAppraiser) Genuine() closed.Appraiser { return closed.VouchFor(a) }

// Appraise appraises evidence; see the package comment for what it needs.
func (a *quoteAppraiser) Appraise(raw []byte, endorsed attest.Endorsements, rules attest.Rules, at time.Time) (attest.Claims, error) {
	e, err := parse(raw)
	if err != nil {
		return attest.Claims{}, err
	}
	device, err := a.known.device(e.Device, endorsed[roleCA], rules.Roots, at)
	if err != nil {
		return attest.Claims{}, err
	}
	quote, err := a.quote(e)
	if err != nil {
		return attest.Claims{}, err
	}
	if err := e.replay(); err != nil {
		return attest.Claims{}, err
	}
	launch, err := permit(e, device, rules.TPM)
	if err != nil {
		return attest.Claims{}, err
	}
	return claims(e, quote, launch, device), nil
}

// quote checks the signature by the key of the evidence, and what it covers.
func (a *quoteAppraiser) quote(e evidence) (Quote, error) {
	key, err := a.known.attestationKey(e.Key)
	if err != nil {
		return Quote{}, err
	}
	signature, err := ParseSignature(e.signature)
	if err != nil {
		return Quote{}, err
	}
	quote, err := VerifyQuote(key, e.quote, signature)
	if err != nil {
		return Quote{}, err
	}
	return quote, quote.Covers(algSHA256, quotedPCRs, e.values)
}

// permit asks the rules about evidence that is genuine: the device, and every
// launch since boot but the last one of this key, which is the measurement. What
// that may represent is for policy to state, as on every platform.
func permit(e evidence, device *device, rules attest.TPMRules) (Launch, error) {
	if slices.ContainsFunc(rules.CutChips, func(chip []byte) bool { return string(chip) == string(device.chip[:]) }) {
		return Launch{}, wire.Refuse(wire.NoPlatform, "tpm: device", device.chip, "one that policy accepts")
	}
	own, err := e.ownLaunch()
	if err != nil {
		return Launch{}, err
	}
	for i, l := range e.log.Launches {
		if i == own {
			continue
		}
		if err := l.permitted(i, rules.Launches); err != nil {
			return Launch{}, err
		}
	}
	return e.log.Launches[own], nil
}

// ownLaunch is the last launch of the key in the log.
func (e evidence) ownLaunch() (int, error) {
	for i, l := range slices.Backward(e.log.Launches) {
		if l.Key == nameOf(e.Key) {
			return i, nil
		}
	}
	return 0, wire.Refuse(wire.NotMeasured, "tpm: launch of this key", fmt.Sprintf("%d launches of other keys", len(e.log.Launches)), "the launch that it was made for")
}

// UnverifiedClaims are what evidence states about itself.
func (*quoteAppraiser) UnverifiedClaims(raw []byte) (attest.Claims, error) {
	e, err := parse(raw)
	if err != nil {
		return attest.Claims{}, err
	}
	own, err := e.ownLaunch()
	if err != nil {
		return attest.Claims{}, err
	}
	quote, err := UnverifiedQuote(e.quote)
	return claims(e, quote, e.log.Launches[own], new(device)), err
}

// claims are what the evidence states, once it is verified.
func claims(e evidence, q Quote, own Launch, device *device) attest.Claims {
	return attest.Claims{
		Measurement: measurement(e.values, e.log.Base[:], own),
		ReportData:  q.ExtraData,
		Dynamic:     own.Dynamic,
		Chip:        device.name,
		Activation:  &attest.Activation{TPMKeys: e.TPMKeys, Secret: e.secret},
		Details: map[string]any{
			"launches": len(e.log.Launches), "events": e.events, "verified_events": e.verified, "firmware": q.Firmware,
			"resets": q.Resets, "restarts": q.Restarts, "clock": q.Clock,
		},
	}
}

// measurement is the tuple of boot PCRs, what PCR 14 was before the first launch,
// and one launch.
func measurement(values, base []byte, l Launch) attest.Measurement {
	m := attest.Measurement{Platform: attest.TPM, Registers: make([]attest.Register, 0, len(tpmrules.Rules.Registers))}
	for i, register := range tpmrules.Rules.Registers[:len(bootPCRs)] {
		m.Registers = append(m.Registers, attest.Register{Name: register.Name, Value: values[i*pcrSize : (i+1)*pcrSize]})
	}
	m.Registers = append(m.Registers, attest.Register{Name: "pcr14", Value: base})
	m.Registers = append(m.Registers, l.registers()...)
	return m
}
