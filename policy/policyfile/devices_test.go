package policyfile

import (
	"errors"
	"fmt"
	"reflect"
	"slices"
	"testing"
	"time"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/policy/policytest"
	"github.com/cohort-tee/cohort/policy/policytoml"
)

func TestParseReadsDevices(t *testing.T) {
	d := mustParse(t, policytest.GPUText(t))
	want := attest.Rules{Roots: []attest.Digest{policytest.Digest("1")}, CRL: attest.CRLIfPresent, CheckedWithin: 48 * time.Hour, NVIDIA: attest.NVIDIARules{
		Models: []string{"GH100", "GB100"}, Chips: attest.List{Values: [][]byte{policytest.Alike(2, 32)}}, CutChips: [][]byte{policytest.Alike(3, 32)},
		Drivers: attest.List{Values: [][]byte{[]byte("550.90.07"), []byte("575.32")}}, VBIOS: attest.List{Any: true},
		Modes: []string{"SPT", "unstated"}, AnyMeasurements: true, Development: true,
	}}
	if got := d.Platforms[attest.NvidiaGPU]; !reflect.DeepEqual(got, want) {
		t.Errorf("got rules %+v, want %+v", got, want)
	}
	if got := d.Tasks["keys"].Releases["1"].Devices; !reflect.DeepEqual(got, map[attest.Platform]int{attest.NvidiaGPU: 2}) {
		t.Errorf("got devices %v, want two GPUs", got)
	}
	if !d.Tasks["keys"].Releases["1"].Retired || d.MaxSilence != 10*time.Minute {
		t.Errorf("got retired %v, max_silence %v", d.Tasks["keys"].Releases["1"].Retired, d.MaxSilence)
	}
}

// TestParseRefusesDevelopmentMode: a policy accepts development mode only if it names it.
func TestParseRefusesDevelopmentMode(t *testing.T) {
	for name, line := range map[string]string{"left out": "", "production": "mode = \"production\"\n"} {
		if d := mustParse(t, policytest.GPUText(t, "mode = \"development\"\n", line)); d.Platforms[attest.NvidiaGPU].NVIDIA.Development {
			t.Errorf("%s: development mode is accepted", name)
		}
	}
}

