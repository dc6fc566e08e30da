package policyfile

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/internal/wire"
	"github.com/cohort-tee/cohort/policy/policytest"
	"github.com/cohort-tee/cohort/policy/policytoml"
	"github.com/cohort-tee/cohort/policy/sshsig"
	"golang.org/x/crypto/ssh"
)

func mustParse(t testing.TB, raw []byte) *Document {
	t.Helper()
	d, err := Parse(raw)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// TestParseReadsEverything compares the whole document, so that no key is ignored or read into
// the wrong field.
func TestParseReadsEverything(t *testing.T) {
	h := policytest.NewHouse()
	raw := h.Text(t)
	got := mustParse(t, raw)
	keys, scoring := got.Tasks["keys"], got.Tasks["scoring"]
	value := func(d attest.Digest) []byte { return d[:] }
	soft := func(agent, program, args attest.Register) attest.ReferenceValue {
		agent.Name, program.Name, args.Name = "agent", "program", "args"
		return attest.ReferenceValue{Platform: attest.Soft, Registers: []attest.Register{agent, program, args}}
	}
	is := func(d attest.Digest) attest.Register { return attest.Register{Value: value(d)} }
	none, open := attest.Register{}, attest.Register{Any: true}
	noArgs := is(wire.Hash(wire.LabelArguments))
	model := is(wire.Hash(wire.LabelArguments, []byte("--model"), []byte("m.json")))

	want := &Document{
		TrustDomain: "clinic.example", Sequence: 1, Created: policytest.Start, Development: true,
		Owners: Owners{Quorum: 2, ApproveWithin: 168 * time.Hour, Delay: time.Hour, Keys: []Owner{
			{Name: "ana", Key: h.Owners["ana"].PublicKey()}, {Name: "ben", Key: h.Owners["ben"].PublicKey()}, {Name: "eva", Key: h.Owners["eva"].PublicKey()},
		}},
		Platforms: map[attest.Platform]attest.Rules{attest.Soft: {Roots: []attest.Digest{policytest.Digest("1")}, Debug: true}},
		Authority: Authority{Root: policytest.Digest("3"), Machines: Machines{Chips: []string{"0123456789abcdef"}}, References: []attest.ReferenceValue{soft(none, is(policytest.Digest("2")), noArgs)}},
		Tasks:     map[string]*Task{"keys": keys, "scoring": scoring},
		Groups:    map[string]*Group{},
		values:    got.values, raw: raw,
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got document %+v, want %+v", got, want)
	}
	wantKeys := &Task{Name: "keys", KeyMode: PerUnit, Lifetime: time.Hour, Releases: map[string]*Release{
		"1.4": {Name: "1.4", References: []attest.ReferenceValue{soft(open, is(policytest.Digest("4")), open)}},
	}}
	if !reflect.DeepEqual(keys, wantKeys) {
		t.Errorf("got task %+v, want %+v", keys, wantKeys)
	}
	agent := is(policytest.Digest("2"))
	wantScoring := &Task{
		Name: "scoring", KeyMode: Shared, Names: []string{"scoring.clinic.example", "score.clinic.example"},
		Lifetime: 30 * time.Minute, Units: 50, Calls: []string{"keys"},
		Releases: map[string]*Release{
			"2026.10": {Name: "2026.10", References: []attest.ReferenceValue{soft(agent, is(policytest.Digest("5")), noArgs)}},
			"2026.11": {
				Name:       "2026.11",
				References: []attest.ReferenceValue{soft(agent, is(policytest.Digest("6")), model), soft(agent, is(policytest.Digest("7")), noArgs)},
				Continues:  "2026.10", Dynamic: true, Env: map[string]string{"LANG": "C"}, OneOff: true,
			},
		},
	}
	if !reflect.DeepEqual(scoring, wantScoring) {
		t.Errorf("got task %+v, want %+v", scoring, wantScoring)
	}
	if got.Digest() != wire.Sum(raw) || !bytes.Equal(got.Source(), raw) {
		t.Error("the document does not keep the file as it was signed")
	}
}

// refusal is a smallest change of the good policy, with the one fault that it must give.
type refusal struct {
	name     string
	old, new string
	path     string
	rule     string
	want     string // part of the fault's want
}

func (r refusal) is(f policytoml.Fault) bool {
	return f.Path == r.path && f.Rule == r.rule && strings.Contains(f.Want, r.want)
}

var parseRefusals = []refusal{
	{"schema", `cohort/policy/v1"`, `cohort/policy/v2"`, "schema", "value", Schema},
	{"no schema", "schema       = \"cohort/policy/v1\"\n", "", "schema", "required key", ""},
	{"no trust domain", "trust_domain = \"clinic.example\"\n", "", "trust_domain", "required key", ""},
	{"trust domain in capitals", `= "clinic.example"`, `= "Clinic.example"`, "trust_domain", "value", "lower case"},
	{"trust domain too long for the authority's name", `= "clinic.example"`, `= "` + strings.Repeat("a.", 121) + `aaa"`, "trust_domain", "value", "243"},
	{"no sequence", "sequence     = 1\n", "", "sequence", "required key", ""},
	{"sequence 0", "sequence     = 1", "sequence     = 0", "sequence", "value", "1 to"},
	{"sequence beyond any history", "sequence     = 1\nprevious     = \"\"", "sequence = 10001\nprevious = \"sha256:" + strings.Repeat("a", 64) + `"`, "sequence", "value", "10000"},
	{"sequence as text", "sequence     = 1", `sequence     = "1"`, "sequence", "value", "whole number"},
	{"no previous", "previous     = \"\"\n", "", "previous", "required key", ""},
	{"genesis with previous", `previous     = ""`, `previous = "sha256:` + strings.Repeat("a", 64) + `"`, "previous", "genesis", ""},
	{"later policy without previous", "sequence     = 1", "sequence     = 2", "previous", "chain", ""},
	{"previous without prefix", `previous     = ""`, `previous = "` + strings.Repeat("a", 64) + `"`, "previous", "value", "sha256:"},
	{"no created", "created      = 2026-11-22T09:00:00Z   # UTC\n", "", "created", "required key", ""},
	{"created in another zone", "09:00:00Z", "09:00:00+01:00", "created", "value", "Z"},
	{"created without zone", "09:00:00Z", "09:00:00", "created", "value", "Z"},
	{"created with a fraction", "09:00:00Z", "09:00:00.5Z", "created", "value", "Z"},
	{"created before this century", "2026-11-22", "1926-11-22", "created", "value", ""},
	{"development as text", "development  = true", `development = "true"`, "development", "value", "true or false"},

	{"no owners", "[owners]", "[people]", "owners", "required key", ""},
	{"no quorum", "quorum = 2\n", "", "owners.quorum", "required key", ""},
	{"quorum 0", "quorum = 2", "quorum = 0", "owners.quorum", "value", "1 to 3"},
	{"quorum over the owners", "quorum = 2", "quorum = 4", "owners.quorum", "value", "1 to 3"},
	{"no approve_within", "approve_within = \"168h\"\n", "", "owners.approve_within", "required key", ""},
	{"approve_within 0", `"168h"`, `"0s"`, "owners.approve_within", "value", "1s"},
	{"approve_within without unit", `"168h"`, `"168"`, "owners.approve_within", "value", "duration"},
	{"no delay", "delay = \"1h\"\n", "", "owners.delay", "required key", ""},
	{"delay below 0", `delay = "1h"`, `delay = "-1s"`, "owners.delay", "value", "0s"},
	{"delay over a year", `delay = "1h"`, `delay = "8761h"`, "owners.delay", "value", "8760h"},
	{"no owner keys", "keys = [", "unused = [", "owners.keys", "required key", ""},
	{"owner without name", `{ name = "ana", ssh`, `{ ssh`, "owners.keys[0].name", "required key", ""},
	{"owner name in capitals", `"ana"`, `"Ana"`, "owners.keys[0].name", "value", wantName},
	{"owner without key", `name = "ana", ssh = "ANA"`, `name = "ana"`, "owners.keys[0].ssh", "required key", ""},
	{"owner with a key of small order", `ssh = "ANA"`, `ssh = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAEAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"`, "owners.keys[0].ssh", "value", "ssh-ed25519"},
	{"recipient of an owner of small order", `ssh = "ANA"`, `ssh = "ANA", age = "age1qqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqq5cu47z"`, "owners.keys[0].age", "value", "age1"},
	{"owner that is no table", `{ name = "ana", ssh = "ANA" }`, `"ana"`, "owners.keys[0]", "value", "a table"},
	{"unknown key of an owner", `name = "ana"`, `nom = "ana", name = "ana"`, "owners.keys[0].nom", "unknown key", "name"},
	{"owner twice", `"ben", ssh`, `"ana", ssh`, "owners.keys", "owner twice", ""},
	{"key twice", `"BEN"`, `"ANA"`, "owners.keys", "key twice", ""},
	{"recipient of an owner cut short", `ssh = "ANA"`, `ssh = "ANA", age = "` + policytest.AgeRecipient[:40] + `"`, "owners.keys[0].age", "value", "age1"},
	{"recipient of an owner that is a secret key", `ssh = "ANA"`, `ssh = "ANA", age = "AGE-SECRET-KEY-1QQQQQQQQQQQQQQQQQQQQQQQQQQQQQQQQQQQQQQQQQQQQQQQQQQQQQQQQQQ"`, "owners.keys[0].age", "value", "age1"},
	{"recipient of an owner that is an SSH key", `ssh = "ANA"`, `ssh = "ANA", age = "ANA"`, "owners.keys[0].age", "value", "age1"},
	{"recipient of an owner that is empty", `ssh = "ANA"`, `ssh = "ANA", age = ""`, "owners.keys[0].age", "value", "age1"},
	{"recipient of an owner that is a list", `ssh = "ANA"`, `ssh = "ANA", age = ["` + policytest.AgeRecipient + `"]`, "owners.keys[0].age", "value", "age1"},
	{"unknown key of the owners", "quorum = 2", "quorun = 2\nquorum = 2", "owners.quorun", "unknown key", "quorum"},

	{"no platforms", "[platform.soft]", "[platforms.soft]", "platform", "required key", ""},
	{"unknown platform", "[platform.soft]", "[platform.vax]\nroots = []\n[platform.soft]", "platform.vax", "name", "soft"},
	{"platform without roots", `roots = ["sha256:` + strings.Repeat("1", 64) + "\"]\n", "", "platform.soft.roots", "required key", ""},
	{"platform with empty roots", `roots = ["sha256:` + strings.Repeat("1", 64) + `"]`, "roots = []", "platform.soft.roots", "number of roots", "at least 1"},
	{"root of zeros", `roots = ["sha256:` + strings.Repeat("1", 64), `roots = ["sha256:` + strings.Repeat("1", 64) + `", "sha256:` + strings.Repeat("0", 64), "platform.soft.roots[1]", "value", "sha256:"},
	{"root twice", `roots = ["sha256:` + strings.Repeat("1", 64), `roots = ["sha256:` + strings.Repeat("1", 64) + `", "sha256:` + strings.Repeat("1", 64), "platform.soft.roots", "element twice", ""},
	{"root that is a number", `roots = [`, `roots = [1, `, "platform.soft.roots[0]", "value", ""},
	{"debug as a number", "debug = true", "debug = 1", "platform.soft.debug", "value", ""},
	{"unknown key of a platform", "debug = true", "debug = true\nroot = 1", "platform.soft.root", "unknown key", "roots"},
	{"soft without development", "development  = true\n", "", "platform.soft", "development", "hardware"},

	{"measured with prefix", `sha256 = "222`, `sha256 = "sha256:222`, "measured.agent-1.sha256", "value", "64"},
	{"measured too short", `sha256 = "222`, `sha256 = "22`, "measured.agent-1.sha256", "value", "64"},
	{"measured name in capitals", "[measured.agent-1]", "[measured.Agent]\nsha256 = 1\n[measured.agent-1]", "measured.Agent", "name", ""},
	{"measured without digest", "[measured.agent-1]", "[measured.agent-2]\n[measured.agent-1]", "measured.agent-2.sha256", "required key", ""},

	{"no authority", "[authority]", "[authorities]", "authority", "required key", ""},
	{"authority without root", `root = "sha256:` + strings.Repeat("3", 64) + "\"\n", "", "authority.root", "required key", ""},
	{"authority without reference values", `reference = [ { platform = "soft", program = "@agent-1" } ]`, "", "authority.reference", "required key", ""},
	{"authority with empty reference values", `reference = [ { platform = "soft", program = "@agent-1" } ]`, "reference = []", "authority.reference", "number of reference values", ""},
	{"authority without machines", "machines = [\"chip:0123456789abcdef\"]\n", "", "authority.machines", "required key", ""},
	{"no machine", `["chip:0123456789abcdef"]`, "[]", "authority.machines", "number of machines", `"any"`},
	{"machine of no platform of the authority", `"chip:0123456789abcdef"`, `"chip:` + strings.Repeat("1", 32) + `"`, "authority.machines[0]", "value", "evidence inspect"},
	{"machine without its prefix", `"chip:0123456789abcdef"`, `"0123456789abcdef"`, "authority.machines[0]", "value", "chip:"},
	{"machine twice", `"chip:0123456789abcdef"`, `"chip:0123456789abcdef", "chip:0123456789abcdef"`, "authority.machines", "element twice", ""},
	{"every machine in another word", `["chip:0123456789abcdef"]`, `"all"`, "authority.machines", "value", `"any"`},
	{"any among machines", `["chip:0123456789abcdef"]`, `["any"]`, "authority.machines[0]", "value", "chip:"},
	{"root in a line of another form", `root = "sha256:333`, `root  = "sha256:333`, "authority.root", "line of the root", "exactly one"},
	{"root in a table that is written otherwise", "[authority]", "[ authority ]", "authority.root", "line of the root", "exactly one"},
	{"root beside text that looks like it", "# Policy of a clinic.\n", "text = \"\"\"\n[authority]\nroot = \"\"\n\"\"\"\n", "text", "unknown key", ""},

	{"unknown key of the authority", "[authority]", "[authority]\nroots = 1", "authority.roots", "unknown key", "root"},

	{"reference value without platform", `{ platform = "soft", program = "@agent-1" }`, `{ program = "@agent-1" }`, "authority.reference[0].platform", "required key", ""},
	{"reference value of unknown platform", `{ platform = "soft", program = "@agent-1" }`, `{ platform = "vax", program = "@agent-1" }`, "authority.reference[0].platform", "value", "soft"},
	{"reference value without program", `{ platform = "soft", program = "@agent-1" }`, `{ platform = "soft" }`, "authority.reference[0].program", "required key", ""},
	{"reference value with unknown name", `program = "@agent-1"`, `program = "@agent-2"`, "authority.reference[0].program", "value", "agent-1"},
	{"reference value with half a digest", `program = "@agent-1"`, `program = "sha256:22"`, "authority.reference[0].program", "value", ""},
	{"reference value with unknown key", `program = "@agent-1"`, `program = "@agent-1", progam = 1`, "authority.reference[0].progam", "unknown key", "program"},
	{"reference value with value and any", `any = ["agent", "args"]`, `any = ["agent", "args", "program"]`, "task.keys.release.\"1.4\".reference[0].program", "key", "any"},
	{"any of an unknown register", `any = ["agent", "args"]`, `any = ["agent", "args", "env"]`, "task.keys.release.\"1.4\".reference[0].any[2]", "value", "agent, program, args"},
	{"any twice", `any = ["agent", "args"]`, `any = ["agent", "args", "args"]`, "task.keys.release.\"1.4\".reference[0].any", "element twice", ""},
	{"argument that is a number", `"m.json"]`, `1]`, "task.scoring.release.\"2026.11\".reference[0].args[1]", "value", ""},
	{"argument with NUL", `"m.json"]`, `"\u0000"]`, "task.scoring.release.\"2026.11\".reference[0].args[1]", "value", "NUL"},
	{"reference value that is no table", "reference = [\n", "reference = [ 1,\n", "task.scoring.release.\"2026.11\".reference[0]", "value", ""},
	{"equal measurements in two releases", strings.Repeat("5", 64), strings.Repeat("7", 64), "task.scoring.release.\"2026.11\".reference[1]", "measurement twice", "2026.10"},
	{"equal measurements in two tasks", `program = "sha256:` + strings.Repeat("4", 64), `program = "sha256:` + strings.Repeat("5", 64), "task.scoring.release.\"2026.10\".reference[0]", "measurement twice", "task.keys"},
	{"measurement of the authority", `agent = "@agent-1", program = "sha256:` + strings.Repeat("5", 64), `program = "sha256:` + strings.Repeat("2", 64), "task.scoring.release.\"2026.10\".reference[0]", "measurement twice", "authority"},

	{"task name in capitals", "[task.keys]", "[task.Keys]\n[task.keys]", "task.Keys", "name", wantName},
	{"task without key mode", "key_mode = \"unit\"\n", "", "task.keys.key_mode", "required key", ""},
	{"unknown key mode", `"unit"`, `"units"`, "task.keys.key_mode", "value", "shared or unit"},
	{"task without releases", "[task.keys]", "[task.empty]\nkey_mode = \"unit\"\n[task.keys]", "task.empty.release", "required key", ""},
	{"task with no release inside", "[task.keys]", "[task.empty]\nkey_mode = \"unit\"\nrelease = {}\n[task.keys]", "task.empty.release", "number of releases", ""},
	{"unknown key of a task", "units = 50", "units = 50\nlife = 1", "task.scoring.life", "unknown key", "lifetime"},
	{"silence too short", "development  = true", "development  = true\nmax_silence = \"999ms\"", "max_silence", "value", "1s"},
	{"silence too long", "development  = true", "development  = true\nmax_silence = \"24h1s\"", "max_silence", "value", "24h"},
	{"retired by a word", "dynamic = true", "dynamic = true\nretired = \"yes\"", `task.scoring.release."2026.11".retired`, "value", "true or false"},
	{"life too short", `"30m"`, `"2s"`, "task.scoring.lifetime", "value", "3s"},
	{"life too long", `"30m"`, `"24h1s"`, "task.scoring.lifetime", "value", "24h"},
	{"units 0", "units = 50", "units = 0", "task.scoring.units", "value", ""},
	{"cut unit in capitals", "units = 50", `cut_units = ["` + strings.Repeat("A", 32) + `"]`, "task.scoring.cut_units[0]", "value", "32 lower-case"},
	{"cut unit cut short", "units = 50", `cut_units = ["` + strings.Repeat("a", 31) + `"]`, "task.scoring.cut_units[0]", "value", "32 lower-case"},
	{"cut unit too long", "units = 50", `cut_units = ["` + strings.Repeat("a", 64) + `"]`, "task.scoring.cut_units[0]", "value", "32 lower-case"},
	{"cut unit that is a number", "units = 50", `cut_units = [7]`, "task.scoring.cut_units[0]", "value", "32 lower-case"},
	{"cut unit twice", "units = 50", `cut_units = ["` + strings.Repeat("a", 32) + `", "` + strings.Repeat("a", 32) + `"]`, "task.scoring.cut_units", "element twice", ""},
	{"cut units that are no list", "units = 50", `cut_units = "` + strings.Repeat("a", 32) + `"`, "task.scoring.cut_units", "value", ""},
	{"cut units of a release", "oneoff = true", `cut_units = ["` + strings.Repeat("a", 32) + `"]`, `task.scoring.release."2026.11".cut_units`, "unknown key", ""},
	{"name with wildcard", `"score.clinic.example"`, `"*.clinic.example"`, "task.scoring.names[1]", "value", "wildcard"},
	{"name that is an address", `"score.clinic.example"`, `"10.0.0.1"`, "task.scoring.names[1]", "value", ""},
	{"name with an empty label", `"score.clinic.example"`, `"score..example"`, "task.scoring.names[1]", "value", ""},
	{"name that begins with a hyphen", `"score.clinic.example"`, `"-score.example"`, "task.scoring.names[1]", "value", ""},
	{"name that ends with a hyphen", `"score.clinic.example"`, `"score-.example"`, "task.scoring.names[1]", "value", ""},
	{"name over 253 bytes", `"score.clinic.example"`, `"` + strings.Repeat("abc.", 63) + `ab"`, "task.scoring.names[1]", "value", ""},
	{"name twice in a task", `"score.clinic.example"`, `"scoring.clinic.example"`, "task.scoring.names", "element twice", ""},
	{"name of two tasks", `key_mode = "unit"`, "key_mode = \"unit\"\nnames = [\"score.clinic.example\"]", "task.scoring.names", "name twice", "task keys"},
	{"name of the authority", `"score.clinic.example"`, `"authority.clinic.example"`, "task.scoring.names", "name twice", "the authority"},
	{"call of no task", `calls = ["keys"]`, `calls = ["key"]`, "task.scoring.calls", "task", "keys"},
	{"call twice", `calls = ["keys"]`, `calls = ["keys", "keys"]`, "task.scoring.calls", "element twice", ""},

	{"release name in capitals", `release."1.4"]`, `release.A]` + "\n" + `[task.keys.release."1.4"]`, "task.keys.release.A", "name", "and ."},
	{"release without reference values", `release."1.4"]`, `release."1.3"]` + "\n" + `[task.keys.release."1.4"]`, `task.keys.release."1.3".reference`, "required key", ""},
	{"unknown key of a release", "oneoff = true", "one_off = true", `task.scoring.release."2026.11".one_off`, "unknown key", "oneoff"},
	{"continues no release", `continues = "2026.10"`, `continues = "2026.09"`, `task.scoring.release."2026.11".continues`, "release", "2026.10"},
	{"continues a release of another task", `continues = "2026.10"`, `continues = "1.4"`, `task.scoring.release."2026.11".continues`, "release", ""},
	{"continues itself", `continues = "2026.10"`, `continues = "2026.11"`, `task.scoring.release."2026.11".continues`, "circle", ""},
	{"dynamic as text", "dynamic = true", `dynamic = "yes"`, `task.scoring.release."2026.11".dynamic`, "value", ""},
	{"oneoff as text", "oneoff = true", `oneoff = "yes"`, `task.scoring.release."2026.11".oneoff`, "value", ""},
	{"env that is a list", `env = { LANG = "C" }`, `env = ["LANG"]`, `task.scoring.release."2026.11".env`, "value", ""},
	{"env value with NUL", `LANG = "C"`, `LANG = "\u0000"`, `task.scoring.release."2026.11".env.LANG`, "value", "NUL"},
	{"env value too long", `LANG = "C"`, `LANG = "` + strings.Repeat("x", 4097) + `"`, `task.scoring.release."2026.11".env.LANG`, "value", "4096"},

	{"unknown key", "development  = true", "development = true\ndevelopement = true", "developement", "unknown key", "development"},
	{"key in capitals", "development  = true", "development = true\nDevelopment = true", "Development", "unknown key", "development"},
	{"key twice in TOML", "quorum = 2", "quorum = 2\nquorum = 2", "line 11, column 1", "TOML", ""},
	{"no TOML", "[owners]", "[owners", "line 9, column 8", "TOML", ""},
	{"CR LF", "[owners]\n", "[owners]\r\n", "", "line ends", "LF"},
	{"byte order mark", "# Policy", "\ufeff# Policy", "", "encoding", ""},
	{"override of direction", "# Policy", "# Policy \u202e", "line 1, column 10", "character", "seen"},
	{"not UTF-8", "# Policy", "# \xff", "", "encoding", "UTF-8"},
	{"too large", "# Policy", "# " + strings.Repeat("x", wire.MaxPolicy), "", "size in bytes", "262144"},
}

func TestParseRefusals(t *testing.T) {
	h := policytest.NewHouse()
	for _, r := range parseRefusals {
		t.Run(r.name, func(t *testing.T) {
			_, err := Parse(h.Text(t, r.old, r.new))
			policytest.Refused(t, err, wire.BadPolicy)
			var faults policytoml.Faults
			if !errors.As(err, &faults) {
				t.Fatalf("got error %v, want Faults", err)
			}
			if !slices.ContainsFunc(faults, r.is) {
				t.Errorf("got faults %q, want one at %q, rule %q, want %q", faults, r.path, r.rule, r.want)
			}
		})
	}
}

// TestParseTellsAllFaults: the error of a file with four faults has all four.
func TestParseTellsAllFaults(t *testing.T) {
	_, err := Parse(policytest.NewHouse().Text(t, `"cohort/policy/v1"`, `"v0"`, "quorum = 2", "quorum = 9", `"30m"`, `"30"`, "oneoff", "onoff"))
	var faults policytoml.Faults
	if !errors.As(err, &faults) || len(faults) != 4 {
		t.Fatalf("got %v, want four faults", err)
	}
	if lines := strings.Count(err.Error(), "\n") + 1; lines != 4 {
		t.Errorf("got %d lines, want one for each fault", lines)
	}
	if !errors.Is(err, wire.BadPolicy) {
		t.Error("the faults do not match reason policy")
	}
}

func TestParsePlatformOfReference(t *testing.T) {
	d := mustParse(t, policytest.NewHouse().Text(t))
	delete(d.Platforms, attest.Soft)
	var faults policytoml.Faults
	d.checkReferences(&faults)
	if len(faults) != 5 {
		t.Errorf("got faults %q, want one for each of 5 reference values", faults)
	}
}

func TestContinuesCircle(t *testing.T) {
	task := &Task{Releases: map[string]*Release{
		"a": {Name: "a", Continues: "b"}, "b": {Name: "b", Continues: "c"}, "c": {Name: "c", Continues: "b"}, "d": {Name: "d", Continues: "x"},
	}}
	got := map[string]bool{}
	for name := range task.Releases {
		got[name] = task.circular(name)
	}
	if want := map[string]bool{"a": false, "b": true, "c": true, "d": false}; !maps.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

func TestOverlapThroughAny(t *testing.T) {
	// An open register matches every value, so only a closed register that differs separates two
	// references.
	wide := `{ platform = "soft", any = ["agent", "program", "args"] }`
	_, err := Parse(policytest.NewHouse().Text(t, `{ platform = "soft", program = "@agent-1" }`, wide))
	var faults policytoml.Faults
	if !errors.As(err, &faults) || len(faults) != 4 {
		t.Fatalf("got %v, want a fault for each reference value of a task", err)
	}
	for _, f := range faults {
		if f.Rule != "measurement twice" {
			t.Errorf("got rule %q, want measurement twice", f.Rule)
		}
	}
}

func TestEnvNames(t *testing.T) {
	accepted := []string{"LANG", "TZ", "A", "_X", "MODEL_DIR2", "HOME", "GOMAXPROCS"}
	refusedNames := []string{
		"", "lang", "2X", "A-B", "A B", "Ä", strings.Repeat("A", 64), "PORT", "COHORT_COMMAND", "COHORT_X", "LD_PRELOAD", "LD_LIBRARY_PATH", "LD_AUDIT",
		"GLIBC_TUNABLES", "GODEBUG", "GOTRACEBACK", "PATH", "BASH_ENV", "PYTHONPATH", "PERL5OPT", "NODE_OPTIONS", "JAVA_TOOL_OPTIONS", "SSLKEYLOGFILE", "NODE_PATH", "CORECLR_PROFILER_PATH", "LUA_PATH", "JULIA_LOAD_PATH", "R_LIBS", "BUN_OPTIONS", "GEM_PATH", "ERL_LIBS",
		"SSL_CERT_FILE", "OPENSSL_CONF", "GCONV_PATH", "MALLOC_CHECK_",
	}
	for _, name := range accepted {
		if !envNameOK(name) {
			t.Errorf("got %q refused, want accepted", name)
		}
	}
	for _, name := range refusedNames {
		if envNameOK(name) {
			t.Errorf("got %q accepted, want refused", name)
		}
	}
	_, err := Parse(policytest.NewHouse().Text(t, `LANG = "C"`, `LD_PRELOAD = "x.so"`))
	policytest.Refused(t, err, wire.BadPolicy)
}

func TestOwnerKeys(t *testing.T) {
	ana := policytest.KeyLine(policytest.Fixed("ana").PublicKey())
	kind, blob, _ := strings.Cut(ana, " ")
	foreign := policytest.NewTokenFor(ssh.KeyAlgoSKED25519, "ssh:other")
	for _, row := range []struct {
		name, line string
		ok         bool
	}{
		{"ed25519", ana, true},
		{"with a comment", ana + " ana@laptop of work", true},
		{"hardware ed25519", policytest.KeyLine(policytest.NewToken(ssh.KeyAlgoSKED25519).PublicKey()), true},
		{"hardware P-256", policytest.KeyLine(policytest.NewToken(ssh.KeyAlgoSKECDSA256).PublicKey()), true},
		{"P-384", policytest.KeyLine(policytest.ECKey(t, "384").PublicKey()), true},
		{"RSA", policytest.KeyLine(policytest.RSAKey(t).PublicKey()), false},
		{"certificate", policytest.KeyLine(policytest.Certificate(t)), false},
		{"hardware key of another application", policytest.KeyLine(foreign.PublicKey()), false},
		{"no base64", "ssh-ed25519 ?", false},
		{"type alone", kind, false},
		{"other type named", "ecdsa-sha2-nistp256 " + blob, false},
		{"options before it", `restrict ` + ana, false},
		{"line break inside", kind + " " + blob[:10] + "\n" + blob[10:], false},
		{"trailing bytes", kind + " " + blob + "AAAA", false},
		{"empty", "", false},
	} {
		t.Run(row.name, func(t *testing.T) {
			if _, err := sshsig.ParseKeyLine(row.line); (err == nil) != row.ok {
				t.Errorf("got error %v, want accepted: %v", err, row.ok)
			}
		})
	}
}

// TestOneKeyUnderTwoForms: one P-256 key, registered as a plain key and as a hardware key, is
// refused as a duplicate.
func TestOneKeyUnderTwoForms(t *testing.T) {
	h := policytest.NewHouse()
	plain := policytest.ECKey(t, "256")
	var fields struct {
		Type, Curve string
		Key         []byte
	}
	if err := ssh.Unmarshal(plain.PublicKey().Marshal(), &fields); err != nil {
		t.Fatal(err)
	}
	sk, err := ssh.ParsePublicKey(ssh.Marshal(struct {
		Type, Curve string
		Key         []byte
		Application string
	}{ssh.KeyAlgoSKECDSA256, "nistp256", fields.Key, "ssh:"}))
	if err != nil {
		t.Fatal(err)
	}
	_, err = Parse(h.Text(t, "ANA", policytest.KeyLine(plain.PublicKey()), "BEN", policytest.KeyLine(sk)))
	policytest.Refused(t, err, wire.BadPolicy)
	if !strings.Contains(fmt.Sprint(err), "key twice") {
		t.Errorf("got %v, want rule key twice", err)
	}
}

func FuzzParse(f *testing.F) {
	h := policytest.NewHouse()
	f.Add(h.Text(f))
	f.Add(policytest.IronText(f))
	for _, r := range parseRefusals {
		if len(r.new) < 1000 {
			f.Add(h.Text(f, r.old, r.new))
		}
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		d, err := Parse(raw)
		if err != nil {
			policytest.Refused(t, err, wire.BadPolicy)
			return
		}
		if d.TrustDomain == "" || d.Owners.Quorum < 1 || len(d.Owners.Keys) < d.Owners.Quorum || len(d.Authority.References) == 0 || d.Authority.Root.IsZero() {
			t.Fatalf("accepted without what every policy has: %q", raw)
		}
		if changes := Compare(d, d); len(changes) > 0 {
			t.Fatalf("got differences of a policy from itself: %v", changes)
		}
		again := mustParse(t, d.Source())
		if !reflect.DeepEqual(again, d) {
			t.Fatal("parsing twice gives two documents")
		}
	})
}

// TestTOML11: a policy may have what TOML 1.1 adds to 1.0, and nothing beyond it.
func TestTOML11(t *testing.T) {
	h := policytest.NewGroupHouse()
	for _, row := range []struct {
		name, old, new string
		ok             bool
	}{
		{"hexadecimal escape", `["--model", "m.json"]`, `["\x2d-model", "m.json"]`, true},
		{"escape of ESC", `env = { LANG = "C" }`, `env = { LANG = "\e" }`, true},
		{"line breaks, a comment and a trailing comma in a table", `env = { LANG = "C" }`, "env = {\n LANG = \"C\", # a comment\n}", true},
		{"a time without seconds", "created      = 2026-11-22T09:00:00Z   # UTC", "created = 2026-11-22T09:00Z", true},
		{"an unknown escape", `env = { LANG = "C" }`, `env = { LANG = "\q" }`, false},
		{"a letter in a bare key", `env = { LANG = "C" }`, `env = { LÄNG = "C" }`, false},
		{"a time without minutes", "created      = 2026-11-22T09:00:00Z   # UTC", "created = 2026-11-22T09Z", false},
	} {
		if _, err := Parse(h.Text(t, row.old, row.new)); (err == nil) != row.ok {
			t.Errorf("%s: got %v, want it accepted: %v", row.name, err, row.ok)
		}
	}
}
