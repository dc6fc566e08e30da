package systest

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/cohort-tee/cohort/internal/testworld"
)

// TestHostMovesClock: the host of a unit in its own process sets its clock. While the clock
// is off by an hour or more, the unit serves nothing; once it is right again, the unit
// continues. If the clock stays a day ahead, the unit ends. No request is executed twice.
func TestHostMovesClock(t *testing.T) {
	waits(t)
	a := newApart(t, time.Hour)
	a.hostClock = true
	u := a.start(buildUnit(t, ""))
	clock := filepath.Join(u.dir, "clock")
	set := func(off string) {
		t.Helper()
		if err := os.WriteFile(clock+".new", []byte(off), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(clock+".new", clock); err != nil {
			t.Fatal(err)
		}
	}
	ch := a.open()
	calls := func(mark string, patience time.Duration) error {
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		defer cancel()
		r := testworld.Must(http.NewRequestWithContext(ctx, http.MethodPost, "https://"+ServerName("scoring")+"/count", nil))
		r.Header.Set("Mark", mark)
		answer, err := ch.RoundTrip(r)
		if err != nil {
			return err
		}
		defer answer.Body.Close()
		b, err := io.ReadAll(answer.Body)
		if want := u.Unit.String() + " " + mark; err == nil && string(b) != want {
			err = fmt.Errorf("got %q, want %q", b, want)
		}
		return err
	}
	if err := calls("before", 5*time.Second); err != nil {
		t.Fatal(err)
	}
	for i, off := range []string{"1h", "-1h", "-87600h", "25h"} {
		set(off)
		if err := calls(fmt.Sprint("while ", i), time.Second); err == nil {
			t.Errorf("clock off by %s: the unit serves", off)
		}
		set("0s")
		if err := calls(fmt.Sprint("after ", i), 5*time.Second); err != nil {
			t.Errorf("clock right again after %s: %v", off, err)
		}
	}
	set("90s")
	if err := calls("a little off", 5*time.Second); err != nil {
		t.Errorf("clock off by 90s: %v", err)
	}
	executed := testworld.Must(os.ReadFile(filepath.Join(u.dir, "executed")))
	for mark := range bytes.Lines(executed) {
		if bytes.HasPrefix(mark, []byte("while")) || bytes.Count(executed, mark) != 1 {
			t.Errorf("executed %q", mark)
		}
	}
	set("25h")
	testworld.Within(t, 30*time.Second, "the unit ends whose clock was set a day off for good",
		func() bool { return syscall.Kill(u.pid, 0) != nil || zombie(u.pid) })
	log := testworld.Must(os.ReadFile(filepath.Join(u.dir, "log")))
	if !bytes.Contains(log, []byte("clock: unit: wall clock against the time since the start")) {
		t.Errorf("the unit does not say why it ended:\n%s", log[max(0, len(log)-512):])
	}
	u.end(syscall.SIGKILL)
}

// zombie reports whether a process has ended without its parent having waited for it.
func zombie(pid int) bool {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	i := bytes.LastIndexByte(b, ')')
	return err != nil || i > 0 && len(b) > i+2 && b[i+2] == 'Z'
}
