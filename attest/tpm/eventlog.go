package tpm

import (
	"crypto"

	"github.com/cohort-tee/cohort/internal/wire"
	"github.com/google/go-eventlog/register"
	"github.com/google/go-eventlog/tcg"
)

// replayEvents demands that the firmware's event log leads to the values of PCRs,
// each in the bank of its digest. It gives the events that extended them. Only of
// those whose DigestVerified holds are the data what was measured; the log is for
// people, and nothing decides on it.
func replayEvents(log []byte, pcrs []register.MR) ([]tcg.Event, error) {
	parsed, err := tcg.ParseEventLog(log, tcg.ParseOpts{})
	if err != nil {
		return nil, wire.Refuse(wire.Malformed, "tpm: event log", err, "binary_bios_measurements")
	}
	events, err := parsed.Verify(pcrs)
	if err != nil {
		return nil, wire.Refuse(wire.BadDigest, "tpm: event log, replayed", err, "the quoted values")
	}
	return events, nil
}

// sha256PCRs are the values of quotedPCRs.
func sha256PCRs(values []byte) []register.MR {
	var out []register.MR
	for i, index := range quotedPCRs {
		out = append(out, register.PCR{Index: index, Digest: values[i*pcrSize : (i+1)*pcrSize], DigestAlg: crypto.SHA256})
	}
	return out
}
