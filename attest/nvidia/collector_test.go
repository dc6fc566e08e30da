package nvidia_test

import (
	"context"
	"errors"
	"fmt"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/attest/attesttest"
	"github.com/cohort-tee/cohort/attest/nvidia"
	"github.com/cohort-tee/cohort/internal/wire"
)

// program writes a shell script that is run with `collect --nonce HEX`.
func program(t *testing.T, lines string) []string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "collect-gpus")
	if err := os.WriteFile(file, []byte("#!/bin/sh\n"+lines+"\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	return []string{file, "collect"}
}

// collected collects evidence with a program.
func collected(ctx context.Context, t *testing.T, lines string) (attest.Evidence, error) {
	t.Helper()
	c, err := nvidia.NewCollector(program(t, lines)...)
	if err != nil {
		t.Fatal(err)
	}
	return c.Attest(ctx, use)
}

// TestCollector: the evidence contains all GPUs that a program reports, each for the nonce of
// this report data, and each is appraised.
func TestCollector(t *testing.T) {
	vendor := attesttest.NewNVIDIAVendor(now)
	gpus := []*attesttest.NVIDIAGPU{vendor.GPU("GH100"), vendor.GPU("GH100")}
	service := httptest.NewServer(attesttest.NVIDIACollection(gpus...))
	defer service.Close()
	c, err := nvidia.NewCollector(program(t, `test "$1 $2" = "collect --nonce" && exec curl -sSf `+service.URL+`/"$3"`)...)
	if err != nil {
		t.Fatal(err)
	}
	maker := attesttest.NewVendor()
	e, err := attest.WithDevices(maker.Chip().Attester(attesttest.Measure("training")), c).Attest(t.Context(), use)
	if err != nil || len(e.Devices) != len(gpus) {
		t.Fatalf("got %d devices, %v, want %d", len(e.Devices), err, len(gpus))
	}
	for i, gpu := range gpus {
		e.Devices[i] = e.Devices[i].WithEndorsements(gpu.Lists())
	}
	rules := maker.Rules()
	rules[attest.NvidiaGPU] = vendor.Rules()
	result, err := attesttest.Verifier(nvidia.Platform().Appraiser()).Appraise(attest.Question{Evidence: e, ReportData: use, Rules: rules, At: now})
	if err != nil || !result.Appraised() || len(result.Devices()) != len(gpus) {
		t.Errorf("got %v, %v, want evidence of both to hold", result, err)
	}
}

// TestNoCollection: a program that does not exist, fails, finds no GPU, or prints other output
// gives an error with the cause.
func TestNoCollection(t *testing.T) {
	for _, command := range [][]string{nil, {filepath.Join(t.TempDir(), "nothing")}} {
		if _, err := nvidia.NewCollector(command...); !errors.Is(err, wire.NotThisDevice) {
			t.Errorf("%q: got %v, want %q", command, err, wire.NotThisDevice)
		}
	}
	for lines, says := range map[string]string{
		"echo NVML: driver not loaded >&2; exit 3":                                                                    "exit status 3: NVML: driver not loaded",
		`echo '{"evidences":[],"result_code":0,"result_message":"Ok"}'`:                                               "0 GPUs",
		`echo '{"evidences":[{"evidence":"AA==","certificate":"AA=="}],"result_code":7,"result_message":"no nonce"}'`: "result 7 no nonce",
		"echo Evidence written": "not JSON",
		"yes":                   "1048576 bytes of output and more",
	} {
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		_, err := collected(ctx, t, lines)
		if cancel(); !errors.Is(err, wire.NotThisDevice) || !strings.Contains(err.Error(), says) {
			t.Errorf("%s: got %v, want %q with %q", lines, err, wire.NotThisDevice, says)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	begin := time.Now()
	if _, err := collected(ctx, t, "sleep 60"); !errors.Is(err, context.DeadlineExceeded) || time.Since(begin) > 20*time.Second {
		t.Errorf("a program that hangs: got %v after %v", err, time.Since(begin))
	}
}

// A program of NVIDIA's collects evidence of the GPUs. On a machine without that program there is
// none.
func ExampleCollector() {
	_, err := nvidia.NewCollector("nvattest-of-another-machine", "collect-evidence", "--device", "gpu", "--format", "json")
	fmt.Println(errors.Is(err, wire.NotThisDevice))
	// Output: true
}
