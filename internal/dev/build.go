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

// Binaries are the files a development cluster measures.
type Binaries struct {
	Cohort  string   // authority and agent; static
	Program []string // path and arguments

	Example  Example    // that they are of; zero for the user's own program
	Members  [][]string // of a group: what its roles run, in their order
	Generate string     // program that makes what they compute on
	Tables   string     // folder of that
}

// findBinaries finds what a cluster runs: this cohort, and the user's program or
// an example. Inside the source tree what is missing is built into dir.
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

// staticCohort is this cohort, or a static build of the same source: `go run`
// makes a dynamic one where there is a C compiler, and an authority that loads
// unmeasured libraries is refused.
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

// sourceTree is the folder of this module above the working directory.
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

// GoBuild builds a static program of the source tree. -trimpath and no stamp
// make the same source the same bytes.
func GoBuild(ctx context.Context, pkg, out string) (string, error) {
	tree, _ := sourceTree()
	return build(ctx, tree, pkg, out)
}

// build is GoBuild in a folder.
func build(ctx context.Context, dir, pkg, out string) (string, error) {
	cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-buildvcs=false", "-o", out, pkg)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if output, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("building %s: %w: %s", pkg, err, bytes.TrimSpace(output))
	}
	return out, nil
}

// stateName names a state: what is measured, as which task, in which key mode.
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
