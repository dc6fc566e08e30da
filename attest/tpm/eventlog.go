package tpm

import (
	"bytes"
	"crypto"
	"fmt"
	"slices"

	"github.com/cohort-tee/cohort/internal/wire"
	"github.com/google/go-eventlog/register"
	"github.com/google/go-eventlog/tcg"
)

const (
	lastPCR = 23 // of a PC
	// lastLogged is the last PCR that firmware and loader alone extend, who log
	// what they do; the system extends others and keeps its own logs.
	lastLogged = 9
)

// replayEvents demands that the firmware's event log leads to the values of PCRs,
// each in the bank of its digest. It returns the events that extended them. Only of
// those whose DigestVerified is true are the data what was measured; the log is for
// people, and nothing decides on it.
func replayEvents(log []byte, pcrs []register.MR) ([]tcg.Event, error) {
	parsed, err := tcg.ParseEventLog(log, tcg.ParseOpts{})
	if err != nil {
		return nil, wire.Refuse(wire.Malformed, "tpm: event log", err, "binary_bios_measurements")
	}
	for _, alg := range parsed.Algs {
		if i := slices.IndexFunc(parsed.Events(alg), func(e tcg.Event) bool { return e.Index > lastPCR }); i >= 0 {
			return nil, wire.Refuse(wire.Malformed, "tpm: PCR of an event", parsed.Events(alg)[i].Index, "at most 23")
		}
	}
	events, err := parsed.Verify(pcrs)
	if err != nil {
		return nil, wire.Refuse(wire.BadDigest, "tpm: event log, replayed", err, "the quoted values")
	}
	return events, complete(events, pcrs)
}

// complete refuses a log that is silent on what firmware or loader extended.
func complete(events []tcg.Event, pcrs []register.MR) error {
	for _, pcr := range pcrs {
		logged := slices.ContainsFunc(events, func(e tcg.Event) bool { return e.Index == pcr.Idx() })
		if !logged && pcr.Idx() <= lastLogged && len(bytes.Trim(pcr.Dgst(), "\x00")) > 0 {
			return wire.Refuse(wire.BadDigest, fmt.Sprint("tpm: event log, PCR ", pcr.Idx()), "a log without an event of it", "the events that extended it")
		}
	}
	return nil
}

// sha256PCRs are the values of quotedPCRs.
func sha256PCRs(values []byte) []register.MR {
	var out []register.MR
	for i, index := range quotedPCRs {
		out = append(out, register.PCR{Index: index, Digest: values[i*pcrSize : (i+1)*pcrSize], DigestAlg: crypto.SHA256})
	}
	return out
}
