package systest

import (
	"bytes"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// TestTypeScriptClient compiles the TypeScript client and runs its tests: vectors, fuzzing, the
// package as it is published, and the client against a cluster of processes, in Node and in
// browsers. It also runs the client over the conformance cases, against the hostile gateway, and
// compares the script of the chat page with its source.
func TestTypeScriptClient(t *testing.T) {
	if testing.Short() {
		t.Skip("its processes have no race detector")
	}
	waits(t)
	ts := rootFolder(t, "ts")
	readSources(t, ts)
	if _, err := os.Stat(filepath.Join(ts, "node_modules")); err != nil {
		t.Fatalf("the client's dependencies are not installed: %v; run `make tools`", err)
	}
	runNode(t, ts, nil, "npm", "run", "--silent", "build-tests")
	runNode(t, filepath.Dir(ts), nil, "go", "run", "./interop/conformance", "--", "node", "ts/build/test/conformance.js")
	runNode(t, ts, nil, "node", "tools/page.mjs", "--check")
	refusesManipulations(t, "node", filepath.Join(ts, "build/test/hostile.js"))
	d := StartDev(t, filepath.Join(ts, "../examples/chat/dev.toml"))
	env := []string{"COHORT_DEV=" + filepath.Join(d.Dir, "dev.json"), "COHORT_BIN=" + filepath.Join(d.Bin, "cohort")}
	tests, err := filepath.Glob(filepath.Join(ts, "build/test/*.test.js"))
	if err != nil || len(tests) == 0 {
		t.Fatalf("the compiled tests: got %d files, %v", len(tests), err)
	}
	// One file after the other: the tests of the cluster kill a unit.
	runNode(t, ts, env, "node", append([]string{"--test", "--test-concurrency=1", "--test-reporter=spec"}, tests...)...)
}

// rootFolder returns a directory at the root of the module.
func rootFolder(t *testing.T, name string) string {
	t.Helper()
	root, err := filepath.Abs(filepath.Join("..", "..", name))
	if err != nil {
		t.Fatal(err)
	}
	return root
}

// readSources opens what the test runs, so that `go test` runs it again after a change.
func readSources(t *testing.T, root string) {
	t.Helper()
	for _, folder := range []string{"src", "test", "tools", "../examples/chat/page", "../interop/conformance", "package.json", "package-lock.json", "tsconfig.json", "tsconfig.page.json", "tsconfig.test.json"} {
		err := filepath.WalkDir(filepath.Join(root, folder), func(path string, entry fs.DirEntry, err error) error {
			if err != nil || entry.IsDir() {
				return err
			}
			_, err = os.ReadFile(path)
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
}

// runNode runs a command of the client's folder, which must succeed.
func runNode(t *testing.T, folder string, env []string, name string, args ...string) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), name, args...)
	cmd.Dir, cmd.Env = folder, append(os.Environ(), env...)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s %v: %v; where it is missing, run `make tools`\n%s", name, args, err, out)
	}
	for line := range bytes.SplitSeq(out, []byte("\n")) {
		if bytes.Contains(line, []byte("SKIPPED")) || bytes.Contains(line, []byte("ℹ")) || bytes.Contains(line, []byte(" passed ")) {
			t.Logf("%s", line)
		}
	}
}
