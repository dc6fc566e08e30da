package policy

import (
	"bytes"
	"fmt"
	"regexp"
	"strings"
	"testing"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/internal/wire"
	"github.com/cohort-tee/cohort/policy/policyfile"
	"github.com/cohort-tee/cohort/policy/policytest"
)

var (
	sequenceLine = regexp.MustCompile(`(?m)^sequence *=.*$`)
	previousLine = regexp.MustCompile(`(?m)^previous *=.*$`)
)

// began returns the history that begins with a text.
func (h *house) began(t testing.TB, text []byte) Approved {
	t.Helper()
	a, err := Genesis(wire.Sum(text), h.step(t, text, signersOf(mustParse(t, text))...))
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// nextPolicy returns a history with one more policy, made from a text for a first policy.
func (h *house) nextPolicy(t testing.TB, a Approved, text []byte) Approved {
	t.Helper()
	text = sequenceLine.ReplaceAll(text, fmt.Append(nil, "sequence = ", a.Document().Sequence+1))
	text = previousLine.ReplaceAll(text, fmt.Appendf(nil, "previous = %q", a.Document().Digest()))
	a, err := a.Next(h.step(t, text, signersOf(a.Document())...))
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// signersOf returns as many of ana and ben as a policy's quorum.
func signersOf(d *policyfile.Document) []string { return []string{"ana", "ben"}[:d.Owners.Quorum] }

// id returns the identity of a release.
func (a Approved) id(t testing.TB, task, release string) attest.Digest {
	t.Helper()
	r, named := a.doc.Tasks[task].Releases[release]
	if !named {
		t.Fatalf("no release %s of task %s", release, task)
	}
	return a.doc.ReleaseID(a.genesis, task, r.References)
}

// unitOf returns the facts of a unit of task keys that was admitted on a platform.
func unitOf(t testing.TB, a Approved, release string, p attest.Platform, chip string) Facts {
	return Facts{Task: "keys", Identity: a.id(t, "keys", release), Unit: wire.UnitID{1}, Platform: p, Chip: chip, Head: a.PolicyHead()}
}

const (
	tdxChip = "000000000000000000000000000000aa"
	nitroID = "i-0123456789abcdef-enc0123456789abcdef"
)

// hardwareUnits returns a unit of task keys on each platform of the hardware policy.
func hardwareUnits(t testing.TB, a Approved) map[attest.Platform]Facts {
	return map[attest.Platform]Facts{
		attest.SNP:   unitOf(t, a, "1", attest.SNP, strings.Repeat("1", 128)),
		attest.TDX:   unitOf(t, a, "1", attest.TDX, tdxChip),
		attest.SGX:   unitOf(t, a, "1", attest.SGX, "00000000000000000000000000000001"),
		attest.Nitro: unitOf(t, a, "1", attest.Nitro, nitroID),
	}
}

// hardwareCuts are steps, as edits of the hardware policy, with the platforms whose units each
// step refuses at once, and whether the step is a cut for the identity, so that its shared leaf
// is replaced.
var hardwareCuts = []struct {
	name  string
	edits []string
	cuts  []attest.Platform
	isCut bool
}{
	{"nothing", nil, nil, false},
	{"a comment", []string{"[owners]", "# read\n[owners]"}, nil, false},
	{"a chip of others", []string{`cut_chips = ["C2"]`, `cut_chips = ["C2", "C3"]`}, nil, true},
	{"its chip", []string{`cut_chips = ["C2"]`, `cut_chips = ["C2", "C1"]`}, []attest.Platform{attest.SNP}, true},
	{"its chip from the list", []string{`chips = ["C1", `, `chips = [`}, []attest.Platform{attest.SNP}, true},
	{"another chip from the list", []string{`chips = ["C1", "c3c3c3c3c3c3c3c3"]`, `chips = ["C1"]`}, nil, true},
	{"its PPID", []string{`["0123456789abcdef0123456789abcdef"]`, `["0123456789abcdef0123456789abcdef", "` + tdxChip + `"]`}, []attest.Platform{attest.TDX}, true},
	{"any chip but one", []string{`chips = "any"`, `chips = ["0000000000000000000000000000000b"]`}, []attest.Platform{attest.TDX}, true},
	{"a raised floor", []string{"snp = 8,", "snp = 22,"}, []attest.Platform{attest.SNP}, true},
	{"a lowered floor", []string{"snp = 8,", "snp = 7,"}, nil, false},
	{"a model", []string{`["90c06f000000"]`, `["90c06f000000", "00906ed50000"]`}, []attest.Platform{attest.TDX}, true},
	{"debug", []string{"debug = true\n", ""}, []attest.Platform{attest.TDX}, true},
	{"a status", []string{`, "OutOfDate"`, ""}, []attest.Platform{attest.TDX}, true},
	{"a later evaluation", []string{"min_evaluation = 17", "min_evaluation = 18"}, []attest.Platform{attest.TDX}, true},
	{"a higher isvsvn", []string{"min_isvsvn = 4", "min_isvsvn = 5"}, []attest.Platform{attest.SGX}, true},
	{"younger documents", []string{`"5m"`, `"4m"`}, []attest.Platform{attest.Nitro}, true},
	{"a platform root replaced", []string{"[platform.nitro]\nroots = [\"sha256:R3\"]", "[platform.nitro]\nroots = [\"sha256:R1\"]"}, []attest.Platform{attest.Nitro}, true},
	{"a platform root added", []string{"[platform.nitro]\nroots = [", "[platform.nitro]\nroots = [\"sha256:R1\", "}, nil, false},
	{"the code", []string{`pcr2 = "sha384:M3"`, `pcr2 = "sha384:M4"`}, []attest.Platform{attest.SNP, attest.TDX, attest.SGX, attest.Nitro}, true},
	{"code by its name", []string{`sha256 = "S1"`, `sha256 = "S2"`}, []attest.Platform{attest.SNP, attest.TDX, attest.SGX, attest.Nitro}, true},
	{"a platform", []string{"[platform.nitro]\nroots = [\"sha256:R3\"]\nmax_age = \"5m\"\n", "", "  { platform = \"nitro\", pcr0 = \"sha384:M1\", pcr1 = \"sha384:M2\", pcr2 = \"sha384:M3\", pcr8 = \"sha384:M0\" },\n", ""},
		[]attest.Platform{attest.SNP, attest.TDX, attest.SGX, attest.Nitro}, true}, // the step gives the others a new identity
	{"a device demanded", []string{"key_mode = \"unit\"\n[task.keys.release.\"1\"]\n", gpuRules + "[task.keys]\nkey_mode = \"unit\"\n[task.keys.release.\"1\"]\ndevices = { nvidia-gpu = 1 }\n", "[task.keys]\n[platform", "[platform"},
		[]attest.Platform{attest.SNP, attest.TDX, attest.SGX, attest.Nitro}, true},
	{"its unit", []string{"key_mode = \"unit\"\n", "key_mode = \"unit\"\ncut_units = [\"01000000000000000000000000000000\"]\n"},
		[]attest.Platform{attest.SNP, attest.TDX, attest.SGX, attest.Nitro}, true},
	{"another unit", []string{"key_mode = \"unit\"\n", "key_mode = \"unit\"\ncut_units = [\"02000000000000000000000000000000\"]\n"}, nil, true},
	{"retired", []string{"[task.keys.release.\"1\"]\n", "[task.keys.release.\"1\"]\nretired = true\n"}, nil, false},
	{"names, life and places", []string{"key_mode = \"unit\"\n", "key_mode = \"unit\"\nnames = [\"keys.clinic.example\"]\nlifetime = \"5m\"\nunits = 3\n"}, nil, false},
	{"a longer quorum", []string{`approve_within = "168h"`, `approve_within = "24h"`}, nil, false},
	{"another program of the authority", []string{`machines = ["chip:C1"]`, `machines = "any"`}, nil, false},
	{"another release", []string{"[task.keys.release.\"1\"]\n", "[task.keys.release.\"2\"]\nreference = [ { platform = \"snp\", measurement = \"sha384:M3\", any = [\"host-data\"] } ]\n[task.keys.release.\"1\"]\n"}, nil, false},
}

// gpuRules accept devices of NVIDIA.
const gpuRules = `[platform.nvidia-gpu]
roots = ["sha256:R1"]
models = ["GH100"]
chips = "any"
drivers = "any"
vbios = "any"
modes = ["SPT"]
measurements = "any"
`

func TestCutOff(t *testing.T) {
	h := newHouse()
	for _, tt := range hardwareCuts {
		t.Run(tt.name, func(t *testing.T) {
			before := h.began(t, policytest.IronText(t))
			after := h.nextPolicy(t, before, policytest.IronText(t, tt.edits...))
			for p, unit := range hardwareUnits(t, before) {
				if err := before.CutOff(unit, policytest.Start); err != nil {
					t.Fatalf("%s, before the step: %v", p, err)
				}
				want := bytes.Contains(fmt.Append(nil, tt.cuts), []byte(p)) // no platform's name is part of another's
				err := after.CutOff(unit, policytest.Start)
				if got := wire.ReasonOf(err) == wire.CutOff; got != want || err != nil && !got {
					t.Errorf("%s: got %v, want cut off: %v", p, err, want)
				}
			}
			id := before.id(t, "keys", "1")
			if got, want := after.LastCut(id, "") == after.PolicyHead(), tt.isCut; got != want {
				t.Errorf("got a cut of the identity: %v, want %v", got, want)
			}
			if got := before.LastCut(id, ""); !got.IsZero() {
				t.Errorf("before: got cut %v, want none", got)
			}
		})
	}
}

// TestCutStays: a later policy takes a cut back. Leaves issued before the cut, and shared leaves,
// stay cut off. For a unit, a chip or a list, only the newest policy counts.
func TestCutStays(t *testing.T) {
	h := newHouse()
	for _, tt := range hardwareCuts {
		if !tt.isCut {
			continue
		}
		t.Run(tt.name, func(t *testing.T) {
			before := h.began(t, policytest.IronText(t))
			cut := h.nextPolicy(t, before, policytest.IronText(t, tt.edits...))
			back := h.nextPolicy(t, cut, policytest.IronText(t))
			later := h.nextPolicy(t, back, policytest.IronText(t, "[owners]", "# later\n[owners]"))
			id, last := before.id(t, "keys", "1"), cut.PolicyHead()
			if strings.Contains(tt.name, "replaced") {
				last = back.PolicyHead() // removes the replacement
			}
			for name, a := range map[string]Approved{"taken back": back, "later": later, "replayed": mustReplay(t, later)} {
				if got := a.LastCut(id, ""); got != last {
					t.Errorf("%s: got last cut %v, want %v", name, got, last)
				}
				// Cuts of recorded values (chip, PPID, unit) depend only on the policy in force.
				exact := strings.Contains(tt.name, "chip") || strings.Contains(tt.name, "PPID") || strings.Contains(tt.name, "unit")
				for p, unit := range hardwareUnits(t, before) {
					want := bytes.Contains(fmt.Append(nil, tt.cuts), []byte(p)) && !exact
					if got := a.CutOff(unit, policytest.Start) != nil; got != want {
						t.Errorf("%s, %s: got %v, want cut off: %v", name, p, a.CutOff(unit, policytest.Start), want)
					}
				}
			}
			// Units admitted after the cut was taken back are not cut off.
			for p, unit := range hardwareUnits(t, back) {
				if err := later.CutOff(unit, policytest.Start); err != nil {
					t.Errorf("%s, admitted later: %v", p, err)
				}
			}
		})
	}
}

func mustReplay(t testing.TB, a Approved) Approved {
	t.Helper()
	again, err := Replay(a.Genesis(), a.Steps())
	if err != nil {
		t.Fatal(err)
	}
	return again
}

// TestCutPair: a shared leaf is accepted only if it names the last cut.
func TestCutPair(t *testing.T) {
	h := newHouse()
	first := h.began(t, h.Text(t))
	raised := h.nextPolicy(t, first, h.Text(t, "debug = true\n", ""))
	again := h.nextPolicy(t, raised, h.Text(t))
	gone := h.nextPolicy(t, again, h.Text(t, strings.Repeat("6", 64), strings.Repeat("8", 64)))
	back := h.nextPolicy(t, gone, h.Text(t))
	other := h.nextPolicy(t, back, h.Text(t, strings.Repeat("4", 64), strings.Repeat("8", 64))) // changes task keys
	id := first.id(t, "scoring", "2026.11")
	pair := func(cut attest.Digest) Facts {
		return Facts{Task: "scoring", Identity: id, Head: cut, Shared: true}
	}
	for _, tt := range []struct {
		name string
		a    Approved
		cut  attest.Digest
		want attest.Reason
	}{
		{"no cut yet", first, attest.Digest{}, ""},
		{"a later cut", first, raised.PolicyHead(), wire.Behind},
		{"before the cut", raised, attest.Digest{}, wire.CutOff},
		{"after the cut", raised, raised.PolicyHead(), ""},
		{"taken back", again, raised.PolicyHead(), ""},
		{"taken back, before the cut", again, attest.Digest{}, wire.CutOff},
		{"a head that is no cut", again, again.PolicyHead(), wire.CutOff},
		{"the release is gone", gone, gone.PolicyHead(), wire.CutOff},
		{"put back, before it was gone", back, raised.PolicyHead(), wire.CutOff},
		{"put back", back, gone.PolicyHead(), ""},
		{"a cut of another task", other, gone.PolicyHead(), ""},
		{"a head of another history", other, policytest.Digest("9"), wire.Behind},
		{"replayed", mustReplay(t, other), gone.PolicyHead(), ""},
		{"nothing approved", Approved{}, attest.Digest{}, wire.BadPolicy},
	} {
		t.Run(tt.name, func(t *testing.T) {
			err := tt.a.CutOff(pair(tt.cut), policytest.Start)
			if tt.want == "" && err != nil {
				t.Fatal(err)
			}
			if tt.want != "" {
				policytest.Refused(t, err, tt.want)
			}
		})
	}
	if got, want := mustReplay(t, other).Heads(), other.Heads(); len(got) != len(want) {
		t.Fatalf("got %d heads, want %d", len(got), len(want))
	}
}

// TestCutsOfPrefixes: each policy of a history knows its own cuts, however the history was
// approved. Two policies that follow the same one do not know each other's cuts.
func TestCutsOfPrefixes(t *testing.T) {
	h := newHouse()
	texts := [][]byte{
		h.Text(t), h.Text(t, "debug = true\n", ""), h.Text(t), h.Text(t, strings.Repeat("6", 64), strings.Repeat("8", 64)),
		h.Text(t), h.Text(t, "units = 50\n", "units = 50\ncut_units = [\""+strings.Repeat("a", 32)+"\"]\n"),
	}
	a := h.began(t, texts[0])
	id := a.id(t, "scoring", "2026.11")
	cuts := []int{0, 1, 1, 3, 3, 5} // the step of the last cut; 0 is none
	all := []Approved{a}
	for _, text := range texts[1:] {
		a = h.nextPolicy(t, a, text)
		all = append(all, a)
	}
	replayed := mustReplay(t, a)
	for i, want := range cuts {
		head := attest.Digest{}
		if want > 0 {
			head = a.Heads()[want]
		}
		then, _ := replayed.AtHead(a.Heads()[i])
		for name, x := range map[string]Approved{"step by step": all[i], "looking back": then, "replayed": mustReplay(t, all[i])} {
			if got := x.LastCut(id, ""); got != head {
				t.Errorf("step %d, %s: got %v, want that of step %d", i, name, got, want)
			}
		}
	}
	one, two := h.nextPolicy(t, all[2], texts[3]), h.nextPolicy(t, all[2], texts[5])
	if one.LastCut(id, "") != one.PolicyHead() || two.LastCut(id, "") != two.PolicyHead() || all[2].LastCut(id, "") != all[1].PolicyHead() {
		t.Error("two policies that follow one know each other's cuts")
	}
}

// TestCutOfRaisedRelease: when a release demands a property that leaves do not record, earlier
// leaves are refused.
func TestCutOfRaisedRelease(t *testing.T) {
	h := newHouse()
	first := h.began(t, h.Text(t))
	static := h.nextPolicy(t, first, h.Text(t, "dynamic = true\n", ""))
	unit := Facts{Task: "scoring", Identity: first.id(t, "scoring", "2026.11"), Unit: wire.UnitID{1}, Platform: attest.Soft, Head: first.PolicyHead()}
	policytest.Refused(t, static.CutOff(unit, policytest.Start), wire.CutOff)
	unit.Head = static.PolicyHead()
	if err := static.CutOff(unit, policytest.Start); err != nil {
		t.Error(err)
	}
	oneoff := h.nextPolicy(t, first, h.Text(t, "oneoff = true\n", "", "continues = \"2026.10\"\n", "", `env = { LANG = "C" }`, `env = { LANG = "D" }`))
	if got := oneoff.LastCut(unit.Identity, ""); !got.IsZero() {
		t.Errorf("got cut %v of what a release is given, want none", got)
	}
}

// TestCutOnTPM: a policy removes code that a TPM's machine may have launched. That cuts off every
// unit on a TPM, whatever its own code, because its machine may have launched the removed code.
func TestCutOnTPM(t *testing.T) {
	h := newHouse()
	two := fmt.Sprintf("program = %q, args = [\"-v\"] } ]\n", wire.Sum([]byte("keys")))
	more := two + "[task.more]\nkey_mode = \"unit\"\n[task.more.release.1]\n" + strings.Replace(referenceOfKeys(t), `args = ["-v"]`, `args = ["-w"]`, 1)
	first := h.began(t, []byte(policytest.TPMPolicy(two, more)))
	gone := h.nextPolicy(t, first, []byte(policytest.TPMPolicy()))
	unit := unitOf(t, first, "1", attest.TPM, strings.Repeat("0a", 32))
	policytest.Refused(t, gone.CutOff(unit, policytest.Start), wire.CutOff)
	if gone.LastCut(unit.Identity, "") != gone.PolicyHead() {
		t.Error("the step is no cut of the release that stays")
	}
	added := h.nextPolicy(t, gone, []byte(policytest.TPMPolicy(two, more)))
	if added.LastCut(unit.Identity, "") != gone.PolicyHead() {
		t.Error("code that comes is a cut")
	}
}

// referenceOfKeys returns the reference of task keys in the TPM policy.
func referenceOfKeys(t testing.TB) string {
	text := policytest.TPMPolicy()
	return text[strings.LastIndex(text, "reference = "):]
}

func TestIndex(t *testing.T) {
	h := newHouse()
	first := h.began(t, h.Text(t))
	second := h.nextPolicy(t, first, h.Text(t))
	for i, head := range second.Heads() {
		if got, known := second.Index(head); got != i || !known {
			t.Errorf("got %d, %v, want %d", got, known, i)
		}
	}
	if got, known := second.Index(attest.Digest{}); got != -1 || !known {
		t.Errorf("the zero head: got %d, %v, want -1", got, known)
	}
	for _, a := range []Approved{first, {}} {
		if _, known := a.Index(second.PolicyHead()); known {
			t.Error("got the place of a head that is not there")
		}
	}
	if _, known := (Approved{}).Index(attest.Digest{}); known {
		t.Error("the zero Approved has places")
	}
}

// TestChipRefused: each platform with chip ids refuses a chip by its own rules. If a chip could
// be a cut one and its id cannot be parsed, the chip is refused too.
func TestChipRefused(t *testing.T) {
	id, ppid := bytes.Repeat([]byte{0xab}, 32), bytes.Repeat([]byte{0xab}, 16)
	milan, short := bytes.Repeat([]byte{0xcd}, 64), append(bytes.Repeat([]byte{0xcd}, 8), make([]byte, 56)...)
	anyChip := attest.List{Any: true}
	snp := func(r attest.SNPRules) attest.Rules { return attest.Rules{SNP: r} }
	for _, tt := range []struct {
		name     string
		platform attest.Platform
		chip     string
		rules    attest.Rules
		want     string
	}{
		{"a Turin", attest.SNP, "cdcdcdcdcdcdcdcd", snp(attest.SNPRules{Chips: anyChip, CutChips: [][]byte{short}}), "cut_chips"},
		{"a Milan", attest.AzureSNP, fmt.Sprintf("%x", milan), snp(attest.SNPRules{Chips: anyChip, CutChips: [][]byte{milan}}), "cut_chips"},
		{"another Milan", attest.SNP, fmt.Sprintf("%x", milan), snp(attest.SNPRules{Chips: anyChip, CutChips: [][]byte{short}}), ""},
		{"a Milan on the list", attest.SNP, fmt.Sprintf("%x", milan), snp(attest.SNPRules{Chips: attest.List{Values: [][]byte{milan}}}), ""},
		{"a Milan that is not on the list", attest.SNP, fmt.Sprintf("%x", milan), snp(attest.SNPRules{Chips: attest.List{Values: [][]byte{short}}}), "chips"},
		{"a hidden chip", attest.SNP, "vlek:cloud", snp(attest.SNPRules{Chips: anyChip}), "hidden_chips"},
		{"a hidden chip that may hide", attest.SNP, "vlek:cloud", snp(attest.SNPRules{Chips: anyChip, HiddenChips: true}), ""},
		{"a hidden chip beside a cut one", attest.SNP, "vlek:cloud", snp(attest.SNPRules{Chips: anyChip, HiddenChips: true, CutChips: [][]byte{milan}}), "hidden_chips"},
		{"a PPID", attest.TDX, fmt.Sprintf("%x", ppid), attest.Rules{DCAP: attest.DCAPRules{Chips: anyChip, CutChips: [][]byte{ppid}}}, "cut_chips"},
		{"no PPID", attest.SGX, "", attest.Rules{DCAP: attest.DCAPRules{Chips: anyChip, CutChips: [][]byte{ppid}}}, "cut_chips"},
		{"a PPID that is not on the list", attest.SGX, fmt.Sprintf("%x", id[:16]), attest.Rules{DCAP: attest.DCAPRules{Chips: attest.List{Values: [][]byte{milan[:16]}}}}, "chips"},
		{"an EK", attest.TPM, fmt.Sprintf("%x", id), attest.Rules{TPM: attest.TPMRules{CutChips: [][]byte{id}}}, "cut_chips"},
		{"another EK", attest.TPM, fmt.Sprintf("%x", milan[:32]), attest.Rules{TPM: attest.TPMRules{CutChips: [][]byte{id}}}, ""},
		{"a GPU", attest.NvidiaGPU, fmt.Sprintf("sha256:%x", id), attest.Rules{NVIDIA: attest.NVIDIARules{Chips: anyChip, CutChips: [][]byte{id}}}, "cut_chips"},
		{"an instance of AWS", attest.Nitro, "i-0123456789abcdef-enc0123456789abcdef", attest.Rules{}, ""},
	} {
		if got := policyfile.ChipRefused(tt.platform, tt.rules, tt.chip); got != tt.want {
			t.Errorf("%s: got %q, want %q", tt.name, got, tt.want)
		}
	}
}

// TestCutsOff: whether a change cuts off units of one release.
func TestCutsOff(t *testing.T) {
	cut := `cut_units = ["` + strings.Repeat("a", 32) + `"]`
	for _, row := range []struct {
		name          string
		edits         []string
		next, reverse bool // next: from the good policy to the edited one; reverse: back
	}{
		{"nothing", nil, false, false},
		{"a unit", []string{"units = 50", "units = 50\n" + cut}, true, false},
		{"a unit of another task", []string{"[task.keys]\n", "[task.keys]\n" + cut + "\n"}, false, false},
		{"a chip's roots", []string{`roots = ["sha256:1`, `roots = ["sha256:` + strings.Repeat("8", 64) + `", "sha256:1`}, false, true},
		{"debug", []string{"debug = true\n", ""}, true, false},
		{"code", []string{strings.Repeat("6", 64), strings.Repeat("8", 64)}, true, true},
		{"code by its name", []string{strings.Repeat("2", 64), strings.Repeat("8", 64)}, true, true},
		{"code of another task", []string{strings.Repeat("4", 64), strings.Repeat("8", 64)}, false, false},
		{"what a release gives", []string{"dynamic = true\n", ""}, true, false},
		{"its names, life and calls", []string{`, "score.clinic.example"`, "", `lifetime = "30m"`, `lifetime = "20m"`, `calls = ["keys"]`, ""}, false, false},
		{"the quorum", []string{"quorum = 2", "quorum = 1"}, false, false},
	} {
		t.Run(row.name, func(t *testing.T) {
			h := newHouse()
			cut := func(old, next []byte) bool {
				a := h.began(t, old)
				return !h.nextPolicy(t, a, next).LastCut(a.id(t, "scoring", "2026.11"), "").IsZero()
			}
			if got := cut(h.Text(t), h.Text(t, row.edits...)); got != row.next {
				t.Errorf("got %v, want %v", got, row.next)
			}
			if got := cut(h.Text(t, row.edits...), h.Text(t)); got != row.reverse {
				t.Errorf("back: got %v, want %v", got, row.reverse)
			}
		})
	}
}
