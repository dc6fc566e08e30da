package clientcmd

import (
	"slices"
	"strings"
	"testing"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/internal/cli/policycmd"
	"github.com/cohort-tee/cohort/policy"
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
	doc := &policy.Document{
		Platforms: map[attest.Platform]attest.Rules{}, Tasks: map[string]*policy.Task{"app": {Name: "app", Releases: map[string]*policy.Release{
			"1": {Name: "1"}, "2": {Name: "2", Dynamic: true},
		}}},
	}
	if text := policycmd.Describe(doc).String(); !strings.Contains(text, "release 2 (dynamic: loads code that is not measured)") || strings.Count(text, "dynamic") != 1 {
		t.Errorf("got %s", text)
	}
}
