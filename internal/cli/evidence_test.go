package cli

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/attest/attesttest"
	"github.com/cohort-tee/cohort/attest/vectortest"
	"github.com/cohort-tee/cohort/internal/cli/clitest"
	"github.com/cohort-tee/cohort/internal/cli/frame"
	"github.com/cohort-tee/cohort/internal/wire"
	"github.com/cohort-tee/cohort/policy/policyfile"
)

// laboratory is a machine of a test's own vendors: an enclave with GPUs beside it,
// and the policy that accepts them.
type laboratory struct {
	at     time.Time
	aws    *attesttest.NitroVendor
	nvidia *attesttest.NVIDIAVendor
	gpu    *attesttest.NVIDIAGPU
	policy string // file
}

func newLaboratory(t *testing.T) *laboratory {
	t.Helper()
	l := &laboratory{at: time.Date(2026, 11, 22, 9, 0, 0, 0, time.UTC)}
	l.aws, l.nvidia = attesttest.NewNitroVendor(l.at), attesttest.NewNVIDIAVendor(l.at)
	l.gpu = l.nvidia.GPU("GH100")
	text := clitest.Policy[:strings.Index(clitest.Policy, "[platform.")]
	text += fmt.Sprintf("[platform.nitro]\nroots = [%q]\nmax_age = \"5m\"\n", l.aws.Root())
	text += fmt.Sprintf("[platform.nvidia-gpu]\nroots = [%q]\ncrl = \"if-present\"\nmodels = [\"GH100\"]\nchips = \"any\"\ndrivers = \"any\"\nvbios = \"any\"\nmodes = [\"SPT\"]\nmeasurements = \"any\"\nmode = \"development\"\n", l.nvidia.Root())
	text += fmt.Sprintf("[authority]\nroot = %q\nmachines = \"any\"\nreference = [ { platform = \"nitro\", %s } ]\n", wire.Sum([]byte("root")), pcrs("authority"))
	text += fmt.Sprintf("[task.train]\nkey_mode = \"unit\"\n[task.train.release.1]\nreference = [ { platform = \"nitro\", %s } ]\ndevices = { nvidia-gpu = 1 }\n", pcrs("train"))
	if _, err := policyfile.Parse([]byte(text)); err != nil {
		t.Fatal(err)
	}
	l.policy = clitest.Write(t, "policy.toml", text)
	return l
}

// pcrs are the registers of an image as policy writes them.
func pcrs(image string) string {
	var fields []string
	for _, r := range attesttest.MeasureNitro(image).Registers {
		fields = append(fields, fmt.Sprintf("%s = \"sha384:%x\"", r.Name, r.Value))
	}
	return strings.Join(fields, ", ")
}

// evidence is a file of the enclave's evidence with that of devices.
func (l *laboratory) evidence(t *testing.T, data attest.ReportData, devices ...attest.Attester) string {
	t.Helper()
	e, err := attest.WithDevices(l.aws.Attester(attesttest.MeasureNitro("train")), devices...).Attest(t.Context(), data)
	if err != nil {
		t.Fatal(err)
	}
	text, err := json.Marshal(e)
	if err != nil {
		t.Fatal(err)
	}
	return clitest.Write(t, "evidence.json", string(text))
}

// printed is a file of what a command prints about GPUs that are asked for a use.
func printed(t *testing.T, data attest.ReportData, gpus ...*attesttest.NVIDIAGPU) string {
	t.Helper()
	w, nonce := httptest.NewRecorder(), sha256.Sum256(data[:])
	attesttest.NVIDIACollection(gpus...).ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/"+hex.EncodeToString(nonce[:]), nil))
	return clitest.Write(t, "gpus.json", w.Body.String())
}

const notCompared = "measurements: compared with no reference value (RIM)"

