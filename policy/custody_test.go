package policy

import (
	"strings"
	"testing"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/internal/wire"
	"github.com/cohort-tee/cohort/policy/policyfile"
	"github.com/cohort-tee/cohort/policy/policytest"
	"github.com/cohort-tee/cohort/policy/policytoml"
)

// TestRosterNamesAuthorities: a roster appraises an authority by the roster's own rules, whatever
// the current policy contains.
func TestRosterNamesAuthorities(t *testing.T) {
	h := newGroupHouse()
	a := h.found(t, policytest.Grouped()...)
	r, err := ParseRoster(a.GroupByName("trial").Roster.Bytes())
	if err != nil {
		t.Fatal(err)
	}
	const named = "0123456789abcdef"
	own := measured(attest.Digest{}, policytest.Digest("2")) // the digest of @agent-1
	on := func(chip string, m attest.Measurement) attest.Result {
		return appraised(t, attest.Claims{Measurement: m, Chip: chip})
	}
	if err := r.AdmitAuthority(on(named, own)); err != nil {
		t.Error(err)
	}
	policytest.Refused(t, r.AdmitAuthority(on("fedcba9876543210", own)), wire.WrongChip)
	policytest.Refused(t, r.AdmitAuthority(on(named, measured(attest.Digest{}, policytest.Digest("8")))), wire.NotMeasured)
	policytest.Refused(t, r.AdmitAuthority(appraised(t, attest.Claims{Measurement: own, Dynamic: true, Chip: named})), wire.NotMeasured)
	policytest.Refused(t, r.AdmitAuthority(attest.Result{}), wire.NotMeasured)
	policytest.Refused(t, Roster{}.AdmitAuthority(on(named, own)), wire.BadPolicy)
	rules := r.AuthorityRules()
	if got := rules[attest.Soft]; len(rules) != 1 || len(got.Roots) != 1 || got.Roots[0] != policytest.Digest("1") || got.Debug {
		t.Errorf("got rules %+v, want those of the roster", rules)
	}
	if (Roster{}).AuthorityRules() != nil {
		t.Error("the empty roster accepts a platform")
	}
	// The owners name a different authority program on a different machine. This roster does not
	// admit it, and the group's identity stays the same.
	next := h.then(t, a, policytest.Grouped("machines = [\"chip:0123456789abcdef\"]\n", "machines = [\"chip:fedcba9876543210\"]\n",
		`reference = [ { platform = "soft", program = "@agent-1" } ]`+"\n\n", `reference = [ { platform = "soft", program = "sha256:`+strings.Repeat("8", 64)+`" } ]`+"\n\n")...)
	evil := on("fedcba9876543210", measured(attest.Digest{}, policytest.Digest("8")))
	if err := next.AdmitAuthority(evil); err != nil {
		t.Error(err)
	}
	if next.GroupByName("trial").ID() != a.GroupByName("trial").ID() {
		t.Error("the group is another because the policy's authority is")
	}
	policytest.Refused(t, next.GroupByName("trial").Roster.AdmitAuthority(evil), wire.NotMeasured)
}

// TestCustodyIsApproved: the parties approve the part of a roster about authorities too, so each
// change of it needs new approvals.
func TestCustodyIsApproved(t *testing.T) {
	h := newGroupHouse()
	a := h.heard(t, h.found(t, policytest.Grouped()...), "north", "south")
	for name, edit := range map[string][]string{
		"another program":     {`reference = [ { platform = "soft", program = "@agent-1" } ] }`, `reference = [ { platform = "soft", program = "sha256:` + strings.Repeat("8", 64) + `" } ] }`},
		"what a name means":   {"sha256 = \"" + strings.Repeat("2", 64), "sha256 = \"" + strings.Repeat("8", 64)},
		"any machine":         {`authority = { machines = ["chip:0123456789abcdef"]`, `authority = { machines = "any"`},
		"a root that vouches": {`roots = [ "sha256:` + strings.Repeat("1", 64), `roots = [ "sha256:` + strings.Repeat("8", 64)},
		"debug":               {`soft = { roots`, `soft = { debug = true, roots`},
	} {
		t.Run(name, func(t *testing.T) {
			next := h.then(t, a, policytest.Grouped(edit...)...)
			if next.GroupByName("trial").ID() == a.GroupByName("trial").ID() {
				t.Error("the group is the same")
			}
			_, err := next.GroupByName("trial").ApprovedUntil(groupRoot, policytest.Start)
			policytest.Refused(t, err, wire.NoQuorum)
		})
	}
}

