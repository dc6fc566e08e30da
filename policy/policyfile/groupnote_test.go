package policyfile

import (
	"strings"
	"testing"

	"github.com/cohort-tee/cohort/policy/policytest"
	"github.com/cohort-tee/cohort/policy/policytoml"
)

func TestGroupsEnded(t *testing.T) {
	h := policytest.NewGroupHouse()
	other := `reference = [ { platform = "soft", program = "sha256:` + strings.Repeat("8", 64) + `" }`
	own := "reference = [ { platform = \"soft\", program = \"@agent-1\" } ]\n"
	both := other + `, { platform = "soft", program = "@agent-1" } ] }`
	theirs := `reference = [ { platform = "soft", program = "@agent-1" } ] }`
	machines := "machines = [\"chip:0123456789abcdef\"]\n"
	for _, tt := range []struct {
		name       string
		edit       []string
		check, dif string // part of the note about one file, and of that about the change
	}{
		{"nothing", nil, "", ""},
		{"another program, which the group does not name", []string{own, other + " ]\n"}, "no program", "no program"},
		{"another program, which the group names", []string{own, other + " ]\n", theirs, both}, "", "on one SNP"},
		{"one more program", []string{own, other + ", { platform = \"soft\", program = \"@agent-1\" } ]\n"}, "", ""},
		{"another machine", []string{machines, "machines = [\"chip:fedcba9876543210\"]\n"}, "no machine", "no machine"},
		{"one more machine", []string{machines, "machines = [\"chip:0123456789abcdef\", \"chip:fedcba9876543210\"]\n"}, "", ""},
		{"any machine", []string{machines, "machines = \"any\"\n"}, "", ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			old, next := mustParse(t, h.Text(t, policytest.Grouped()...)), mustParse(t, h.Text(t, policytest.Grouped(tt.edit...)...))
			for _, row := range []struct {
				got  []policytoml.Warning
				want string
			}{{GroupsEnded(nil, next), tt.check}, {GroupsEnded(old, next), tt.dif}} {
				if row.want == "" && len(row.got) > 0 || row.want != "" && (len(row.got) != 1 || row.got[0].Path != "group.trial.authority" || !strings.Contains(row.got[0].Text, row.want)) {
					t.Errorf("got %v, want %q", row.got, row.want)
				}
			}
		})
	}
	if got := GroupsEnded(mustParse(t, h.Text(t, policytest.Grouped()...)), mustParse(t, h.Text(t, own, other+" ]\n"))); len(got) != 0 {
		t.Errorf("got %v without a group", got)
	}
}
