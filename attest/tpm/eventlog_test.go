package tpm

import (
	"bytes"
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/internal/wire"
)

// logOf returns a crypto-agile event log of one bank, as firmware writes it (TCG PC Client
// Platform Firmware Profile, section 10). The data of each event are what was measured.
func logOf(events ...any) []byte {
	u16 := func(b []byte, v int) []byte { return binary.LittleEndian.AppendUint16(b, uint16(v)) }
	u32 := func(b []byte, v int) []byte { return binary.LittleEndian.AppendUint32(b, uint32(v)) }
	spec := append([]byte("Spec ID Event03\x00"), 0, 0, 0, 0, 0, 2, 0, 2) // class, version 2.0, 64-bit
	spec = append(u16(u16(u32(spec, 1), algSHA256), 32), 0)
	log := u32(append(u32(u32(nil, 0), 3), make([]byte, 20)...), len(spec))
	log = append(log, spec...)
	for i := 0; i < len(events); i += 2 {
		data := []byte(events[i+1].(string))
		digest := wire.Sum(data)
		log = u16(u32(u32(u32(log, events[i].(int)), 0x0d), 1), algSHA256) // EV_IPL, one digest
		log = append(u32(append(log, digest[:]...), len(data)), data...)
	}
	return log
}

// TestEventLog: an event log that leads to the PCRs is accepted with the evidence. Changed
// digests are refused. Changed event data are accepted, but no longer count as verified.
func TestEventLog(t *testing.T) {
	s := newScene(t)
	file := filepath.Join(t.TempDir(), "log")
	log := logOf(0, "firmware", 4, "loader", 8, "quiet", 9, "kernel")
	if err := os.WriteFile(file, log, 0o600); err != nil {
		t.Fatal(err)
	}
	d, err := NewDevice(Config{Machine: s.machine(), CA: s.maker.CA(t), EventLog: file, Launch: program("agent", "one")})
	if err != nil {
		t.Fatal(err)
	}
	good := s.evidence(d)
	verified := func(e attest.Evidence) any {
		t.Helper()
		claims, err := new(quoteAppraiser).Appraise(e.Raw, e.Endorsed, s.rules, s.at)
		if err != nil {
			t.Fatal(err)
		}
		if claims.Details["events"] != 4 {
			t.Errorf("got %v events, want 4", claims.Details["events"])
		}
		return claims.Details["verified_events"]
	}
	if got := verified(good); got != 4 {
		t.Errorf("got %v events with their data, want 4", got)
	}
	liar := altered(t, good, func(e *evidence) { e.eventLog = bytes.Replace(log, []byte("quiet"), []byte("QUIET"), 1) })
	if got := verified(liar); got != 3 {
		t.Errorf("got %v events with their data, want 3", got)
	}
	for name, other := range map[string][]byte{
		"another command line":     logOf(0, "firmware", 4, "loader", 8, "loud", 9, "kernel"),
		"an event left out":        logOf(0, "firmware", 4, "loader", 8, "quiet", 9, "kernel", 9, "initrd"),
		"another PCR":              logOf(0, "firmware", 4, "loader", 7, "quiet", 9, "kernel"),
		"a PCR that is not quoted": logOf(0, "firmware", 4, "loader", 10, "quiet", 9, "kernel"),
		"a launch told as the loader's": logOf(0, "firmware", 4, "loader", 8, "quiet", 9, "kernel", programPCR,
			string(program("agent", "one").Bytes())),
	} {
		_, err := s.appraise(altered(t, good, func(e *evidence) { e.eventLog = other }))
		if !errors.Is(err, wire.BadDigest) {
			t.Errorf("%s: %v", name, err)
		}
	}
	_, err = s.appraise(altered(t, good, func(e *evidence) { e.eventLog = logOf(24, "quiet") }))
	if !errors.Is(err, wire.Malformed) {
		t.Errorf("a PCR that no PC has: %v", err)
	}
}
