package dev

import (
	"bytes"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cohort-tee/cohort/internal/cli/clitest"
	"github.com/cohort-tee/cohort/internal/cli/frame"
	"github.com/cohort-tee/cohort/policy/policyfile"
)

func TestLockDirIsTakenOnce(t *testing.T) {
	dir := t.TempDir()
	held, err := lockDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := lockDir(dir); err == nil || frame.Classify(err).Code != frame.CodeInUse {
		t.Errorf("got %v, want [in-use]", err)
	}
	held.Close()
	again, err := lockDir(dir)
	if err != nil {
		t.Fatalf("after release: %v", err)
	}
	again.Close()
}

func TestAddresses(t *testing.T) {
	list, err := Addresses(0, 8)
	if err != nil {
		t.Fatal(err)
	}
	seen := map[string]bool{}
	for _, a := range list {
		seen[a] = true
	}
	if len(seen) != 8 {
		t.Errorf("got %v, want 8 different ones", list)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if _, err := Addresses(l.Addr().(*net.TCPAddr).Port, 1); err == nil || frame.Classify(err).Code != frame.CodePortTaken {
		t.Errorf("got %v, want [port-taken]", err)
	}
}

func TestClusterDescription(t *testing.T) {
	dir := t.TempDir()
	c := Description{Schema: devSchema, Genesis: "ab", service: service{Task: "t", Units: []Unit{{Address: "a", PID: 2}}}}
	if err := writeCluster(dir, c); err != nil {
		t.Fatal(err)
	}
	got, err := ReadCluster(filepath.Join(dir, File))
	if err != nil || got.Task != "t" || got.Units[0].PID != 2 {
		t.Errorf("got %+v, %v, want what was written", got, err)
	}
	for _, bad := range []string{"{", `{"schema":"cohort/dev/v2","units":[{}]}`, `{"schema":"cohort/dev/v1"}`} {
		if _, err := ReadCluster(clitest.Write(t, "dev.json", bad)); frame.Classify(err).Code != frame.CodeUsage {
			t.Errorf("%s: got %v, want a usage fault", bad, err)
		}
	}
}

// TestDevSaysWhatItLeavesOut: `dev -- sh server.sh` begins with it, before anything
// looks trusted.
func TestDevSaysWhatItLeavesOut(t *testing.T) {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	var stderr bytes.Buffer
	a := clitest.App(&stderr)
	a.Stderr = &stderr
	if _, err := New(a, Flags{Task: "app", KeyMode: string(policyfile.Shared)}, t.TempDir(), Binaries{Cohort: self, Program: clitest.InterpreterHere(t)}); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(stderr.String(), "not measured: the code that sh runs") {
		t.Errorf("got %q, want what is not measured", stderr.String())
	}
}
