package clientcmd

import (
	"slices"
	"strings"
	"testing"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/client"
	"github.com/cohort-tee/cohort/internal/cli/policycmd"
	"github.com/cohort-tee/cohort/internal/wire"
	"github.com/cohort-tee/cohort/policy/policyfile"
)

// TestTrustShowsDynamic: `trust`, and what prints its view, names each release that
// loads code which is not measured, and so does the policy that `status` prints.
func TestTrustShowsDynamic(t *testing.T) {
	v := trustView{Identities: []identityView{
		{Task: "keys", Release: "1", ID: "sha256:1"},
		{Group: "trial", ID: "sha256:2", Dynamic: []string{"app release 2", "scoring release 1"}},
	}}
	got := strings.Split(v.String(), "\n")
	for _, want := range []string{"dynamic       app release 2 loads code that is not measured", "dynamic       scoring release 1 loads code that is not measured"} {
		if !slices.Contains(got, want) {
			t.Errorf("got %q, want the line %q", got, want)
		}
	}
	doc := &policyfile.Document{
		Platforms: map[attest.Platform]attest.Rules{}, Tasks: map[string]*policyfile.Task{"app": {Name: "app", Releases: map[string]*policyfile.Release{
			"1": {Name: "1"}, "2": {Name: "2", Dynamic: true},
		}}},
	}
	if text := policycmd.Describe(doc).String(); !strings.Contains(text, "release 2 (dynamic: loads code that is not measured)") || strings.Count(text, "dynamic") != 1 {
		t.Errorf("got %s", text)
	}
}

// TestReportTree: what `verify` prints names every part of a report.
func TestReportTree(t *testing.T) {
	r := &client.Report{}
	r.Cluster.ServerName, r.Hardware.Development = "scoring.test", true
	r.Code.Task, r.Code.Dynamic, r.Policy.Genesis = "scoring", []string{"scoring release 2"}, wire.Sum([]byte("genesis"))
	text := reportTree(r)
	for _, want := range []string{
		"scoring.test: trusted (DEVELOPMENT", "├─ hardware\n", "├─ code\n│  ├─ task         scoring\n", "├─ policy\n", "├─ key\n",
		"└─ cluster\n   └─ identity     several releases of the task\n", r.Policy.Genesis.String(), "scoring release 2 loads code that is not measured",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("the tree has no %q:\n%s", want, text)
		}
	}
	r.Cluster.OneIdentity, r.Code.Dynamic = true, nil
	if text := reportTree(r); strings.Contains(text, "not measured") || !strings.Contains(text, "one identity") {
		t.Errorf("got\n%s", text)
	}
}
