package tpm

import (
	"bytes"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/internal/wire"
)

// roleCA is the role of the certificates above an endorsement key's.
const roleCA = "ek_ca"

// maxCertificate bounds the certificate of an endorsement key, in bytes.
const maxCertificate = 4 << 10

// evidence is evidence in its parts. Nothing in it is checked yet but its form.
type evidence struct {
	attest.TPMKeys
	quote     []byte // TPMS_ATTEST
	signature []byte // TPMT_SIGNATURE
	values    []byte // of quotedPCRs, 32 bytes each
	log       launchLog
	eventLog  []byte // of the firmware; empty on machines that keep none
	secret    []byte // of the credential; empty when there was none
	events    int    // that extended a PCR, set by replay
	verified  int    // of those, with the data that were measured
}

// bytes is the one encoding.
func (e evidence) bytes() []byte {
	return wire.Frame(wire.LabelTPMEvidence, e.Device, e.Key, e.quote, e.signature, e.values, e.log.Bytes(), e.eventLog, e.secret)
}

// parse reads the one encoding; every other is refused with reason "malformed".
func parse(raw []byte) (evidence, error) {
	var f [8][]byte
	if err := wire.UnframeInto(f[:], wire.LabelTPMEvidence, raw); err != nil {
		return evidence{}, err
	}
	e := evidence{
		TPMKeys: attest.TPMKeys{Device: f[0], Key: f[1]},
		quote:   f[2], signature: f[3], values: f[4], eventLog: f[6], secret: f[7],
	}
	if len(e.Device) > maxCertificate || len(e.values) != len(quotedPCRs)*pcrSize || len(e.secret) != 0 && len(e.secret) != attest.SecretSize {
		return evidence{}, wire.Refuse(wire.Malformed, "tpm evidence: sizes of certificate, PCR values, secret",
			[]int{len(e.Device), len(e.values), len(e.secret)}, []int{maxCertificate, len(quotedPCRs) * pcrSize, attest.SecretSize})
	}
	var err error
	e.log, err = parseLaunchLog(f[5])
	return e, err
}

// replay demands that the logs lead to the values that were quoted.
func (e *evidence) replay() error {
	last := e.values[len(bootPCRs)*pcrSize:]
	if got := e.log.replay(); !bytes.Equal(got[:], last) {
		return wire.Refuse(wire.BadDigest, "tpm: launch log, replayed", got, attest.Digest(last))
	}
	if len(e.eventLog) == 0 {
		return nil
	}
	before := append(bytes.Clone(e.values[:len(bootPCRs)*pcrSize]), e.log.Base[:]...)
	events, err := replayEvents(e.eventLog, sha256PCRs(before))
	e.events = len(events)
	for _, event := range events {
		if event.DigestVerified() {
			e.verified++
		}
	}
	return err
}