// TestEvidenceOfDevices: composite evidence and a GPU's alone are shown field by
// field and appraised, and both list what was not compared.
func TestEvidenceOfDevices(t *testing.T) {
	l := newLaboratory(t)
	data := attest.BindReportData(wire.LabelIssue, []byte("nonce"))
	report, chain, err := l.gpu.Report(t.Context(), sha256.Sum256(data[:]))
	if err != nil {
		t.Fatal(err)
	}
	alone, broken := hex.EncodeToString(report), hex.EncodeToString(append(report[:len(report)-1:len(report)-1], report[len(report)-1]^1))
	beside := []string{"--endorsement", "cert_chain=" + clitest.Write(t, "chain.pem", string(chain))}
	bound := []string{"--report-data", hex.EncodeToString(data[:])}
	other := []string{"--report-data", strings.Repeat("01", 64)}
	single, double := printed(t, data, l.gpu), printed(t, data, l.gpu, l.nvidia.GPU("GH100"))
	for _, row := range []struct {
		name, file string
		more       []string
		exit       int
		says       []string
		inspected  int // exit code of inspect, which asks for no use and no program
	}{
		{"with a GPU", l.evidence(t, data, l.gpu), bound, 0, []string{"verdict      holds", "task train, release 1", "not verified device 0: " + notCompared}, 0},
		{"with two", l.evidence(t, data, l.gpu, l.nvidia.GPU("GH100")), bound, 0, []string{"not verified device 1: " + notCompared}, 0},
		{"for another use", l.evidence(t, data, l.gpu), other, frame.ExitRefused, []string{"[nonce]"}, 0},
		{"without the GPU that the release demands", l.evidence(t, data), bound, frame.ExitRefused, []string{"[device-missing]", "at least 1, by release 1"}, 0},
		{"with a stranger's", l.evidence(t, data, attesttest.NewNVIDIAVendor(l.at).GPU("GH100")), bound, frame.ExitRefused, []string{"[unknown-root]", "device 0"}, frame.ExitRefused},
		{"a GPU alone, as NVIDIA's tools print it", clitest.Write(t, "gpu.txt", alone+"\n"), slices.Concat(beside, bound), 0, []string{"verdict      holds", "not verified " + notCompared, "a device: it counts beside a TEE only"}, 0},
		{"a GPU alone, in lines of 64", clitest.Write(t, "gpu.txt", alone[:64]+"\n"+alone[64:128]+"\r\n"+alone[128:]+"\n"), slices.Concat(beside, bound), 0, []string{"verdict      holds"}, 0},
		{"a GPU as nvattest prints it", single, bound, 0, []string{"verdict      holds", "a device: it counts beside a TEE only"}, 0},
		{"two as nvattest prints them", double, bound, 0, []string{"verdict      holds", "not verified device 0: " + notCompared}, 0},
		{"two for another use", double, other, frame.ExitRefused, []string{"[nonce]"}, 0},
		{"one that nvattest prints twice", printed(t, data, l.gpu, l.gpu), bound, frame.ExitRefused, []string{"[wrong-chip]"}, frame.ExitRefused},
		{"with a GPU, and no use named", l.evidence(t, data, l.gpu), nil, frame.ExitUsage, []string{`"report-data" not set`}, 0},
		{"a GPU alone, and no use named", single, nil, frame.ExitUsage, []string{`"report-data" not set`}, 0},
		{"a GPU alone, altered", clitest.Write(t, "gpu.txt", broken), slices.Concat(beside, bound), frame.ExitRefused, []string{"[signature]"}, frame.ExitRefused},
		{"a GPU alone without its chain", clitest.Write(t, "gpu.txt", alone), bound, frame.ExitRefused, []string{"[chain]"}, frame.ExitRefused},
	} {
		t.Run(row.name, func(t *testing.T) {
			args := append([]string{row.file, "--policy", l.policy, "--at", l.at.Format(time.RFC3339)}, row.more...)
			got := run(t, nil, append([]string{"evidence", "appraise"}, args...)...)
			for _, says := range row.says {
				if got.exit != row.exit || !strings.Contains(got.out+got.talk, says) {
					t.Errorf("got exit %d, want %d and %q\n%s%s", got.exit, row.exit, says, got.out, got.talk)
				}
			}
			if i := slices.Index(args, "--report-data"); i >= 0 {
				args = args[:i]
			}
			l.inspect(t, row.inspected, args)
		})
	}
}

// TestModesOfGPUs: policy has a word for each mode that a report can be in.
func TestModesOfGPUs(t *testing.T) {
	l := newLaboratory(t)
	if got := run(t, nil, "policy", "check", l.policy); !strings.Contains(got.out, "with at least 1 nvidia-gpu beside the TEE") {
		t.Errorf("policy check does not say what a release demands:\n%s%s", got.out, got.talk)
	}
	text, err := os.ReadFile(l.policy)
	if err != nil {
		t.Fatal(err)
	}
	for _, mode := range []string{"SPT", "MPT", "PPCIE", "unstated"} {
		doc, err := policyfile.Parse(bytes.Replace(text, []byte(`"SPT"`), []byte(strconv.Quote(mode)), 1))
		if err != nil || !slices.Equal(doc.Platforms[attest.NvidiaGPU].NVIDIA.Modes, []string{mode}) {
			t.Errorf("%s: %v", mode, err)
		}
	}
}

