package cli

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/attest/attesttest"
	"github.com/cohort-tee/cohort/attest/nvidia"
	"github.com/cohort-tee/cohort/internal/api"
	"github.com/cohort-tee/cohort/internal/wire"
	"github.com/cohort-tee/cohort/policy"
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
	text := cutPolicy[:strings.Index(cutPolicy, "[platform.")]
	text += fmt.Sprintf("[platform.nitro]\nroots = [%q]\nmax_age = \"5m\"\n", l.aws.Root())
	text += fmt.Sprintf("[platform.nvidia-gpu]\nroots = [%q]\ncrl = \"if-present\"\nmodels = [\"GH100\"]\nchips = \"any\"\ndrivers = \"any\"\nvbios = \"any\"\nmodes = [\"SPT\"]\nmeasurements = \"any\"\n", l.nvidia.Root())
	text += fmt.Sprintf("[authority]\nroot = %q\nreference = [ { platform = \"nitro\", %s } ]\n", wire.Sum([]byte("root")), pcrs("authority"))
	text += fmt.Sprintf("[task.train]\nkey_mode = \"unit\"\n[task.train.release.1]\nreference = [ { platform = \"nitro\", %s } ]\ndevices = { nvidia-gpu = 1 }\n", pcrs("train"))
	if _, err := policy.Parse([]byte(text)); err != nil {
		t.Fatal(err)
	}
	l.policy = write(t, "policy.toml", text)
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
	return write(t, "evidence.json", string(text))
}

// printed is a file of what a command prints about GPUs.
func printed(t *testing.T, gpus ...*attesttest.NVIDIAGPU) string {
	t.Helper()
	w := httptest.NewRecorder()
	attesttest.NVIDIACollection(gpus...).ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/"+strings.Repeat("01", 32), nil))
	return write(t, "gpus.json", w.Body.String())
}

const notCompared = "measurements: compared with no reference value (RIM)"

// TestEvidenceOfDevices: composite evidence and a GPU's alone are shown field by
// field and judged, and each verdict says what nobody compared.
func TestEvidenceOfDevices(t *testing.T) {
	l := newLaboratory(t)
	data := attest.Bind(wire.LabelIssue, []byte("nonce"))
	report, chain, err := l.gpu.Report(t.Context(), [32]byte{1})
	if err != nil {
		t.Fatal(err)
	}
	alone, broken := hex.EncodeToString(report), hex.EncodeToString(append(report[:len(report)-1:len(report)-1], report[len(report)-1]^1))
	beside := []string{"--endorsement", "cert_chain=" + write(t, "chain.pem", string(chain))}
	bound := []string{"--report-data", hex.EncodeToString(data[:])}
	other := []string{"--report-data", strings.Repeat("01", 64)}
	for _, row := range []struct {
		name, file string
		more       []string
		exit       int
		says       []string
	}{
		{"with a GPU", l.evidence(t, data, l.gpu), bound, 0, []string{"verdict      holds", "task train, release 1", "not judged device 0: " + notCompared}},
		{"with two", l.evidence(t, data, l.gpu, l.nvidia.GPU("GH100")), bound, 0, []string{"not judged device 1: " + notCompared}},
		{"for another use", l.evidence(t, data, l.gpu), other, exitRefused, []string{"[nonce]"}},
		{"without the GPU that the release demands", l.evidence(t, data), bound, exitRefused, []string{"[device-missing]", "at least 1, by release 1"}},
		{"with a stranger's", l.evidence(t, data, attesttest.NewNVIDIAVendor(l.at).GPU("GH100")), bound, exitRefused, []string{"[unknown-root]", "device 0"}},
		{"a GPU alone, as NVIDIA's tools print it", write(t, "gpu.txt", alone+"\n"), beside, 0, []string{"verdict      holds", "not judged " + notCompared, "a device: it counts beside a TEE only"}},
		{"a GPU as nvattest prints it", printed(t, l.gpu), nil, 0, []string{"verdict      holds", "a device: it counts beside a TEE only"}},
		{"two as nvattest prints them", printed(t, l.gpu, l.nvidia.GPU("GH100")), nil, 0, []string{"verdict      holds", "not judged device 0: " + notCompared}},
		{"a GPU alone, altered", write(t, "gpu.txt", broken), beside, exitRefused, []string{"[signature]"}},
		{"a GPU alone without its chain", write(t, "gpu.txt", alone), nil, exitRefused, []string{"[chain]"}},
	} {
		t.Run(row.name, func(t *testing.T) {
			args := append([]string{row.file, "--policy", l.policy, "--at", l.at.Format(time.RFC3339)}, row.more...)
			got := run(t, nil, append([]string{"evidence", "appraise"}, args...)...)
			for _, says := range row.says {
				if got.exit != row.exit || !strings.Contains(got.out+got.talk, says) {
					t.Errorf("got exit %d, want %d and %q\n%s%s", got.exit, row.exit, says, got.out, got.talk)
				}
			}
			tree := run(t, nil, append([]string{"evidence", "inspect"}, args...)...)
			if tree.exit != 0 || !strings.Contains(tree.out, notCompared) && row.name != "without the GPU that the release demands" {
				t.Errorf("inspect: got exit %d, want it to say what nobody compared\n%s%s", tree.exit, tree.out, tree.talk)
			}
			l.inspect(t, row.exit == 0, args)
		})
	}
}

