package cli

import (
	"os"
	"strings"
	"testing"

	"github.com/cohort-tee/cohort/internal/cli/frame"
	"github.com/spf13/cobra"
)

// TestReferenceIsComplete holds docs/reference/cli.md against the commands,
// their flags and the codes there are.
func TestReferenceIsComplete(t *testing.T) {
	b, err := os.ReadFile("../../docs/reference/cli.md")
	if err != nil {
		t.Fatal(err)
	}
	page := string(b)
	for code := range frame.Explanations {
		if !strings.Contains(page, "\n| `"+code+"` |") {
			t.Errorf("code %q is not in the reference", code)
		}
	}
	root := commands((&frame.App{}))
	for key, f := range frame.ConfigKeys(root) {
		if !strings.Contains(page, "`--"+f.Name) {
			t.Errorf("flag %s is not in the reference", key)
		}
	}
	visitLeaves(root, func(cmd *cobra.Command) {
		if !strings.Contains(page, "\n## `"+cmd.CommandPath()) {
			t.Errorf("command %q is not in the reference", cmd.CommandPath())
		}
	})
}

func visitLeaves(cmd *cobra.Command, visit func(*cobra.Command)) {
	for _, sub := range cmd.Commands() {
		if sub.Name() == "help" || sub.Name() == "completion" || sub.Hidden {
			continue
		}
		if !sub.HasSubCommands() {
			visit(sub)
		}
		visitLeaves(sub, visit)
	}
}
