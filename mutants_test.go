package cohort

import (
	"bytes"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"go/types"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// TestMutantsFit: the code that each mutant changes exists, and docs/threat-cases.md has its row.
// The test is fast, so it detects at once when code moves away from a mutant.
func TestMutantsFit(t *testing.T) {
	all := mutants(t)
	if len(all) < 500 {
		t.Errorf("got %d mutants, want them all", len(all))
	}
	table := read(t, "docs/threat-cases.md")
	for _, m := range all {
		row := fmt.Sprintf("| %s | `%s` | `%s` `%s` |", m.protection, m.name, m.pkg, m.run)
		if !bytes.Contains(table, []byte(row)) {
			t.Errorf("docs/threat-cases.md has no row\n%s", row)
		}
		for path, content := range changed(t, m) {
			if _, err := parser.ParseFile(token.NewFileSet(), path, content, parser.SkipObjectResolution); err != nil {
				t.Errorf("mutant %q, changed: %v", m.name, err)
			}
		}
	}
	for _, some := range switched(all) {
		changed(t, some...) // fails if two overlap
	}
}

// TestMutantsBuild type-checks the package of each mutant in shipped code, so that a name in a
// mutant's new text that the code has renamed since is noticed at once.
func TestMutantsBuild(t *testing.T) {
	if testing.Short() {
		t.Skip("SKIPPED: mutants are not type-checked; run without -short")
	}
	code := shipped(t)
	for _, m := range mutants(t) {
		for path, content := range changed(t, m) {
			for _, p := range code.packages {
				if p.path != filepath.Dir(path) {
					continue
				}
				// Files that are not changed are parsed already.
				files := slices.DeleteFunc(slices.Clone(p.files), func(f *ast.File) bool { return code.fileOf(f.Pos()) == filepath.Base(path) })
				for name, text := range map[string][]byte{path: content, "mutated.go": fmt.Appendf(nil, "package %s\n\nconst mutated = %q\n", p.types.Name(), m.name)} {
					f, err := parser.ParseFile(code.fset, name, text, parser.SkipObjectResolution)
					if err != nil {
						t.Fatal(err)
					}
					files = append(files, f)
				}
				config := types.Config{Importer: code.imports}
				if _, err := config.Check(module+"/"+p.path, code.fset, files, nil); err != nil {
					t.Errorf("mutant %q: %v", m.name, err)
				}
			}
		}
	}
}

// TestReadMutants: a mutant without a line, or whose code has moved, is refused; a good mutant
// changes what it names.
func TestReadMutants(t *testing.T) {
	folder := t.TempDir()
	write(t, filepath.Join(folder, "code.go"), []byte("package code\n\n"+
		"const Most = 3\n\n"+
		"func (s *Set[K]) Check(n int) error {\n"+
		"\tif n < 0 { // never\n\t\treturn wire.Refuse(wire.TooLarge, \"set: size\", n, 0)\n\t}\n"+
		"\tif n == 1 {\n\t\treturn wire.Refuse(wire.TooMany, \"set: twice\", n, 0)\n\t}\n"+
		"\tswitch {\n\tcase n > Most:\n\t\treturn wire.Refuse(wire.TooMany, \"set: twice\", n, Most)\n\tdefault:\n\t\treturn wire.Refuse(wire.Behind, \"set: default\", n, 0)\n\t}\n}\n"))
	const head = "mutant: m\nprotection: p\ntest: ./x -run T\n"
	for _, tt := range []struct{ name, block, want string }{ // want is a part of the changed file, or of the error
		{"a guard", head + "removes: wire.TooLarge, \"set: size\"", `if (n < 0) && mutated != "m" {`},
		{"a guard by itself", head + "in: Set.Check\nremoves: case n > Most", `case (n > Most) && mutated != "m":`},
		{"a comparison", head + "in: Set.Check\nold: n <\n\t0\nnew: true", `if (mutated == "m" && (true) || mutated != "m" && (n < 0)) {`},
		{"statements", head + "in: Set.Check\nold: if n < 0 { return wire.Refuse(wire.TooLarge, \"set: size\", n, 0) }\nnew:", "if mutated == \"m\" {\n\n} else {\nif n < 0 { // never"},
		{"a comparison beside any other text", head + "in: Set.Check\nold: n < 0\nnew: true\nin: Most\nold: 3\nnew: 4", "if true { // never"},
		{"any other text", head + "in: Most\nold: = 3\nnew: = 4", "const Most = 4"},
		{"no such declaration", head + "in: Set.Gone\nold: n\nnew: m", `declares no "Set.Gone"`},
		{"an old text twice", head + "in: Set.Check\nold: n\nnew: m", "the old text stands 8 times there, want once"},
		{"an old text of another declaration", head + "in: Most\nold: n < 0\nnew: false", "the old text stands 0 times there, want once"},
		{"no such refusal", head + "removes: wire.TooLarge, \"set\"", "the refusal stands 0 times there, want once"},
		{"a refusal twice", head + "removes: wire.TooMany, \"set: twice\"", "the refusal stands 2 times there, want once"},
		{"a refusal without a condition", head + "removes: wire.Behind, \"set: default\"", "under no condition of its own"},
		{"an unknown key", head + "drops: wire.TooLarge", `got line "drops: wire.TooLarge", want mutant,`},
		{"no new text", head + "in: Most\nold: = 3", "want lines mutant, protection, test, and removes, or old and new"},
		{"something between old and new", head + "in: Most\nold: = 3\nin: Most\nnew: = 4", "after old, want new"},
		{"no old text", head + "in: Most\nnew: = 4", "the old text stands 0 times there"},
		{"no protection", "mutant: m\ntest: ./x -run T\nremoves: wire.TooLarge, \"set: size\"", "want lines mutant, protection, test"},
		{"no change", head, "want lines mutant, protection, test"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			all, err := make(reader).read(folder, tt.block)
			got := fmt.Sprint(err)
			if err == nil {
				got = string(changed(t, all...)[filepath.Join(folder, "code.go")])
			}
			if !strings.Contains(got, tt.want) {
				t.Errorf("got %s\nwant %s", got, tt.want)
			}
		})
	}
}

