package policycmd

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/cohort-tee/cohort/internal/api"
	"github.com/cohort-tee/cohort/internal/cli/clitest"
	"github.com/cohort-tee/cohort/internal/testworld"
	"github.com/cohort-tee/cohort/internal/wire"
	"github.com/cohort-tee/cohort/policy"
	"github.com/cohort-tee/cohort/policy/policyfile"
	"github.com/cohort-tee/cohort/policy/sshsig"
	"golang.org/x/crypto/ssh"
)

// TestAffected lists of two units, of one release and chip each, those that a policy
// cuts off.
func TestAffected(t *testing.T) {
	chips := []string{strings.Repeat("1", 32), strings.Repeat("2", 32)}
	ids := []string{strings.Repeat("a", 32), strings.Repeat("b", 32)}
	units := []api.LogEntry{
		{Unit: ids[0], Task: "scoring", Release: "1", Platform: "tdx", Chip: chips[0]},
		{Unit: ids[1], Task: "scoring", Release: "2", Platform: "tdx", Chip: chips[1]},
	}
	release := clitest.Policy[strings.Index(clitest.Policy, "[task.scoring.release.2]"):]
	rows := []struct {
		name  string
		edits []string
		want  []string
	}{
		{"nothing", nil, nil},
		{"a unit", []string{`key_mode = "shared"`, "key_mode = \"shared\"\ncut_units = [\"" + ids[1] + "\"]"}, []string{ids[1] + " cut_units"}},
		{"a chip", []string{`chips = "any"`, "chips = \"any\"\ncut_chips = [\"" + chips[0] + "\"]"}, []string{ids[0] + " cut_chips"}},
		{"all chips but one", []string{`chips = "any"`, `chips = ["` + chips[0] + `"]`}, []string{ids[1] + " chip is not among chips"}},
		{"a release", []string{release, ""}, []string{ids[1] + " release 2 is removed"}},
		{"the code of a release", []string{`rtmr3 = "B"`, `rtmr3 = "D"`}, []string{ids[0] + " release 1 has other code"}},
		{"the task", []string{clitest.Policy[strings.Index(clitest.Policy, "[task.scoring]"):], ""}, []string{ids[0] + " task scoring is removed", ids[1] + " task scoring is removed"}},
	}
	for _, r := range rows {
		t.Run(r.name, func(t *testing.T) {
			var got []string
			for _, u := range (policyChange{old: clitest.Parsed(t), next: clitest.Parsed(t, r.edits...)}).affected(units) {
				got = append(got, u.Unit+" "+u.Cause)
			}
			if !slices.Equal(got, r.want) {
				t.Errorf("got %q, want %q", got, r.want)
			}
		})
	}
}

