package wire

import (
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"strings"
	"testing"
)

// TestLabelsAreAllInTheTable reads the source, because a label that is declared
// but not listed would escape the comparison of all labels.
func TestLabelsAreAllInTheTable(t *testing.T) {
	file, err := parser.ParseFile(token.NewFileSet(), "label.go", nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	declared := map[string]bool{}
	ast.Inspect(file, func(n ast.Node) bool {
		if v, ok := n.(*ast.ValueSpec); ok && strings.HasPrefix(v.Names[0].Name, "Label") && v.Names[0].Name != "Labels" {
			value := v.Values[0].(*ast.BasicLit).Value
			if declared[value] {
				t.Errorf("two labels are %s", value)
			}
			declared[value] = true
		}
		return true
	})
	for _, l := range Labels {
		delete(declared, `"`+string(l)+`"`)
	}
	for value := range declared {
		t.Errorf("%s is not in the table", value)
	}
}

// TestLabelsAreAllInTheSpecification keeps the table of docs/spec/evidence.md.
func TestLabelsAreAllInTheSpecification(t *testing.T) {
	page, err := os.ReadFile("../../docs/spec/evidence.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range Labels {
		if !strings.Contains(string(page), "\n| `"+string(l)+"` |") {
			t.Errorf("docs/spec/evidence.md has no row for %q", l)
		}
	}
}