// mutants reads all mutants.
func mutants(t *testing.T) (all []mutant) {
	t.Helper()
	const root = "testdata/mutants"
	code := make(reader)
	err := filepath.WalkDir(root, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		folder := strings.TrimSuffix(strings.TrimPrefix(path, root+"/"), ".txt")
		some, err := code.read(folder, string(read(t, path)))
		if err != nil {
			t.Errorf("%s:\n%v", path, err)
		}
		all = append(all, some...)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// TestThreatCases: every test that the documents name exists. On each line, a test's package
// comes before the test.
func TestThreatCases(t *testing.T) {
	name := regexp.MustCompile("`(\\./[\\w/]+|Test\\w+)[^`]*`")
	found := 0
	for _, page := range []string{"docs/threat-cases.md", "docs/threat-model.md", "docs/how-to/clean-room.md"} {
		for line := range strings.Lines(string(read(t, page))) {
			folder := ""
			for _, token := range name.FindAllStringSubmatch(line, -1) {
				switch {
				case token[1][0] == '.':
					folder = token[1]
				case folder != "":
					found++
					if !hasTest(t, folder, token[1]) {
						t.Errorf("%s names %s of %s, which is not there", page, token[1], folder)
					}
				}
			}
		}
	}
	if found < 300 {
		t.Errorf("got %d tests in the pages, want them all", found)
	}
}

func hasTest(t *testing.T, folder, test string) bool {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(folder, "*_test.go"))
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		if bytes.Contains(read(t, file), []byte("func "+test+"(")) {
			return true
		}
	}
	return false
}

func read(t *testing.T, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func write(t *testing.T, path string, content []byte) {
	t.Helper()
	if err := os.WriteFile(path, content, 0o600); err != nil {
		t.Fatal(err)
	}
}
