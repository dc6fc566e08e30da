package cohort

import (
	"encoding/json"
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"go/types"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// desks are the systems that people have at their desks, and the second architecture of servers.
var desks = []string{"darwin/arm64", "windows/amd64", "linux/arm64"}

// TestTypesElsewhere type-checks cohort for other systems: all code of the project, and the
// declarations of all that it imports. That finds what a build finds but for the linker's errors,
// in a tenth of the time; TestClientCommandsElsewhere builds.
func TestTypesElsewhere(t *testing.T) {
	if testing.Short() {
		t.Skip("SKIPPED: nothing was checked for other systems; run without -short")
	}
	for _, system := range desks {
		t.Run(system, func(t *testing.T) {
			for _, err := range typeCheck(t, system, "./cmd/cohort") {
				t.Error(err)
			}
		})
	}
}

// typeCheck checks a package and all that it imports for a system, and returns the errors in the
// project's code.
func typeCheck(t *testing.T, system, path string) (faults []error) {
	t.Helper()
	list := exec.Command("go", "list", "-deps", "-json=ImportPath,Dir,GoFiles,ImportMap,Standard", path)
	name, machine, _ := strings.Cut(system, "/")
	list.Env = append(os.Environ(), "GOOS="+name, "GOARCH="+machine, "CGO_ENABLED=0")
	out, err := list.Output()
	if err != nil {
		t.Fatalf("listing packages: %v", err)
	}
	type listed struct {
		ImportPath, Dir string
		GoFiles         []string
		ImportMap       map[string]string
		Standard        bool
	}
	checked := map[string]*types.Package{"unsafe": types.Unsafe}
	fset := token.NewFileSet()
	for dec := json.NewDecoder(strings.NewReader(string(out))); ; { // what is imported comes first
		var p listed
		if err := dec.Decode(&p); errors.Is(err, io.EOF) {
			return faults
		} else if err != nil {
			t.Fatalf("reading the package list: %v", err)
		}
		if p.ImportPath == "unsafe" {
			continue
		}
		var files []*ast.File
		for _, file := range p.GoFiles {
			f, err := parser.ParseFile(fset, filepath.Join(p.Dir, file), nil, parser.SkipObjectResolution)
			if err != nil {
				t.Fatal(err)
			}
			files = append(files, f)
		}
		own := within(p.ImportPath, module)
		config := types.Config{
			Sizes: types.SizesFor("gc", machine), IgnoreFuncBodies: !own, FakeImportC: true,
			Importer: importerOf(func(path string) (*types.Package, error) {
				if mapped := p.ImportMap[path]; mapped != "" {
					path = mapped
				}
				if checked[path] == nil {
					return nil, fmt.Errorf("%s is not listed", path)
				}
				return checked[path], nil
			}),
			Error: func(err error) {
				if own {
					faults = append(faults, err)
				}
			},
		}
		checked[p.ImportPath], _ = config.Check(p.ImportPath, fset, files, nil)
	}
}

// importerOf is an importer that is a function.
type importerOf func(string) (*types.Package, error)

func (f importerOf) Import(path string) (*types.Package, error) { return f(path) }