// TestAffectedGroup lists of two units of a group, one of each role, those that a policy
// cuts off.
func TestAffectedGroup(t *testing.T) {
	owner := testworld.NewKey()
	keyed := func(edits ...string) []string {
		return append([]string{clitest.PolicyOwner, owner.AuthorizedKey(), "[task.scoring]\n", clitest.Group + "[task.scoring]\n"}, edits...)
	}
	doc := clitest.Parsed(t, keyed()...)
	inForce := founded(t, owner, doc)
	trial := inForce.GroupByName("trial").ID()
	ids := []string{strings.Repeat("a", 32), strings.Repeat("b", 32)}
	units := []api.LogEntry{
		{Unit: ids[0], Task: "scoring", Release: "1", Platform: "tdx", Group: "trial", Role: "asker", Identity: trial},
		{Unit: ids[1], Task: "scoring", Release: "2", Platform: "tdx", Group: "trial", Role: "scorer", Identity: trial},
	}
	both := func(cause string) []string { return []string{ids[0] + " " + cause, ids[1] + " " + cause} }
	const another = "group trial becomes another, until its parties approve"
	rows := []struct {
		name  string
		edits []string
		want  []string
	}{
		{"nothing", nil, nil},
		{"more life", []string{`key_mode = "shared"` + "\nquorum", `key_mode = "shared"` + "\nlifetime = \"2h\"\nquorum"}, nil},
		{"the group", []string{clitest.Group, ""}, both("group trial is removed")},
		{"a role", []string{", calls = [\"scorer\"]", "", "scorer = { members = [ { party = \"east\", task = \"scoring\", release = \"2\" } ] }\n", ""},
			[]string{ids[0] + " " + another, ids[1] + " role scorer of group trial is removed"}},
		{"a member", []string{`release = "2" } ] }`, `release = "1" } ] }`}, []string{ids[0] + " " + another, ids[1] + " release 2 is no member of role scorer"}},
		{"a call", []string{", calls = [\"scorer\"]", ""}, both(another)},
		{"the end", []string{"2026-12-01", "2026-12-02"}, both(another)},
		{"the end, continued", []string{"2026-12-01T00:00:00Z", "2026-12-02T00:00:00Z\ncontinues = \"" + trial.String() + `"`}, nil},
		{"a floor that falls", []string{`chips = "any"`, "chips = \"any\"\nstatuses = [\"OutOfDate\"]"}, both(another)},
		{"a floor that rises", []string{`chips = "any"`, "chips = \"any\"\nmin_evaluation = 17"}, nil},
		{"code of a member", []string{`rtmr3 = "B"`, `rtmr3 = "D"`}, []string{ids[0] + " release 1 has other code", ids[1] + " " + another}},
		{"a unit", []string{"[task.scoring]\n", "[task.scoring]\ncut_units = [\"" + ids[1] + "\"]\n"}, []string{ids[1] + " cut_units"}},
	}
	for _, r := range rows {
		t.Run(r.name, func(t *testing.T) {
			var got []string
			cut := policyChange{doc, clitest.Parsed(t, keyed(r.edits...)...), inForce}.affected(units)
			for _, u := range cut {
				got = append(got, u.Unit+" "+u.Cause)
			}
			if !slices.Equal(got, r.want) {
				t.Errorf("got %q, want %q", got, r.want)
			}
			if text := affectedText(cut); len(cut) > 0 && !strings.Contains(text, " in group trial: "+cut[0].Cause) {
				t.Errorf("got %q, want group and role in it", text)
			}
		})
	}
}

// founded is a first policy, signed.
func founded(t *testing.T, owner ssh.Signer, doc *policyfile.Document) policy.Approved {
	t.Helper()
	signature, err := sshsig.Sign(owner, sshsig.ForPolicy, doc.Source())
	if err != nil {
		t.Fatal(err)
	}
	a, err := policy.Genesis(doc.Digest(), policy.Step{Policy: doc.Source(), Signatures: []string{signature}})
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// TestAffectedDevices reports of a unit with a GPU which policy cuts it off for that.
func TestAffectedDevices(t *testing.T) {
	chip, other := wire.Sum([]byte("a GPU")), wire.Sum([]byte("another"))
	table := fmt.Sprintf("[platform.nvidia-gpu]\nroots = [%q]\nmodels = [\"GH100\"]\nchips = \"any\"\ndrivers = \"any\"\nvbios = \"any\"\nmodes = [\"SPT\"]\nmeasurements = \"any\"\nmode = \"development\"\n", other)
	edits := []string{"[task.scoring]", table + "[task.scoring]"}
	units := []api.LogEntry{{
		Unit: "a", Task: "scoring", Release: "1", Platform: "tdx", Chip: strings.Repeat("1", 32),
		Devices: []api.LogDevice{{Platform: "nvidia-gpu", Chip: chip.String()}},
	}}
	for _, r := range []struct {
		name  string
		edits []string
		want  string
	}{
		{"nothing", edits, ""},
		{"another chip", append(edits, "models", fmt.Sprintf("cut_chips = [%q]\nmodels", other)), ""},
		{"its chip", append(edits, "models", fmt.Sprintf("cut_chips = [%q]\nmodels", chip)), "nvidia-gpu: cut_chips"},
		{"all chips but one", append(edits, `chips = "any"
drivers`, fmt.Sprintf("chips = [%q]\ndrivers", other)), "nvidia-gpu: chip is not among chips"},
		{"its platform", nil, "platform nvidia-gpu is removed"},
		{"one GPU demanded", append(edits, "[task.scoring.release.1]\n", "[task.scoring.release.1]\ndevices = { nvidia-gpu = 1 }\n"), ""},
		{"two demanded", append(edits, "[task.scoring.release.1]\n", "[task.scoring.release.1]\ndevices = { nvidia-gpu = 2 }\n"), "devices of platform nvidia-gpu"},
	} {
		got := ""
		change := policyChange{old: clitest.Parsed(t, edits...), next: clitest.Parsed(t, r.edits...)}
		for _, u := range change.affected(units) {
			got += u.Cause
		}
		if got != r.want {
			t.Errorf("%s: got %q, want %q", r.name, got, r.want)
		}
	}
}