var gpuRefusals = []refusal{
	{"gpu without models", "models = [\"GH100\", \"GB100\"]\n", "", "platform.nvidia-gpu.models", "required key", ""},
	{"gpu without chips", "chips = [\"sha256:R2\"]\n", "", "platform.nvidia-gpu.chips", "required key", ""},
	{"gpu without drivers", "drivers = [\"550.90.07\", \"575.32\"]\n", "", "platform.nvidia-gpu.drivers", "required key", ""},
	{"gpu without vbios", "vbios = \"any\"\n", "", "platform.nvidia-gpu.vbios", "required key", ""},
	{"gpu without modes", "modes = [\"SPT\", \"unstated\"]\n", "", "platform.nvidia-gpu.modes", "required key", ""},
	{"gpu without measurements", "measurements = \"any\"\n", "", "platform.nvidia-gpu.measurements", "required key", ""},
	{"measurements that something compares", `measurements = "any"`, `measurements = "rim"`, "platform.nvidia-gpu.measurements", "value", `"any"`},
	{"model in lower case", `"GB100"]`, `"gb100"]`, "platform.nvidia-gpu.models[1]", "value", "GH100"},
	{"model of another form", `"GB100"]`, `"GB2XX"]`, "platform.nvidia-gpu.models[1]", "value", "GH100"},
	{"every model", `models = ["GH100", "GB100"]`, `models = "any"`, "platform.nvidia-gpu.models", "value", "a list"},
	{"driver that is none", `"575.32"]`, `"575.32 "]`, "platform.nvidia-gpu.drivers[1]", "value", "550.90.07"},
	{"vbios in lower case", `vbios = "any"`, `vbios = ["96.00.9f.00.01"]`, "platform.nvidia-gpu.vbios[0]", "value", "96.00.9F.00.01"},
	{"unknown mode", `"unstated"]`, `"off"]`, "platform.nvidia-gpu.modes[1]", "value", "PPCIE"},
	{"unknown state", `mode = "development"`, `mode = "debug"`, "platform.nvidia-gpu.mode", "value", "production or development"},
	{"a state that is a flag", `mode = "development"`, `mode = true`, "platform.nvidia-gpu.mode", "value", "production or development"},
	{"gpu chip of another size", `chips = ["sha256:R2"]`, `chips = ["R2"]`, "platform.nvidia-gpu.chips[0]", "value", "sha256:"},
	{"gpu with max_age", `measurements = "any"`, "measurements = \"any\"\nmax_age = \"5m\"", "platform.nvidia-gpu.max_age", "unknown key", ""},
	{"a reference value of a device", `{ platform = "nitro", `, `{ platform = "nvidia-gpu", `, nitroRef + ".platform", "value", "azure-snp, nitro"},
	{"no devices demanded", "nvidia-gpu = 2", "nvidia-gpu = 0", "task.keys.release.1.devices.nvidia-gpu", "value", "1 to 16"},
	{"more devices than evidence may hold", "nvidia-gpu = 2", "nvidia-gpu = 17", "task.keys.release.1.devices.nvidia-gpu", "value", "1 to 16"},
	{"a TEE demanded as a device", "nvidia-gpu = 2", "snp = 2", "task.keys.release.1.devices.snp", "platform", "nvidia-gpu"},
	{"an unknown device", "nvidia-gpu = 2", "gpu = 2", "task.keys.release.1.devices.gpu", "platform", "nvidia-gpu"},
	{"devices as a number", "devices = { nvidia-gpu = 2 }", "devices = 2", "task.keys.release.1.devices", "value", "a table"},
	{"a device without its table", policytest.GPUTable, "", "task.keys.release.1.devices", "platform", "[platform.nvidia-gpu]"},
}

func TestParseDeviceRefusals(t *testing.T) {
	for _, r := range gpuRefusals {
		t.Run(r.name, func(t *testing.T) {
			_, err := Parse(policytest.GPUText(t, r.old, r.new))
			var faults policytoml.Faults
			if !errors.As(err, &faults) || !slices.ContainsFunc(faults, r.is) {
				t.Errorf("got %v, want a fault at %q, rule %q, want %q", err, r.path, r.rule, r.want)
			}
		})
	}
}

