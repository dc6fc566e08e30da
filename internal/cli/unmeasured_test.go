package cli

import (
	"bytes"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/policy"
)

// TestUnmeasured: what a program's work depends on and nobody measures is named: its
// libraries, what an interpreter runs, files that arguments name; of a static program
// without any nothing is.
func TestUnmeasured(t *testing.T) {
	dir := t.TempDir()
	put := func(name string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, nil, 0o700); err != nil {
			t.Fatal(err)
		}
		return path
	}
	script, model, jar := put("server.py"), put("m.json"), put("app.jar")
	link := filepath.Join(dir, "serve")
	if err := os.Symlink(put("python3.11"), link); err != nil {
		t.Fatal(err)
	}
	for name, row := range map[string]struct {
		program []string
		dynamic bool
		want    []string // part of each sentence
	}{
		"static":                {[]string{put("server"), "--port", "80"}, false, nil},
		"with libraries":        {[]string{put("server")}, true, []string{"libraries that server loads"}},
		"a model":               {[]string{put("server"), "--model", model}, false, []string{"content of " + model}},
		"a model after =":       {[]string{put("server"), "--model=" + model, model}, false, []string{"content of " + model}},
		"a model that is not":   {[]string{put("server"), "--model", model + "x"}, false, nil},
		"Python":                {[]string{put("python3"), script}, true, []string{"libraries", "python3 runs", "content of " + script}},
		"Python under a name":   {[]string{link, "-m", "server"}, true, []string{"libraries", "python3.11 runs"}},
		"Node":                  {[]string{put("node")}, true, []string{"libraries", "node runs"}},
		"Java with a classpath": {[]string{put("java"), "-cp", jar + ":" + model, "Main"}, true, []string{"libraries", "java runs", "content of " + jar, "content of " + model}},
		"a static shell":        {[]string{put("busybox"), "sh"}, false, []string{"busybox runs"}},
		"no shell":              {[]string{put("shipping")}, false, nil},
	} {
		t.Run(name, func(t *testing.T) {
			got := unmeasured(row.program, row.dynamic)
			same := len(got) == len(row.want)
			for i := range min(len(got), len(row.want)) {
				same = same && strings.Contains(got[i], row.want[i])
			}
			if !same {
				t.Errorf("got %q, want sentences with %q", got, row.want)
			}
		})
	}
}

// interpreterHere is a program of this machine that is an interpreter and loads
// shared libraries, with a script that it would run.
func interpreterHere(t *testing.T) []string {
	t.Helper()
	path, err := programPath("sh")
	if err != nil {
		t.Skip("SKIPPED: no sh here")
	}
	return []string{path, write(t, "server.sh", "echo")}
}

// TestMeasureSaysWhatItLeavesOut: beside the line of policy, and in JSON.
func TestMeasureSaysWhatItLeavesOut(t *testing.T) {
	program := interpreterHere(t)
	got := run(t, nil, append([]string{"measure", "--agent", "none", "--"}, program...)...)
	for _, want := range []string{"not measured: the code that sh runs", "not measured: the content of " + program[1]} {
		if got.exit != 0 || !strings.Contains(got.talk, want) {
			t.Errorf("exit %d, got %q, want %q in it", got.exit, got.talk, want)
		}
	}
	got = run(t, nil, append([]string{"measure", "--agent", "none", "-o", "json", "--"}, program...)...)
	if !strings.Contains(got.out, `"unmeasured"`) {
		t.Errorf("got %s, want it in JSON too", got.out)
	}
}

// TestDevSaysWhatItLeavesOut: `dev -- sh server.sh` begins with it, before anything
// looks trusted.
func TestDevSaysWhatItLeavesOut(t *testing.T) {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	var talk bytes.Buffer
	a := judgingApp(&talk)
	a.talk = &talk
	if _, err := a.newDev(devFlags{task: "app", keyMode: string(policy.Shared)}, t.TempDir(), binaries{cohort: self, program: interpreterHere(t)}); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(talk.String(), "not measured: the code that sh runs") {
		t.Errorf("got %q, want what is not measured", talk.String())
	}
}

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
	if text := describe(doc).String(); !strings.Contains(text, "release 2 (dynamic: loads code that is not measured)") || strings.Count(text, "dynamic") != 1 {
		t.Errorf("got %s", text)
	}
}
