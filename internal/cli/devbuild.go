package cli

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/cohort-tee/cohort/internal/wire"
)

const modulePath = "github.com/cohort-tee/cohort"

// binaries are the files a development cluster measures.
type binaries struct {
	cohort  string   // authority and agent; static
	program []string // path and arguments

	members  [][]string // of a group: what its roles run, in their order
	generate string     // program that makes what they compute on
	tables   string     // folder of that
}

// findBinaries finds what a cluster runs: this cohort, and the user's program or
// an example. Inside the source tree what is missing is built into dir.
func (f devFlags) findBinaries(ctx context.Context, dir string, program []string) (binaries, error) {
	self, err := os.Executable()
	if err != nil {
		return binaries{}, err
	}
	var b binaries
	if b.cohort, err = staticCohort(ctx, self, dir); err != nil {
		return b, err
	}
	if f.example == devJoint {
		b.tables = f.tables(dir)
		return b.joint(ctx, self, dir)
	}
	if len(program) == 0 {
		path, err := exampleProgram(ctx, f.example, self, dir)
		b.program = []string{path}
		return b, err
	}
	path, err := programPath(program[0])
	b.program = append([]string{path}, program[1:]...)
	return b, err
}

// staticCohort is this cohort, or a static build of the same source: `go run`
// makes a dynamic one where there is a C compiler, and an authority that loads
// unmeasured libraries is refused.
func staticCohort(ctx context.Context, self, dir string) (string, error) {
	m, err := measure("", []string{self})
	if err != nil || !m.Dynamic {
		return self, err
	}
	if _, ok := sourceTree(); !ok {
		return "", &fault{codeUsage, errors.New("this cohort loads shared libraries, which are not measured"), "build it with CGO_ENABLED=0"}
	}
	return goBuild(ctx, "./cmd/cohort", filepath.Join(dir, "bin", "cohort"))
}

// exampleProgram finds an example beside this executable, or builds it.
func exampleProgram(ctx context.Context, name, self, dir string) (string, error) {
	beside := filepath.Join(filepath.Dir(self), name)
	if info, err := os.Stat(beside); err == nil && info.Mode().IsRegular() && info.Mode()&0o111 != 0 {
		return beside, nil
	}
	if _, ok := sourceTree(); !ok {
		return "", &fault{codeFile, fmt.Errorf("finding example %s: neither beside %s nor in a source tree here", name, self),
			"run it in the source tree, or give a program of your own: cohort dev -- ./my-server"}
	}
	return goBuild(ctx, "./examples/"+name, filepath.Join(dir, "bin", name))
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

// goBuild builds a static program of the source tree. -trimpath and no stamp
// make the same source the same bytes.
func goBuild(ctx context.Context, pkg, out string) (string, error) {
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
func (b binaries) key(task, keyMode string) (string, error) {
	var measured string
	for _, program := range append([][]string{b.program}, b.members...) {
		m, err := measure(b.cohort, program)
		if err != nil {
			return "", err
		}
		measured += m.Reference
	}
	return wire.Sum([]byte(measured + task + keyMode)).Hex()[:12], nil
}