// TestDiffOfDevices: each row is an edit, with the changes that it makes and that undoing it
// makes.
func TestDiffOfDevices(t *testing.T) {
	for _, row := range []struct {
		name, old, new string
		want, back     []string
	}{
		{"more devices", "nvidia-gpu = 2", "nvidia-gpu = 3", []string{`~ task.keys.release.1.devices.nvidia-gpu = 3, was 2 (tightens)`}, []string{`~ task.keys.release.1.devices.nvidia-gpu = 2, was 3 (loosens)`}},
		{"no devices", "devices = { nvidia-gpu = 2 }\n", "", []string{`- task.keys.release.1.devices = { nvidia-gpu = 2 } (loosens)`}, []string{`+ task.keys.release.1.devices.nvidia-gpu = 2 (tightens)`}},
		{"model removed", `, "GB100"`, "", []string{`- platform.nvidia-gpu.models = "GB100" (tightens)`}, []string{`+ platform.nvidia-gpu.models = "GB100" (loosens)`}},
		{"driver removed", `, "575.32"`, "", []string{`- platform.nvidia-gpu.drivers = "575.32" (tightens)`}, []string{`+ platform.nvidia-gpu.drivers = "575.32" (loosens)`}},
		{"vbios named", `vbios = "any"`, `vbios = ["96.00.9F.00.01"]`, []string{`~ platform.nvidia-gpu.vbios = ["96.00.9F.00.01"], was "any" (tightens)`}, []string{`~ platform.nvidia-gpu.vbios = "any", was ["96.00.9F.00.01"] (loosens)`}},
		{"any driver", `["550.90.07", "575.32"]`, `"any"`, []string{`~ platform.nvidia-gpu.drivers = "any", was ["550.90.07", "575.32"] (loosens)`}, []string{`~ platform.nvidia-gpu.drivers = ["550.90.07", "575.32"], was "any" (tightens)`}},
		{"mode removed", `, "unstated"`, "", []string{`- platform.nvidia-gpu.modes = "unstated" (tightens)`}, []string{`+ platform.nvidia-gpu.modes = "unstated" (loosens)`}},
		{"development mode refused", `mode = "development"`, `mode = "production"`, []string{`~ platform.nvidia-gpu.mode = "production", was "development" (tightens)`}, []string{`~ platform.nvidia-gpu.mode = "development", was "production" (loosens)`}},
		{"development mode left out", "mode = \"development\"\n", "", []string{`- platform.nvidia-gpu.mode = "development" (tightens)`}, []string{`+ platform.nvidia-gpu.mode = "development" (loosens)`}},
		{"GPU cut off", `cut_chips = ["sha256:R3"]`, `cut_chips = ["sha256:R3", "sha256:R4"]`, []string{`+ platform.nvidia-gpu.cut_chips = "sha256:R4" (tightens)`}, []string{`- platform.nvidia-gpu.cut_chips = "sha256:R4" (loosens)`}},
	} {
		t.Run(row.name, func(t *testing.T) {
			old, next := mustParse(t, policytest.GPUText(t)), mustParse(t, policytest.GPUText(t, row.old, row.new))
			wantDiff(t, old, next, spelled(row.want), "\x00")
			wantDiff(t, next, old, spelled(row.back), "\x00")
		})
	}
}

// TestFloorsOfDevices: the parties of a group approve the policy's rules for a member's devices,
// so loosening them is detected.
func TestFloorsOfDevices(t *testing.T) {
	group := fmt.Sprintf("[group.trial]\nkey_mode = \"unit\"\nquorum = 1\nuntil = 2026-12-20T00:00:00Z\nparty = [ { name = \"east\", ssh = %q } ]\n[group.trial.role]\nholder = { members = [ { party = \"east\", task = \"keys\", release = \"1\" } ] }\n",
		policytest.KeyLine(policytest.Fixed("east").PublicKey()))
	floors := func(edits ...string) Floors {
		text, err := CopyAuthority(policytest.GPUText(t, append(edits, "[measured.signer]", group+"[measured.signer]")...))
		if err != nil {
			t.Fatal(err)
		}
		d := mustParse(t, text)
		return d.FloorsOf(d.Groups["trial"])
	}
	for _, row := range []struct {
		name, old, new string
		loosens        bool
	}{
		{"another root of GPUs", `roots = ["sha256:R1"]
crl = "if-present"
checked_within = "48h"
models`, `roots = ["sha256:R1", "sha256:R4"]
crl = "if-present"
checked_within = "48h"
models`, true},
		{"another mode", `"unstated"]`, `"unstated", "PPCIE"]`, true},
		{"one model less", `, "GB100"`, "", false},
		{"fewer GPUs", "nvidia-gpu = 2", "nvidia-gpu = 1", true},
		{"more GPUs", "nvidia-gpu = 2", "nvidia-gpu = 3", false},
		{"development mode refused", `mode = "development"`, `mode = "production"`, false},
	} {
		if got := floors().Loosened(floors(row.old, row.new)); got != row.loosens {
			t.Errorf("%s: got floors fallen %v, want %v", row.name, got, row.loosens)
		}
	}
	for _, before := range []string{"mode = \"production\"\n", ""} {
		if !floors("mode = \"development\"\n", before).Loosened(floors()) {
			t.Errorf("development mode accepted, before it %q: the floors have not fallen", before)
		}
	}
}
