package tpm

import (
	"bytes"
	"crypto"
	"crypto/sha1"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"testing"
	"time"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/attest/vectortest"
	"github.com/cohort-tee/cohort/internal/wire"
	"github.com/google/go-eventlog/register"
)

// FuzzEvidenceParts encodes evidence of arbitrary parts: it parses to those parts, or is refused
// for their sizes.
func FuzzEvidenceParts(f *testing.F) {
	f.Add([]byte("certificate"), []byte("key"), []byte("quote"), []byte("signature"), []byte("values"), byte(3), []byte("log"), false)
	for _, quote := range vectortest.Seeds(f, "tpm-swtpm", 4<<10) {
		f.Add([]byte{}, []byte{}, quote, []byte{}, []byte{}, byte(1), []byte{}, true)
	}
	f.Fuzz(func(t *testing.T, device, key, quote, signature, values []byte, launches byte, eventLog []byte, secret bool) {
		want := evidence{TPMKeys: attest.TPMKeys{Device: device, Key: key}, quote: quote, signature: signature, values: make([]byte, len(quotedPCRs)*pcrSize), eventLog: eventLog}
		copy(want.values, values)
		for i := range launches {
			want.log.Launches = append(want.log.Launches, Launch{Program: wire.Sum([]byte{i}), Arguments: Arguments(nil), Dynamic: i%2 == 0})
		}
		if secret {
			want.secret = make([]byte, attest.SecretSize)
		}
		raw := want.bytes()
		got, err := parse(raw)
		if refused := len(device) > maxCertificate; reasoned(t, err) == refused {
			t.Fatalf("got %v, want it refused: %v", err, refused)
		}
		if err == nil && !bytes.Equal(got.bytes(), raw) {
			t.Fatalf("got %x, want %x", got.bytes(), raw)
		}
		_, err = new(quoteAppraiser).Appraise(raw, nil, attest.Rules{}, time.Unix(1<<30, 0))
		if reasoned(t, err) {
			t.Fatal("evidence that nobody signed is accepted")
		}
	})
}

// eventLog returns a firmware log with one bank, with the events that program lists (PCR, type
// and data size of each), and the PCR values that it leads to.
func eventLog(program []byte) (log []byte, pcrs []register.MR) {
	le := binary.LittleEndian
	spec := append([]byte("Spec ID Event03\x00"), 0, 0, 0, 0, 0, 2, 0, 2)
	spec = le.AppendUint32(spec, 2) // SHA-1 and SHA-256
	for _, bank := range [][2]uint16{{4, sha1.Size}, {algSHA256, sha256.Size}} {
		spec = le.AppendUint16(le.AppendUint16(spec, bank[0]), bank[1])
	}
	spec = append(spec, 0)
	log = le.AppendUint32(le.AppendUint32(nil, 0), 3) // EV_NO_ACTION of PCR 0
	log = append(log, make([]byte, sha1.Size)...)
	log = append(le.AppendUint32(log, uint32(len(spec))), spec...)
	values := map[int][]byte{}
	for ; len(program) >= 3; program = program[3:] {
		pcr, kind, data := int(program[0]%24), uint32(program[1]), make([]byte, program[2])
		if kind == 3 {
			kind = 4 // EV_NO_ACTION would extend nothing
		}
		short, long := sha1.Sum(data), sha256.Sum256(data)
		log = le.AppendUint32(le.AppendUint32(le.AppendUint32(log, uint32(pcr)), kind), 2)
		log = append(le.AppendUint16(log, 4), short[:]...)
		log = append(le.AppendUint16(log, algSHA256), long[:]...)
		log = append(le.AppendUint32(log, uint32(len(data))), data...)
		before := values[pcr]
		if before == nil {
			before = make([]byte, sha256.Size)
		}
		value := sha256.Sum256(append(bytes.Clone(before), long[:]...))
		values[pcr] = value[:]
	}
	for pcr, value := range values {
		pcrs = append(pcrs, register.PCR{Index: pcr, Digest: value, DigestAlg: crypto.SHA256})
	}
	return log, pcrs
}

// FuzzEventLogParts writes event logs of arbitrary events with correct digests and lengths: they
// lead to the values that extending gives, and to no others.
func FuzzEventLogParts(f *testing.F) {
	f.Add([]byte{0, 1, 4, 7, 0x0d, 32, 9, 6, 0})
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, program []byte) {
		log, pcrs := eventLog(program[:min(len(program), 3*64)])
		if len(pcrs) == 0 {
			_, err := replayEvents(log, pcrs)
			reasoned(t, err)
			return
		}
		events, err := replayEvents(log, pcrs)
		if refusal := (*attest.Refusal)(nil); err != nil && !errors.As(err, &refusal) {
			t.Fatalf("refused without a reason: %v", err)
		}
		if err != nil {
			t.Fatalf("a right log of %x is refused: %v", program, err)
		}
		if len(events) != min(len(program), 3*64)/3 {
			t.Fatalf("got %d events, want %d", len(events), len(program)/3)
		}
		other := pcrs[0].(register.PCR)
		other.Digest = bytes.Clone(other.Digest)
		other.Digest[0] ^= 1
		pcrs[0] = other
		if _, err := replayEvents(log, pcrs); reasoned(t, err) {
			t.Fatal("other values are led to")
		}
	})
}
