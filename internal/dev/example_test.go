package dev

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cohort-tee/cohort/internal/cli/clitest"
	"github.com/cohort-tee/cohort/internal/cli/frame"
)

// TestExamples reads the description of every example of the source tree.
func TestExamples(t *testing.T) {
	files, err := filepath.Glob("../../examples/*/dev.toml")
	if err != nil || len(files) < 3 {
		t.Fatalf("got %v, %v, want the examples' descriptions", files, err)
	}
	for _, file := range files {
		e, err := ReadExample(file)
		if name := filepath.Base(filepath.Dir(file)); err != nil || e.Name != name || e.MainTask() == "" {
			t.Errorf("%s: got %q of task %q, %v", file, e.Name, e.MainTask(), err)
		}
	}
}

// TestExampleRefuses changes one thing of a good description, which then reports what is wrong.
func TestExampleRefuses(t *testing.T) {
	b, err := os.ReadFile("../../examples/jointrisk/dev.toml")
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct{ old, new, want string }{
		{`schema = "cohort/dev-example/v1"`, `schema = "cohort/dev-example/v2"`, "schema"},
		{`name   = "jointrisk"`, `name = "Joint Risk"`, "name"},
		{`name   = "jointrisk"`, "name = \"jointrisk\"\nprogram = \".\"", "program, or roles"},
		{`check_rows = 20_000`, `check_rows = 0`, "check_rows"},
		{`check_rows = 20_000`, `rows_of_check = 1`, "strict mode"},
		{`calls   = ["bank", "insurer"]`, `calls = ["baker"]`, "baker"},
		{`role = "joiner"`, `role = "baker"`, "baker"},
		{`name    = "insurer"`, `name = "bank"`, "of its own"},
		{`party   = "south"`, `party = ""`, "a party"},
		{"[request]\n", "[requests]\n", "strict mode"},
	} {
		text := strings.Replace(string(b), tt.old, tt.new, 1)
		if text == string(b) {
			t.Fatalf("the description has no %q", tt.old)
		}
		_, err := ReadExample(clitest.Write(t, "dev.toml", text))
		if err == nil || frame.Classify(err).Code != frame.CodeUsage || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%q: got %v, want a usage fault with %q", tt.new, err, tt.want)
		}
	}
}

// TestExampleRoles: who holds data and whom users ask follows from the calls.
func TestExampleRoles(t *testing.T) {
	e, err := ReadExample("../../examples/jointrisk/dev.toml")
	if err != nil {
		t.Fatal(err)
	}
	holders := e.Holders()
	if len(holders) != 2 || e.Roles[holders[0]].Name != "bank" || e.Roles[holders[1]].Name != "insurer" || e.Asked() != 2 {
		t.Errorf("got holders %v, asked %d", holders, e.Asked())
	}
	if got := strings.Join(e.Parties(), " "); got != "east north south" || e.OfParty("south") != 1 {
		t.Errorf("got parties %q, role %d of south", got, e.OfParty("south"))
	}
}

func FuzzReadExample(f *testing.F) {
	for _, name := range []string{"jointrisk", "chat"} {
		b, err := os.ReadFile("../../examples/" + name + "/dev.toml")
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, content []byte) {
		path := filepath.Join(t.TempDir(), "dev.toml")
		if err := os.WriteFile(path, content, 0o600); err != nil {
			t.Skip(err)
		}
		if e, err := ReadExample(path); err == nil {
			e.Holders()
			if e.Grouped() && e.Asked() < 0 {
				t.Error("a group was accepted that has no role to ask")
			}
		}
	})
}