func TestCustodyRefusals(t *testing.T) {
	h := newGroupHouse()
	for _, tt := range []struct{ name, old, new, rule string }{
		{"left out", "authority = " + policytest.CustodyOf(t) + "\n", "", "required key"},
		{"no program", `reference = [ { platform = "soft", program = "@agent-1" } ] }`, "}", "required key"},
		{"no machine", `authority = { machines = ["chip:0123456789abcdef"], `, "authority = { ", "required key"},
		{"an empty list of machines", `authority = { machines = ["chip:0123456789abcdef"]`, "authority = { machines = []", "number of machines"},
		{"no platform", `platform = { soft = { roots = [ "sha256:` + strings.Repeat("1", 64) + `"] } }, `, "", "required key"},
		{"a platform that nobody vouches for", `platform = { soft = { roots = [ "sha256:` + strings.Repeat("1", 64) + `"] } }`, "platform = { }", "platform"},
		{"an unknown key", "authority = { ", "authority = { machine = 1, ", "unknown key"},
		{"a digest of no name", `program = "@agent-1" } ] }`, `program = "@agent-2" } ] }`, "value"},
		{"the program of a task", `reference = [ { platform = "soft", program = "@agent-1" } ] }`, `reference = [ { platform = "soft", any = ["agent", "args"], program = "sha256:` + strings.Repeat("4", 64) + `" } ] }`, "measurement"},
		{"a control character", `{ platform = "soft", program = "@agent-1" } ] }`, `{ platform = "soft", program = "@agent-1", args = ["\u0007"] } ] }`, "encoding"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if !strings.Contains(policytest.Trial, tt.old) {
				t.Fatalf("the trial has no %q", tt.old)
			}
			_, err := policyfile.Parse(h.Text(t, "oneoff = true\n", "oneoff = true\n"+strings.Replace(policytest.Trial, tt.old, tt.new, 1)))
			faults, _ := err.(policytoml.Faults)
			found := false
			for _, f := range faults {
				found = found || strings.HasPrefix(f.Path, "group.trial.authority") && f.Rule == tt.rule
			}
			if !found {
				t.Errorf("got %v, want rule %q", err, tt.rule)
			}
		})
	}
	good := h.found(t, policytest.Grouped()...).GroupByName("trial").Roster
	for name, line := range map[string]string{
		"none": "", "no table": "1", "a key more": strings.Replace(good.Authority, "{ ", "{ a = 1, ", 1), "other spaces": strings.Replace(good.Authority, "{ ", "{  ", 1),
		"a name": strings.Replace(good.Authority, policytest.Digest("2").String(), "@agent-1", 1), "two lines": good.Authority + "\nroot = 1", "text behind": good.Authority + " # x",
		"no one who vouches": strings.Replace(good.Authority, "soft = {", "tpm = {", 1),
	} {
		r := good
		r.Authority = line
		_, err := ParseRoster(r.Bytes())
		if wire.ReasonOf(err) != wire.Malformed {
			t.Errorf("%s: got %v, want the roster refused", name, err)
		}
	}
}

func FuzzCustody(f *testing.F) {
	f.Add(policytest.CustodyOf(f))
	f.Add(newGroupHouse().found(f, policytest.Grouped()...).GroupByName("trial").Roster.Authority)
	f.Fuzz(func(t *testing.T, line string) {
		c, err := policyfile.ParseCustody(line)
		if err == nil && c.String() != line {
			t.Errorf("another encoding of %q: %q", line, c.String())
		}
	})
}
