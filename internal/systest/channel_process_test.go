package systest

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/cohort-tee/cohort/client"
	"github.com/cohort-tee/cohort/internal/testworld"
)

// fleet is a set of units, each in its own process.
type fleet struct {
	*apart
	bin   string
	units []*unitProcess
	dirs  []string // of every unit started so far
}

// newFleet starts a cluster with n units, whose certificates have the given lifetime.
func newFleet(t *testing.T, life time.Duration, n int) *fleet {
	t.Helper()
	f := &fleet{apart: newApart(t, life), units: make([]*unitProcess, n)}
	f.bin = buildUnit(t, "")
	for i := range f.units {
		f.fill(i)
	}
	return f
}

// fill starts a unit at index i.
func (f *fleet) fill(i int) {
	f.t.Helper()
	f.units[i] = f.start(f.bin)
	f.dirs = append(f.dirs, f.units[i].dir)
}

// kill ends the unit with the given id by SIGKILL, and returns its index.
func (f *fleet) kill(id string) (i int) {
	f.t.Helper()
	i = slices.IndexFunc(f.units, func(u *unitProcess) bool { return u.Unit.String() == id })
	if i < 0 {
		f.t.Fatalf("unit %q is none of the %d", id, len(f.units))
	}
	f.units[i].end(syscall.SIGKILL)
	return i
}

// executed counts the executions of each request, from the files that the units write.
func (f *fleet) executed() map[string]int {
	f.t.Helper()
	seen := map[string]int{}
	for _, dir := range f.dirs {
		for mark := range strings.Lines(string(testworld.Must(os.ReadFile(filepath.Join(dir, "executed"))))) {
			seen[strings.TrimSuffix(mark, "\n")]++
		}
	}
	return seen
}

// channels opens n channels.
func (f *fleet) channels(n int) []*client.Channel {
	f.t.Helper()
	list := make([]*client.Channel, n)
	for i := range list {
		list[i] = f.open()
	}
	return list
}

// TestKilledProcesses: units and the manager, each in its own process, are killed with
// SIGKILL; units with and without load.
func TestKilledProcesses(t *testing.T) {
	waits(t)
	f := newFleet(t, time.Hour, 3)
	f.killUnits()
	f.outlive()
	f.killManager()
}

// outlive kills the unit that opened a session: another unit continues the session without
// a second handshake. Then it kills a unit that is streaming: the stream ends in a typed
// error within a second, and the next request succeeds.
func (f *fleet) outlive() {
	t := f.t
	t.Helper()
	ch := f.open()
	session, err := ch.Session(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	opener := session.Unit.UnitID().String()
	defer f.fill(f.kill(opener))
	id, err := call(t.Context(), ch, http.MethodGet, "after the kill", "")
	if err != nil {
		t.Fatal(err)
	}
	if id == opener {
		t.Error("the killed unit answered")
	}
	defer f.fill(f.cutStream(ch))
	if _, err := call(t.Context(), ch, http.MethodGet, "after the stream", ""); err != nil {
		t.Errorf("next request: %v", err)
	}
	if got := ch.Opens(); got != 1 {
		t.Errorf("got %d handshakes, want 1", got)
	}
}

// cutStream kills the unit that streams 2,000 tokens, and returns its index.
func (f *fleet) cutStream(ch *client.Channel) (i int) {
	f.t.Helper()
	r := testworld.Must(http.NewRequestWithContext(f.t.Context(), http.MethodGet, scoringURL+"/tokens", nil))
	answer, err := ch.RoundTrip(r)
	if err != nil {
		f.t.Fatal(err)
	}
	defer answer.Body.Close()
	if _, err := io.ReadFull(answer.Body, make([]byte, 1000)); err != nil {
		f.t.Fatal(err)
	}
	begin := time.Now()
	i = f.kill(answer.Header.Get("Unit"))
	_, err = io.Copy(io.Discard, answer.Body)
	if !errors.Is(err, client.ErrTruncated) {
		f.t.Errorf("got %v, want ErrTruncated", err)
	}
	took := time.Since(begin)
	f.t.Logf("the client noticed after %v", took)
	if took > time.Second {
		f.t.Errorf("noticed after %v, want within a second", took)
	}
	return i
}

// killUnits kills the three units in turn under load. A control run without faults precedes
// it.
func (f *fleet) killUnits() {
	t := f.t
	t.Helper()
	rate, sessions, length, pause := 100, 40, 4*time.Second, 1200*time.Millisecond
	if full() {
		rate, sessions, length, pause = 1000, 200, time.Minute, 5*time.Second
	}
	s := &storm{executed: f.executed, channels: f.channels(sessions), rate: rate, length: length}
	t.Log("control:")
	s.judge(t, s.run(t))
	kills := 0
	stop := every(pause, func(n int) {
		kills++
		f.units[n%3].end(syscall.SIGKILL)
		f.fill(n % 3)
	})
	out := s.run(t)
	stop()
	t.Logf("%d kills, %d handshakes of %d channels:", kills, handshakes(s.channels), sessions)
	s.judge(t, out)
}

// killManager kills the manager under load and restarts it, then kills it again and deletes
// its data. Open sessions continue without another handshake, and new sessions open.
func (f *fleet) killManager() {
	t := f.t
	t.Helper()
	s := &storm{executed: f.executed, channels: f.channels(20), rate: 50, length: 6 * time.Second}
	if full() {
		s.rate, s.length = 200, time.Minute
	}
	stop := every(s.length/3, func(n int) {
		if n > 1 {
			return
		}
		f.manager.end(syscall.SIGKILL)
		if n == 1 {
			for _, name := range []string{"ranges", "sessions"} {
				testworld.Must(0, os.Remove(filepath.Join(f.wish.Dir, name)))
			}
		}
		f.startManager()
		if _, err := call(t.Context(), f.open(), http.MethodPost, fmt.Sprint("new session ", n), ""); err != nil {
			t.Errorf("new session: %v", err)
		}
	})
	out := s.run(t)
	stop()
	s.judge(t, out)
	if got, want := handshakes(s.channels), uint64(len(s.channels)); got != want {
		t.Errorf("got %d handshakes of %d channels, want one each", got, want)
	}
}

// TestAuthorityKilledUnderLoad: the authority is killed with SIGKILL under load and
// restarts with new ring keys, a unit joins, and the ring keys roll twice. No request that
// may be retried fails.
func TestAuthorityKilledUnderLoad(t *testing.T) {
	waits(t)
	rate, length, life := 100, 28*time.Second, 5*time.Second // a ring key rolls every 10 s
	if full() {
		length, life = 150*time.Second, 30*time.Second
	}
	f := newFleet(t, life, 2)
	s := &storm{executed: f.executed, channels: f.channels(20), rate: rate, length: length}
	var faults sync.WaitGroup
	faults.Go(func() {
		time.Sleep(life / 2)
		f.authority.end(syscall.SIGKILL)
		time.Sleep(life / 5)
		f.startAuthority()
		f.units = append(f.units, nil)
		f.fill(len(f.units) - 1)
		// With an Idempotency-Key, since the session may be bound to a unit with the other
		// ring key.
		if _, err := call(t.Context(), f.open(), http.MethodPost, "new session", "new session"); err != nil {
			t.Errorf("new session: %v", err)
		}
	})
	out := s.run(t)
	faults.Wait()
	s.judge(t, out)
	t.Logf("%d handshakes of %d channels", handshakes(s.channels), len(s.channels))
}
