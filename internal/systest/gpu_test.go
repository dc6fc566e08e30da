package systest

import (
	"context"
	"fmt"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/attest/attesttest"
	"github.com/cohort-tee/cohort/internal/api"
	"github.com/cohort-tee/cohort/internal/loopback"
	"github.com/cohort-tee/cohort/internal/testworld"
	"github.com/cohort-tee/cohort/internal/wire"
)

// withGPU returns vendors with a GPU in one machine.
func withGPU(t *testing.T) *vendors {
	t.Helper()
	v := newVendors(t)
	v.nvidia = attesttest.NewNVIDIAVendor(v.now)
	v.gpu = v.nvidia.GPU("GH100")
	return v
}

// gpuRules returns the rules of the vendor's GPUs in policy syntax.
func (v *vendors) gpuRules() string {
	return fmt.Sprintf("[platform.nvidia-gpu]\nroots = [%q]\nmodels = [\"GH100\"]\nchips = \"any\"\ndrivers = [%q]\nvbios = [\"96.00.9F.00.01\"]\nmodes = [\"SPT\"]\nmeasurements = \"any\"\nmode = \"development\"\n",
		v.nvidia.Root(), attesttest.NVIDIADriver)
}

// elsewhere is a device whose evidence is for a different nonce.
type elsewhere struct{ attest.Attester }

func (e elsewhere) Attest(ctx context.Context, data attest.ReportData) (attest.Evidence, error) {
	data[0] ^= 1
	return e.Attester.Attest(ctx, data)
}

// TestGPU: a release requires a GPU beside its TEE. A unit with a GPU is enrolled, serves,
// and is logged with its GPU. A unit is refused without a GPU, with evidence for a
// different nonce, with a GPU of an unknown vendor, and with one GPU counted twice.
func TestGPU(t *testing.T) {
	v := withGPU(t)
	e := settle(t, v, attest.SNP)
	enrol := func(devices ...attest.Attester) error {
		t.Helper()
		tee, _ := v.device(attest.SNP, "scoring 1")
		config := e.UnitConfig("scoring", "scoring 1")
		config.Attester, config.Clock = attest.WithDevices(tee, devices...), e.read
		u, err := start(t, config)
		if err != nil {
			return err
		}
		got, err := get(t, e.dial(serve(t, u, "gpu")), "https://"+ServerName("scoring")+"/")
		if err != nil || got != "gpu" {
			t.Errorf("got %q, %v, want the unit's answer", got, err)
		}
		return nil
	}
	if err := enrol(v.gpu); err != nil {
		t.Fatal(err)
	}
	second := v.nvidia.GPU("GH100")
	if err := enrol(v.gpu, second); err != nil {
		t.Errorf("one GPU more than policy demands: %v", err)
	}
	testworld.Refused(t, enrol(), wire.DeviceMissing)
	testworld.Refused(t, enrol(elsewhere{v.gpu}), wire.BadNonce)
	testworld.Refused(t, enrol(v.gpu, elsewhere{second}), wire.BadNonce)
	testworld.Refused(t, enrol(attesttest.NewNVIDIAVendor(v.now).GPU("GH100")), wire.UnknownRoot)
	testworld.Refused(t, enrol(v.gpu, v.gpu), wire.WrongChip)

	page, err := authorityOf(t, e.Cluster).IssuanceLog(t.Context(), api.LogQuery{})
	if err != nil {
		t.Fatal(err)
	}
	units := slices.DeleteFunc(page.Entries, func(u api.LogEntry) bool { return u.Kind != "issued" })
	want := api.LogDevice{Platform: "nvidia-gpu", Chip: v.gpu.Chip().String()}
	for _, u := range units {
		if len(u.Devices) == 0 || u.Devices[0].Platform != want.Platform || u.Devices[0].Chip != want.Chip {
			t.Errorf("got devices %+v in the log, want %+v first", u.Devices, want)
		}
		if !slices.ContainsFunc(u.Devices[0].Unjudged, func(s string) bool { return strings.Contains(s, "RIM") }) {
			t.Errorf("got %q, want the log to say that nobody compared the measurements", u.Devices[0].Unjudged)
		}
	}
	if len(units) != 2 {
		t.Errorf("got %d certificates, want 2", len(units))
	}

	push(t, e.Cluster, e.NextPolicy("modes = [\"SPT\"]\n", fmt.Sprintf("modes = [\"SPT\"]\ncut_chips = [%q]\n", v.gpu.Chip())))
	testworld.Refused(t, enrol(v.gpu), wire.NoPlatform)
	if err := enrol(second); err != nil {
		t.Errorf("another GPU than the one cut off: %v", err)
	}
}

// TestGPUByTheBinary: the released binary gets the evidence of the machine's GPUs from a
// command whose output has the form of NVIDIA's tool. Without the command, and when the
// command fails, the error says why the unit is refused.
func TestGPUByTheBinary(t *testing.T) {
	bin := Build(t, "./cmd/cohort", "./examples/scoring")
	b := settleBinaries(t, bin, withGPU(t), attest.SNP)
	defer b.run(b.authority, b.authorityArgs("--genesis-policy", "genesis.toml", "--signature", "genesis.sig"), b.URL()+"/readyz")()
	driver := httptest.NewServer(attesttest.NVIDIACollection(b.gpu, b.nvidia.GPU("GH100")))
	defer driver.Close()
	command := filepath.Join(t.TempDir(), "collect-gpus")
	if err := os.WriteFile(command, []byte("#!/bin/sh\nexec curl -sSf "+driver.URL+`/"$2"`+"\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	b.serveUnit(t, attest.SNP, "--nvidia-gpus", command)
	if out, err := exec.CommandContext(t.Context(), b.cohort, "doctor", "--nvidia-gpus", command).Output(); err != nil || !strings.Contains(string(out), "NVIDIA GPUs: 2 gave evidence") {
		t.Errorf("doctor says %v:\n%s", err, out)
	}
	for says, more := range map[string][]string{
		"[device-missing]":   nil,
		"no-such-command":    {"--nvidia-gpus", "no-such-command"},
		"false: exit status": {"--nvidia-gpus", "false"},
	} {
		args := b.unitArgs(attest.SNP, loopback.FreeAddress(t), loopback.FreeAddress(t), more...)
		if out := b.refused(b.newMachine(t, attest.SNP, "scoring 1"), args...); !strings.Contains(out, says) {
			t.Errorf("%v: got %q, want %q", more, out, says)
		}
	}
}
