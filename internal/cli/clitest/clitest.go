// Package clitest is what the tests of several commands share: an application without a
// process, files, drafts and policies. Only tests import it.
package clitest

import (
	"io"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/internal/cli/drafttext"
	"github.com/cohort-tee/cohort/internal/cli/frame"
	"github.com/cohort-tee/cohort/internal/cli/localtee"
	"github.com/cohort-tee/cohort/internal/cli/sshkey"
	"github.com/cohort-tee/cohort/internal/wire"
)

// App is an application that prints results to out and has no environment.
func App(out io.Writer) *frame.App {
	return &frame.App{
		Stdout: out, Stderr: io.Discard, Now: time.Now, Output: "text",
		Env: func(string) (string, bool) { return "", false }, Environ: func() []string { return nil },
	}
}

// Write makes a file for one test.
func Write(t *testing.T, name, content string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// Draft is the draft of a first policy with three owners and a task.
func Draft(t *testing.T) drafttext.Draft {
	t.Helper()
	owners, err := sshkey.Pairs(t.TempDir(), "owner-1", "owner-2", "owner-3")
	if err != nil {
		t.Fatal(err)
	}
	var pairs []string
	for _, o := range owners {
		pairs = append(pairs, o.Name+"="+o.Path+".pub")
	}
	lines, err := drafttext.Owners(pairs)
	if err != nil {
		t.Fatal(err)
	}
	program := wire.Sum([]byte("program"))
	return drafttext.Draft{
		TrustDomain: "dev.test", Created: time.Date(2026, 11, 22, 9, 0, 0, 0, time.UTC), Quorum: 2, Owners: lines,
		SoftRoots: []string{wire.Sum([]byte("tee")).String()}, Machines: []string{drafttext.AnyMachine},
		Authority: []string{localtee.Reference(attest.Soft, localtee.Measurement{Program: program.String()}, nil)},
		Task: drafttext.Task{Name: "scoring", KeyMode: "shared", Release: "1", Names: []string{"scoring.dev.test"}, Units: 3, Dynamic: true,
			References: []string{localtee.Reference(attest.Soft, localtee.Measurement{Agent: program.String(), Program: wire.Sum([]byte("x")).String()}, []string{`a"b\c`, "tab\t", "ä"})}},
	}
}

// InterpreterHere is a program of this machine that is an interpreter and loads
// shared libraries, with a script that it would run.
func InterpreterHere(t *testing.T) []string {
	t.Helper()
	path, err := frame.ProgramPath("sh")
	if err != nil {
		t.Skip("SKIPPED: no sh here")
	}
	return []string{path, Write(t, "server.sh", "echo")}
}