// TestCapturedGPUs: reports of real GPUs, as files, are shown field by field.
func TestCapturedGPUs(t *testing.T) {
	files, err := filepath.Glob(filepath.Join(vectortest.Beside(t, "COHORT_NVIDIA_REPORTS", "cases", "nvidia-reports"), "*.hex"))
	if err != nil || len(files) == 0 {
		t.Fatalf("got reports %v, %v, want some", files, err)
	}
	for _, file := range files {
		got := run(t, nil, "evidence", "inspect", file)
		for _, says := range []string{"evidence     NVIDIA GPU", "driver ", "vbios ", "mode ", "measurement_64", notCompared, "nothing above is verified"} {
			if got.exit != 0 || !strings.Contains(got.out, says) {
				t.Errorf("%s: got exit %d, want it to say %q\n%s", filepath.Base(file), got.exit, says, got.talk)
			}
		}
	}
}

// TestDevelopmentModeOfGPUs: a GPU that may be in development mode is refused unless
// policy names the mode, and policy check says which of the two it is.
func TestDevelopmentModeOfGPUs(t *testing.T) {
	l := newLaboratory(t)
	text, err := os.ReadFile(l.policy)
	if err != nil {
		t.Fatal(err)
	}
	l.gpu.Development = true
	data := attest.BindReportData(wire.LabelIssue, []byte("nonce"))
	gpu := printed(t, data, l.gpu)
	for _, row := range []struct {
		mode, checked, judged string
	}{
		{"mode = \"development\"\n", "a GPU in development mode, whose memory its host can read, is accepted", "verdict      holds"},
		{"mode = \"production\"\n", "every GPU is refused", "[debug]"},
		{"", "every GPU is refused", "[debug]"},
	} {
		file := clitest.Write(t, "policy.toml", strings.Replace(string(text), "mode = \"development\"\n", row.mode, 1))
		if got := run(t, nil, "policy", "check", file); got.exit != 0 || !strings.Contains(got.out, row.checked) {
			t.Errorf("%q: policy check: got exit %d, want it to say %q\n%s%s", row.mode, got.exit, row.checked, got.out, got.talk)
		}
		if got := run(t, nil, "evidence", "appraise", gpu, "--policy", file, "--at", l.at.Format(time.RFC3339), "--report-data", hex.EncodeToString(data[:])); !strings.Contains(got.out+got.talk, row.judged) {
			t.Errorf("%q: got %s%s, want %s", row.mode, got.out, got.talk, row.judged)
		}
	}
}

// inspect demands that evidence is shown without a verdict: as it speaks of itself where
// no policy is given, and verified with one, or refused.
func (l *laboratory) inspect(t *testing.T, exit int, args []string) {
	t.Helper()
	bare := run(t, nil, "evidence", "inspect", args[0])
	if bare.exit != 0 || !strings.Contains(bare.out, "nothing above is verified") || strings.Contains(bare.out, "verdict") {
		t.Errorf("got exit %d, want fields that nothing verifies\n%s%s", bare.exit, bare.out, bare.talk)
	}
	tree := run(t, nil, append([]string{"evidence", "inspect"}, args...)...)
	if tree.exit != exit || strings.Contains(tree.out, "verified at") != (exit == 0) || strings.Contains(tree.out, "verdict") {
		t.Errorf("got exit %d, want %d and no verdict\n%s%s", tree.exit, exit, tree.out, tree.talk)
	}
	if exit != 0 {
		return
	}
	got := run(t, nil, append([]string{"evidence", "inspect", "-o", "json"}, args...)...)
	var view struct {
		Platform    attest.Platform
		Verified    bool
		NotVerified []string `json:"not_verified"`
		Devices     []struct {
			Platform    attest.Platform
			Chip        string
			NotVerified []string `json:"not_verified"`
			Fields      map[string]any
		}
		Verdict any
	}
	if err := json.Unmarshal([]byte(got.out), &view); err != nil {
		t.Fatalf("%v\n%s", err, got.talk)
	}
	if !view.Verified || view.Verdict != nil {
		t.Errorf("got verified %v, verdict %v, want verified and none", view.Verified, view.Verdict)
	}
	if view.Platform.IsDevice() && !slices.Contains(view.NotVerified, notCompared) {
		t.Errorf("got not verified %q of a GPU alone", view.NotVerified)
	}
	for i, d := range view.Devices {
		if d.Platform != attest.NvidiaGPU || d.Chip == "" || d.Fields["driver"] != attesttest.NVIDIADriver || !slices.Contains(d.NotVerified, notCompared) {
			t.Errorf("device %d: got %+v", i, d)
		}
	}
}
