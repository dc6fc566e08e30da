package tpm

import (
	"bytes"
	"crypto/sha256"
	"fmt"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/attest/tpm/tpmrules"
	"github.com/cohort-tee/cohort/internal/wire"
)

// maxLaunches bounds the log. A machine that launched more since it booted has
// to boot again.
const maxLaunches = 512

// Launch is one start of one program, as its agent measured it.
type Launch struct {
	Agent     attest.Digest // SHA-256 of the agent's file; zero when there is none
	Program   attest.Digest // SHA-256 of the program's file
	Arguments attest.Digest // [Arguments] of the program
	Key       attest.Digest // name of the attestation key that was made for it, SHA-256
	Dynamic   bool          // agent or program loads shared libraries
}

// Arguments is the digest of the measured arguments of a program.
func Arguments(args []string) attest.Digest {
	fields := make([][]byte, len(args))
	for i, arg := range args {
		fields[i] = []byte(arg)
	}
	return wire.Hash(wire.LabelArguments, fields...)
}

// Bytes is the one encoding; its SHA-256 extends PCR 14.
func (l Launch) Bytes() []byte {
	var agent []byte
	if !l.Agent.IsZero() {
		agent = l.Agent[:]
	}
	flags := []byte{0}
	if l.Dynamic {
		flags[0] = 1
	}
	return wire.Frame(wire.LabelTPMLaunch, agent, l.Program[:], l.Arguments[:], l.Key[:], flags)
}

func parseLaunch(b []byte) (l Launch, err error) {
	var f [5][]byte
	if err := wire.UnframeInto(f[:], wire.LabelTPMLaunch, b); err != nil {
		return l, err
	}
	copy(l.Agent[:], f[0])
	copy(l.Program[:], f[1])
	copy(l.Arguments[:], f[2])
	copy(l.Key[:], f[3])
	l.Dynamic = bytes.Equal(f[4], []byte{1})
	if !bytes.Equal(l.Bytes(), b) {
		return l, wire.Refuse(wire.Malformed, "tpm launch", fmt.Sprintf("%d bytes that are encoded in another way", len(b)), "four digests and a flag")
	}
	return l, nil
}

// registers are the launch's part of a measurement.
func (l Launch) registers() []attest.Register {
	agent := l.Agent[:]
	if l.Agent.IsZero() {
		agent = nil
	}
	return []attest.Register{{Name: "agent", Value: agent}, {Name: "program", Value: l.Program[:]}, {Name: "args", Value: l.Arguments[:]}}
}

// permitted refuses the launch at a place of the log that is the launch of no
// reference value.
func (l Launch) permitted(at int, references []attest.ReferenceValue) error {
	got := attest.Measurement{Platform: attest.TPM, Registers: l.registers()}
	for _, r := range references {
		if r.Platform != attest.TPM || len(r.Registers) != len(tpmrules.Rules.Registers) {
			continue
		}
		r.Registers = r.Registers[len(quotedPCRs):]
		if attest.Match(r, got) == nil {
			return nil
		}
	}
	return wire.Refuse(wire.NotMeasured, fmt.Sprintf("tpm: launch %d since boot", at+1), got, "a program that policy names")
}

// launchLog is every launch since the machine booted.
type launchLog struct {
	Base     attest.Digest // PCR 14 before the first launch
	Launches []Launch      // oldest first
}

// Bytes is the one encoding.
func (l launchLog) Bytes() []byte {
	fields := make([][]byte, 0, 1+len(l.Launches))
	fields = append(fields, l.Base[:])
	for _, launch := range l.Launches {
		fields = append(fields, launch.Bytes())
	}
	return wire.Frame(wire.LabelTPMLaunches, fields...)
}

// parseLaunchLog is the inverse of Bytes. It refuses with "malformed", and with
// "too-large" more than 512 launches.
func parseLaunchLog(b []byte) (launchLog, error) {
	fields, err := wire.Unframe(wire.LabelTPMLaunches, b, -1)
	if err != nil {
		return launchLog{}, err
	}
	if len(fields) == 0 || len(fields[0]) != pcrSize {
		return launchLog{}, wire.Refuse(wire.Malformed, "tpm launch log", "a log without its base", "PCR 14 before the first launch")
	}
	if len(fields) > 1+maxLaunches {
		return launchLog{}, wire.Refuse(wire.TooLarge, "tpm launch log: launches since boot", len(fields)-1, maxLaunches)
	}
	l := launchLog{Base: attest.Digest(fields[0])}
	for _, f := range fields[1:] {
		launch, err := parseLaunch(f)
		if err != nil {
			return launchLog{}, err
		}
		l.Launches = append(l.Launches, launch)
	}
	return l, nil
}

// replay is PCR 14 after all launches.
func (l launchLog) replay() attest.Digest {
	pcr := l.Base
	for _, launch := range l.Launches {
		pcr = extend(pcr, sha256.Sum256(launch.Bytes()))
	}
	return pcr
}

// extend is what TPM2_PCR_Extend does.
func extend(pcr, digest attest.Digest) attest.Digest {
	return sha256.Sum256(append(pcr[:], digest[:]...))
}
