//go:build linux

package localtee

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestUnmeasured: what a program's work depends on and no measurement covers is named: its
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
