package policyfile

import (
	"bytes"
	"reflect"
	"strings"
	"testing"

	"github.com/cohort-tee/cohort/policy/policytest"
	"github.com/cohort-tee/cohort/policy/policytoml"
)

// TestCopyAuthority: a group without a line about its authority gets that of the trust domain; a
// group with one keeps it.
func TestCopyAuthority(t *testing.T) {
	h := policytest.NewGroupHouse()
	bare := strings.Replace(policytest.Trial, "authority = "+policytest.CustodyOf(t)+"\n", "", 1)
	with := func(group string) []byte {
		return h.Text(t, "debug = true\n", "", "oneoff = true\n", "oneoff = true\n"+group)
	}
	copied, err := CopyAuthority(with(bare))
	if err != nil {
		t.Fatal(err)
	}
	want := `{ machines = ["chip:0123456789abcdef"], platform = { soft = { roots = ["` + policytest.Digest("1").String() + `"] } }, reference = [{ platform = "soft", program = "` + policytest.Digest("2").String() + `" }] }`
	if got := mustParse(t, copied).Groups["trial"].Authority; got.line != want {
		t.Errorf("got %s, want %s", got.line, want)
	}
	for name, raw := range map[string][]byte{"a group that has one": with(policytest.Trial), "no group": h.Text(t), "what was copied": copied} {
		if again, err := CopyAuthority(raw); err != nil || !bytes.Equal(again, raw) {
			t.Errorf("%s: it is changed, %v", name, err)
		}
	}
	for _, header := range []string{"[group.\"trial\"]", " [group.trial] # a group"} {
		text, err := CopyAuthority(with(strings.Replace(bare, "[group.trial]", header, 1)))
		if err != nil || !strings.Contains(string(text), header+"\nauthority = ") {
			t.Errorf("under %s nothing is copied, %v", header, err)
		}
	}
	if _, err := CopyAuthority([]byte("a = ")); err == nil {
		t.Error("what is no TOML is taken")
	}
}

// TestHardwareCustody: the line contains the rules of every platform as the policy file has them,
// including times.
func TestHardwareCustody(t *testing.T) {
	d := mustParse(t, policytest.IronText(t))
	tree := d.tables()
	references := under(tree, "authority")["reference"].([]any)
	for _, task := range d.TaskNames() {
		for _, release := range d.Tasks[task].ReleaseNames() {
			references = append(references, under(tree, "task", task, "release", release)["reference"].([]any)...)
		}
	}
	var none policytoml.Faults
	measured := readMeasured(policytoml.NewTable("", tree, &none))
	c, err := ParseCustody(rosterLine(measured.resolved(map[string]any{"machines": "any", "platform": tree["platform"], "reference": references})))
	if err != nil {
		t.Fatal(err)
	}
	if len(c.References) != len(d.references()) || !reflect.DeepEqual(c.Rules, d.Platforms) {
		t.Errorf("got %d reference values and rules %+v, want %d and %+v", len(c.References), c.Rules, len(d.references()), d.Platforms)
	}
}
