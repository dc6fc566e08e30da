package main

import (
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
)

// patience is how long a check waits for something to happen.
const patience = 30 * time.Second

// TestMain builds the real programs, static as they are shipped, because a
// script measures and launches them. Started as "freeport", it prints a port.
func TestMain(m *testing.M) {
	if filepath.Base(os.Args[0]) == "freeport" {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			panic(err)
		}
		fmt.Println(l.Addr().(*net.TCPAddr).Port)
		return
	}
	os.Exit(withPrograms(m))
}

func withPrograms(m *testing.M) int {
	bin, err := os.MkdirTemp("", "cohort-bin-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(bin)
	for dir, pkgs := range map[string][]string{
		"":          {".", "../../examples/scoring", "../../examples/chat"},
		"jointrisk": {"../../examples/jointrisk/..."},
	} {
		build := exec.Command("go", append([]string{"build", "-o", filepath.Join(bin, dir) + "/"}, pkgs...)...)
		build.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := build.CombinedOutput(); err != nil {
			fmt.Fprintf(os.Stderr, "building: %v\n%s", err, out)
			return 1
		}
	}
	for _, name := range []string{"scoring", "chat", "jointrisk"} {
		b, err := os.ReadFile(filepath.Join("../../examples", name, "dev.toml"))
		if err == nil {
			err = os.WriteFile(filepath.Join(bin, name+".toml"), b, 0o600)
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
	}
	self, err := os.Executable()
	if err == nil {
		err = os.Symlink(self, filepath.Join(bin, "freeport"))
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	os.Setenv("PATH", bin+string(filepath.ListSeparator)+os.Getenv("PATH"))
	return m.Run()
}

func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir: "testdata",
		Condition: func(name string) (bool, error) {
			if name != "full" {
				return false, fmt.Errorf("got condition %q, want full", name)
			}
			return os.Getenv("COHORT_FULL") != "", nil
		},
		RequireExplicitExec: true,
		Setup: func(env *testscript.Env) error {
			env.Setenv("XDG_STATE_HOME", filepath.Join(env.WorkDir, "state"))
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"await":    await,
			"describe": describe,
			"subst":    subst,
		},
	})
}

// await FILE waits until a file exists.
func await(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: await FILE")
	}
	path := ts.MkAbs(args[0])
	within(ts, args[0], func() bool {
		_, err := os.Stat(path)
		return err == nil
	})
}

// describe FILE [ADDRESS] sets variables to the values of a dev.json. With ADDRESS
// it waits until the unit there is another process than $PID1.
func describe(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 1 {
		ts.Fatalf("usage: describe FILE [ADDRESS]")
	}
	var d struct {
		Schema, Genesis, Authority, Gateway, Task, Root string

		ServerName string `json:"server_name"`
		Units      []struct {
			Address, Health string
			PID             int
		}
	}
	read := func() {
		ts.Check(json.Unmarshal([]byte(ts.ReadFile(args[0])), &d))
	}
	if read(); len(args) == 2 {
		old := ts.Getenv("PID1")
		within(ts, "another process", func() bool { read(); return strconv.Itoa(d.Units[0].PID) != old })
	}
	if d.Schema != "cohort/dev/v1" || len(d.Units) != 3 {
		ts.Fatalf("got %+v, want three units", d)
	}
	for name, value := range map[string]string{"GENESIS": d.Genesis, "AUTHORITY": d.Authority, "GATEWAY": d.Gateway, "TASK": d.Task, "ROOT": d.Root, "NAME": d.ServerName} {
		ts.Setenv(name, value)
	}
	for i, u := range d.Units {
		n := strconv.Itoa(i + 1)
		ts.Setenv("UNIT"+n, u.Address)
		ts.Setenv("HEALTH"+n, u.Health)
		ts.Setenv("PID"+n, strconv.Itoa(u.PID))
	}
}

// subst NAME FILE sets a variable to a file's content without its last newline.
func subst(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: subst NAME FILE")
	}
	b := ts.ReadFile(args[1])
	if n := len(b); n > 0 && b[n-1] == '\n' {
		b = b[:n-1]
	}
	ts.Setenv(args[0], b)
}

// within waits until something holds.
func within(ts *testscript.TestScript, what string, holds func() bool) {
	for end := time.Now().Add(patience); !holds(); time.Sleep(50 * time.Millisecond) {
		if time.Now().After(end) {
			ts.Fatalf("no %s within %v", what, patience)
		}
	}
}
