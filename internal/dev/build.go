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

	Members  [][]string // of a group: what its roles run, in their order
	generate string     // program that makes what they compute on
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
	if f.Example == Joint {
		b.Tables = f.Tables(dir)
		return b.Joint(ctx, self, dir)
	}
	if len(program) == 0 {
		path, err := exampleProgram(ctx, f.Example, self, dir)
		b.Program = []string{path}
		return b, err
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

// exampleProgram finds an example beside this executable, or builds it.
func exampleProgram(ctx context.Context, name, self, dir string) (string, error) {
	beside := filepath.Join(filepath.Dir(self), name)
	if info, err := os.Stat(beside); err == nil && info.Mode().IsRegular() && info.Mode()&0o111 != 0 {
		return beside, nil
	}
	if _, ok := sourceTree(); !ok {
		return "", &frame.Fault{Code: frame.CodeFile, Cause: fmt.Errorf("finding example %s: neither beside %s nor in a source tree here", name, self),
			Hint: "run it in the source tree, or give a program of your own: cohort dev -- ./my-server"}
	}
	return GoBuild(ctx, "./examples/"+name, filepath.Join(dir, "bin", name))
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
	cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-buildvcs=false", "-o", out, pkg)
	cmd.Dir = tree
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if output, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("building %s: %w: %s", pkg, err, bytes.TrimSpace(output))
	}
	return out, nil
}

// key names a state: what is measured, as which task, in which key mode.
func (b Binaries) key(task, keyMode string) (string, error) {
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
