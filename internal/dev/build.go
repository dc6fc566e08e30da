package dev

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/cohort-tee/cohort/internal/cli/frame"
	"github.com/cohort-tee/cohort/internal/cli/localtee"
	"github.com/cohort-tee/cohort/internal/wire"
)

const modulePath = "github.com/cohort-tee/cohort"

// Binaries are the programs that a development cluster runs and measures.
type Binaries struct {
	Cohort  string   // authority and agent; static
	Program []string // path and arguments

	Example  Example    // source of the programs; zero for the user's own program
	Members  [][]string // of a group: paths and arguments of the roles' programs, in the order of the roles
	Page     string     // program that serves the example's page; empty if it has none
	Generate string     // program that generates the data of the group
	Tables   string     // folder of the data
}

// findBinaries returns the programs of a cluster: this cohort, and the user's program or an
// example. In the source tree it builds missing programs into dir.
func (f Flags) findBinaries(ctx context.Context, dir string, program []string) (Binaries, error) {
	self, err := os.Executable()
	if err != nil {
		return Binaries{}, err
	}
	var b Binaries
	if b.Cohort, err = staticCohort(ctx, self, dir); err != nil {
		return b, err
	}
	if len(program) == 0 {
		return f.FindPrograms(ctx, b, self, dir)
	}
	path, err := frame.ProgramPath(program[0])
	b.Program = append([]string{path}, program[1:]...)
	return b, err
}

// staticCohort returns the path of this cohort if it is static, or else of a static build of the
// same source: with a C compiler, `go run` makes a dynamic program, and policy refuses an
// authority that loads unmeasured libraries.
func staticCohort(ctx context.Context, self, dir string) (string, error) {
	m, err := localtee.Measure("", []string{self})
	if err != nil || !m.Dynamic {
		return self, err
	}
	if _, ok := sourceTree(); !ok {
		return "", &frame.Fault{Code: frame.CodeUsage, Cause: errors.New("this cohort loads shared libraries, which are not measured"), Hint: "build it with CGO_ENABLED=0"}
	}
	return GoBuild(ctx, "./cmd/cohort", filepath.Join(dir, "bin", "cohort"))
}

// sourceTree returns this module's root, if the working directory is in it.
func sourceTree() (string, bool) {
	dir, err := os.Getwd()
	for err == nil {
		b, readErr := os.ReadFile(filepath.Join(dir, "go.mod"))
		if readErr == nil && strings.HasPrefix(string(b), "module "+modulePath+"\n") {
			return dir, true
		}
		if dir == filepath.Dir(dir) {
			break
		}
		dir = filepath.Dir(dir)
	}
	return "", false
}

// GoBuild builds a static program from the source tree. With -trimpath and without version
// stamps, equal sources result in equal bytes.
func GoBuild(ctx context.Context, pkg, out string) (string, error) {
	tree, _ := sourceTree()
	return build(ctx, tree, pkg, out)
}

// build is GoBuild for a package in the folder dir.
func build(ctx context.Context, dir, pkg, out string) (string, error) {
	cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-buildvcs=false", "-o", out, pkg)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if output, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("building %s: %w: %s", pkg, err, bytes.TrimSpace(output))
	}
	return out, nil
}

// stateName returns a name for the state of these measurements with a task and key mode.
func (b Binaries) stateName(task, keyMode string) (string, error) {
	var measured string
	for _, program := range append([][]string{b.Program}, b.Members...) {
		m, err := localtee.Measure(b.Cohort, program)
		if err != nil {
			return "", err
		}
		measured += m.Reference
	}
	return wire.Sum([]byte(measured + task + keyMode)).Hex()[:12], nil
}
