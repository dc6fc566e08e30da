package soft

import (
	"fmt"
	"os"
	"reflect"
	"strconv"
	"testing"
)

func TestTracedChildIsDebug(t *testing.T) {
	for name, thread := range map[string]func(*testing.T, int) int{"main thread": mainThread, "other thread": otherThread} {
		t.Run(name, func(t *testing.T) {
			e := startDaemon(t, t.TempDir())
			p := e.mustLaunch(t, LaunchRequest{Program: self(t), Stdin: blocking(t), Settings: map[string]string{roleSetting: "line"}})
			expectLine(t, p.out, "ready")
			_, tracer := start(t, "tracer", inputSetting+"="+strconv.Itoa(thread(t, p.PID)))
			answer, err := tracer.ReadString('\n')
			if answer == "forbidden\n" {
				t.Skip("NOT TESTED: this system forbids ptrace, so debug evidence of traced children was not seen")
			}
			if answer != "ready\n" {
				t.Fatalf("tracer: got %q, %v", answer, err)
			}
			if claims := e.claims(t, finish(t, p)); !claims.Debug {
				t.Error("evidence of a traced child does not say debug")
			}
		})
	}
}

func mainThread(_ *testing.T, pid int) int { return pid }

func otherThread(t *testing.T, pid int) int {
	t.Helper()
	threads, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid))
	if err != nil {
		t.Fatal(err)
	}
	for _, thread := range threads {
		if tid, err := strconv.Atoi(thread.Name()); err == nil && tid != pid {
			return tid
		}
	}
	t.Fatal("the child has one thread only")
	return 0
}

func TestChildThatMayDumpItsMemoryIsDebug(t *testing.T) {
	e := startDaemon(t, t.TempDir())
	if claims := e.claims(t, e.play(t, "core", LaunchRequest{})); !claims.Debug {
		t.Error("evidence of a child with core files does not say debug")
	}
}

func TestChildThatExecutedAnotherProgramIsDebug(t *testing.T) {
	e := startDaemon(t, t.TempDir())
	other := variant(t)
	h := e.play(t, "replace", LaunchRequest{Settings: map[string]string{inputSetting: other.Name()}})
	claims := e.claims(t, h)
	if want, _ := measure(t, self(t), nil); !reflect.DeepEqual(claims.Measurement, want) {
		t.Errorf("got %v, want the launched program's %v", claims.Measurement, want)
	}
	if !claims.Debug {
		t.Error("evidence of a child that is another program now does not say debug")
	}
}