// TestLogOfDevices: the log says which GPUs a unit had, and what nobody compared.
func TestLogOfDevices(t *testing.T) {
	got := logLine(api.LogEntry{Kind: "issued", Task: "train", Platform: "snp", Chip: "c", Devices: []api.LogDevice{{Platform: "nvidia-gpu", Chip: "d", Unjudged: []string{"x", "y"}}}})
	if want := " on snp c with nvidia-gpu d (not judged: x; y)"; !strings.HasSuffix(got, want) {
		t.Errorf("got %q, want it to end in %q", got, want)
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
	for _, mode := range []string{nvidia.ModeSingle, nvidia.ModeMulti, nvidia.ModePPCIE, nvidia.ModeUnstated} {
		doc, err := policy.Parse(bytes.Replace(text, []byte(`"SPT"`), []byte(strconv.Quote(mode)), 1))
		if err != nil || !slices.Equal(doc.Platforms[attest.NvidiaGPU].NVIDIA.Modes, []string{mode}) {
			t.Errorf("%s: %v", mode, err)
		}
	}
}

// inspect demands a view whose verdict and parts agree.
func (l *laboratory) inspect(t *testing.T, holds bool, args []string) {
	t.Helper()
	got := run(t, nil, append([]string{"evidence", "inspect", "-o", "json"}, args...)...)
	var view struct {
		Platform attest.Platform
		Devices  []struct {
			Platform attest.Platform
			Chip     string
			Unjudged []string
			Fields   map[string]any
		}
		Verdict struct {
			Verdict  string
			Unjudged []string
		}
	}
	if err := json.Unmarshal([]byte(got.out), &view); err != nil {
		t.Fatalf("%v\n%s", err, got.talk)
	}
	if (view.Verdict.Verdict == "holds") != holds {
		t.Errorf("got verdict %q, want holds = %v", view.Verdict.Verdict, holds)
	}
	for i, d := range view.Devices {
		if d.Platform != attest.NvidiaGPU || (d.Chip != "") != holds || d.Fields["driver"] != attesttest.NVIDIADriver || !slices.Contains(d.Unjudged, notCompared) {
			t.Errorf("device %d: got %+v", i, d)
		}
	}
	if len(view.Devices) > 0 && !slices.Contains(view.Verdict.Unjudged, "device 0: "+notCompared) {
		t.Errorf("got unjudged %q in the verdict", view.Verdict.Unjudged)
	}
}
