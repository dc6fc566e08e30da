package cli

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/attest/attesttest"
	"github.com/cohort-tee/cohort/internal/cli/clitest"
	"github.com/cohort-tee/cohort/internal/wire"
)

func TestMeasureRefusesImages(t *testing.T) {
	file := clitest.Write(t, "image", strings.Repeat("x", 4096))
	for _, tt := range []struct {
		args string
		exit int
		code string
	}{
		{"nitro " + file, 1, "[malformed]"},
		{"sgx " + file, 1, "[malformed]"},
		{"snp --firmware " + file + " --vcpus 1 --cpu EPYC-v4", 1, "[malformed]"},
		{"snp --firmware " + file + " --vcpus 1 --cpu i486", 2, "[usage]"},
		{"snp --firmware " + file + " --vcpus 1 --cpu 0x800f12 --append quiet", 2, "[usage]"},
		{"snp --firmware " + file + " --vcpus 1 --cpu 0x800f12 --fpu maybe", 2, "[usage]"},
		{"snp --firmware " + file + " --vcpus 1 --cpu 0x800f12 --host-data 00", 2, "[usage]"},
		{"nitro " + file + "x", 2, "[file]"},
	} {
		r := run(t, nil, append([]string{"measure"}, strings.Fields(tt.args)...)...)
		if r.exit != tt.exit || !strings.Contains(r.talk, tt.code) {
			t.Errorf("%s: exit %d, %s, want %d and %s", tt.args, r.exit, r.talk, tt.exit, tt.code)
		}
	}
}

// TestMeasureStream: an SGXS stream names the code and leaves its signer open.
func TestMeasureStream(t *testing.T) {
	record := func(tag string, rest ...byte) string {
		return tag + string(rest) + strings.Repeat("\x00", 64-len(tag)-len(rest))
	}
	stream := record("ECREATE\x00", 1, 0, 0, 0, 0, 0x10) + record("EADD\x00\x00\x00\x00", 0, 0, 0, 0, 0, 0, 0, 0, 5, 2)
	more := record("UNMEASRD") + strings.Repeat("x", 256)
	want := fmt.Sprintf(`{ platform = "sgx", mrenclave = %q, configid = "%s", any = ["mrsigner", "isvprodid"] }`, wire.Sum([]byte(stream)), strings.Repeat("0", 128))
	for text, note := range map[string]string{stream: "", stream + more: "256 bytes are loaded"} {
		r := run(t, nil, "measure", "sgx", clitest.Write(t, "enclave.sgxs", text))
		if r.exit != 0 || strings.TrimSpace(r.out) != want || !strings.Contains(r.talk, note) {
			t.Errorf("exit %d, %s, got %s, want %s", r.exit, r.talk, r.out, want)
		}
	}
}

// TestMeasureSelf: on hardware that measures an image, `measure` prints what runs
// there; elsewhere it reports that this is not the machine, and of a program it prints
// nothing.
func TestMeasureSelf(t *testing.T) {
	device := attesttest.NewTPMMaker(t).TPM(t)
	settings := map[string]string{"COHORT_PLATFORM": "azure-snp", "COHORT_TPM": device.Path, "COHORT_TPM_LOG": device.Log}
	if r := run(t, settings, "measure"); r.exit != 1 || !strings.Contains(r.talk, "not this machine") {
		t.Errorf("a TPM without a report: exit %d, %s", r.exit, r.talk)
	}
	if r := run(t, settings, "unit", "--task", "scoring", "--authority", "https://a.example", "--genesis", strings.Repeat("1", 64), "--", "/bin/true"); r.exit != 1 || !strings.Contains(r.talk, "not this machine") {
		t.Errorf("a unit there: exit %d, %s", r.exit, r.talk)
	}
	vendor := attesttest.NewSNPVendor("Milan", time.Now())
	guest := attesttest.MeasureSNP("paravisor")
	device.Paravisor(t, vendor.Chip(attest.SNPTCB{SNP: 1}).Attester(guest))
	r := run(t, settings, "measure")
	if want := fmt.Sprintf("{ platform = \"azure-snp\", measurement = \"sha384:%x\", ", guest.Registers[0].Value); r.exit != 0 || !strings.HasPrefix(r.out, want) {
		t.Errorf("exit %d, %s, got %s, want %s", r.exit, r.talk, r.out, want)
	}
	if r := run(t, settings, "measure", "--", "/bin/true"); r.exit != 2 || !strings.Contains(r.talk, "measures an image") {
		t.Errorf("of a program: exit %d, %s", r.exit, r.talk)
	}
	if r := run(t, map[string]string{"COHORT_PLATFORM": "tdx"}, "measure"); r.exit != 1 || !strings.Contains(r.talk, "not this machine") {
		t.Errorf("on no TDX: exit %d, %s", r.exit, r.talk)
	}
	if r := run(t, nil, "measure", "--platform", "vax"); r.exit != 2 || !strings.Contains(r.talk, "one of azure-snp") {
		t.Errorf("unknown: exit %d, %s", r.exit, r.talk)
	}
}
