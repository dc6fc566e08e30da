package policyfile

import (
	"bytes"
	"errors"
	"testing"
	"testing/fstest"
	"time"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/attest/platforms"
	"github.com/cohort-tee/cohort/internal/collateral"
	"github.com/cohort-tee/cohort/policy/policytest"
	"github.com/cohort-tee/cohort/policy/policytoml"
)

// vax is a platform that no other file knows.
var vax = attest.PlatformInfo{
	PolicyRules: attest.PolicyRules{
		Platform: "vax",
		Registers: []attest.RegisterForm{
			{Name: "microcode", Form: attest.FormCode384, Shut: true}, {Name: "serial", Form: attest.FormBytes, Size: 4},
		},
		Keys: []attest.Key{
			{Name: "least", Kind: attest.KeyNumber, Direction: attest.Floor, Required: true, Most: 9, Set: attest.Narrowed(func(r *attest.Rules) *uint16 { return &r.DCAP.MinISVSVN })},
			{Name: "most", Kind: attest.KeyNumber, Direction: attest.Ceiling, Most: 9, Set: attest.Narrowed(func(r *attest.Rules) *uint32 { return &r.SNP.VMPL })},
			{
				Name: "cut_chips", Kind: attest.KeyBytes, Direction: attest.Cuts, Recorded: true, Want: "4 digits", Form: vaxChip,
				Set: attest.SetField(func(r *attest.Rules) *[][]byte { return &r.Soft.CutChips }),
			},
		},
		Chip:        vaxChip,
		ChipRefused: attest.ListedChip(vaxChip, func(r attest.Rules) ([][]byte, attest.List) { return r.Soft.CutChips, attest.List{Any: true} }),
		Warn: func(r attest.Rules, _ []attest.PlacedReference, warn func(key, text string)) {
			if r.DCAP.MinISVSVN == 0 {
				warn("least", "a floor of zero")
			}
		},
	},
	Title:     "VAX",
	Sources:   []attest.Source{{Name: "dec", Base: "https://dec.example"}},
	Recognize: attest.Recognizer("vax", func(raw []byte) bool { return bytes.HasPrefix(raw, []byte("VAX")) }),
	RawForm:   "VAX report",
	Documents: func(e attest.Evidence) []attest.Document {
		return []attest.Document{{
			Role: "status", Kind: attest.StatementDocument, Name: "vax/status.txt", Source: "dec", Path: "/status",
			Expires: func(content []byte) (time.Time, error) { return time.Parse(time.RFC3339, string(content)) },
		}}
	},
}

func vaxChip(s string) []byte { return attest.Digits(s, 2) }

// TestNewPlatform: a new platform needs only its PlatformInfo value: its evidence is recognised,
// its keys are parsed and compared, its chips cut off and its documents fetched. No other file
// names it.
func TestNewPlatform(t *testing.T) {
	before := known
	known = newPlatforms(append(Platforms(), vax.PolicyRules)...)
	defer func() { known = before }()
	all := append(platforms.Supported(), vax)

	e, err := all.ReadEvidence([]byte("VAX 11/780"))
	if err != nil || e.Platform != "vax" {
		t.Fatalf("evidence of %q: %v", e.Platform, err)
	}
	at := time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)
	end := at.Add(time.Hour)
	c := collateral.New(collateral.Config{
		Documents: all.Documents, Clock: func() time.Time { return at },
		Mirror: fstest.MapFS{"vax/status.txt": {Data: []byte(end.Format(time.RFC3339)), ModTime: at}},
	})
	endorsed, err := c.Endorse(t.Context(), e)
	if err != nil || string(endorsed["status"]) != end.Format(time.RFC3339) {
		t.Fatalf("fetched %q: %v", endorsed["status"], err)
	}

	const reference = `{ platform = "vax", microcode = "sha384:M1", serial = "01020304" }`
	text := func(rules string) []byte {
		return policytest.IronText(t, "[measured.signer]", "[platform.vax]\nroots = [\"sha256:R1\"]\n"+rules+"\n\n[measured.signer]",
			`{ platform = "nitro", pcr0`, reference+",\n  { platform = \"nitro\", pcr0")
	}
	old := mustParse(t, text("least = 3\nmost = 5\ncut_chips = [\"abcd\"]"))
	rules := old.Platforms["vax"]
	if rules.DCAP.MinISVSVN != 3 || rules.SNP.VMPL != 5 {
		t.Errorf("rules = %+v, want least 3 and most 5", rules)
	}
	if got := ChipRefused("vax", rules, "abcd"); got != "cut_chips" {
		t.Errorf("a cut-off chip is refused by %q, want cut_chips", got)
	}
	want := attest.Measurement{Platform: "vax", Registers: []attest.Register{{Name: "microcode", Value: policytest.Alike(1, 48)}, {Name: "serial", Value: []byte{1, 2, 3, 4}}}}
	if got := old.Tasks["keys"].Releases["1"].References[3]; attest.Match(got, want) != nil {
		t.Errorf("reference value %v, want %v", got, want)
	}
	for _, row := range []struct {
		rules   string
		path    string
		loosens bool
	}{
		{"least = 4\nmost = 5\ncut_chips = [\"abcd\"]", "platform.vax.least", false},
		{"least = 2\nmost = 5\ncut_chips = [\"abcd\"]", "platform.vax.least", true},
		{"least = 3\nmost = 4\ncut_chips = [\"abcd\"]", "platform.vax.most", false},
		{"least = 3\nmost = 6\ncut_chips = [\"abcd\"]", "platform.vax.most", true},
		{"least = 3\nmost = 5\ncut_chips = [\"abcd\", \"0123\"]", "platform.vax.cut_chips", false},
		{"least = 3\nmost = 5", "platform.vax.cut_chips", true},
	} {
		changes := Compare(old, mustParse(t, text(row.rules)))
		if len(changes) != 1 || changes[0].Path != row.path || changes[0].Loosens != row.loosens {
			t.Errorf("%q: got %v, want one change of %s that loosens %v", row.rules, changes, row.path, row.loosens)
		}
	}
	_, err = Parse(text("most = 10\ncut_chip = []"))
	var faults policytoml.Faults
	if !errors.As(err, &faults) || len(faults) != 3 {
		t.Errorf("got %v, want a missing key, a number too high and an unknown key", err)
	}
	warned := false
	for _, w := range mustParse(t, text("least = 0")).Warnings() {
		warned = warned || w.Path == "platform.vax.least"
	}
	if !warned {
		t.Error("no warning of a floor of zero")
	}
}

// TestTableOfPlatforms: a policy can name the platforms of attest/platforms, with the same rules.
func TestTableOfPlatforms(t *testing.T) {
	rules := Platforms()
	if len(rules) != len(platforms.Supported()) {
		t.Errorf("policy names %d platforms, the table has %d", len(rules), len(platforms.Supported()))
	}
	for _, r := range rules {
		p, ok := platforms.Supported().Lookup(r.Platform)
		if !ok || len(p.Keys) != len(r.Keys) || len(p.Registers) != len(r.Registers) {
			t.Errorf("%s: the table has %d keys and %d registers, policy %d and %d", r.Platform, len(p.Keys), len(p.Registers), len(r.Keys), len(r.Registers))
		}
	}
}
