package systest

import (
	"context"
	"fmt"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cohort-tee/cohort/client"
	"github.com/cohort-tee/cohort/internal/testworld"
)

// held is the resource use of this process, which runs the whole cluster.
type held struct {
	goroutines, files int
	heap              uint64 // reachable bytes
}

func holds(t *testing.T) held {
	t.Helper()
	files, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Skipf("SKIPPED: the system does not say what a process holds: %v", err)
	}
	var m runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&m)
	return held{goroutines: runtime.NumGoroutine(), files: len(files), heap: m.HeapAlloc}
}

func (h held) String() string {
	return fmt.Sprintf("%d goroutines, %d files, %.1f MiB", h.goroutines, h.files, float64(h.heap)/(1<<20))
}

// soak is a cluster under load, with one fault after another.
type soak struct {
	*Cluster
	app    *service
	units  []*Replica
	config client.OpenConfig
	kinds  int          // number of kinds of faults
	faults atomic.Int64 // faults so far
}

// fault breaks one thing and repairs it.
func (s *soak) fault(n int) {
	defer s.faults.Add(1)
	replace := func(end func()) {
		end()
		s.units[n%len(s.units)] = s.Start("scoring", "scoring 1", s.app)
	}
	switch n % s.kinds {
	case 0:
		replace(s.units[n%len(s.units)].Kill)
	case 1:
		s.StopAuthority()
		s.StartAuthority()
	case 2:
		replace(s.units[n%len(s.units)].Stop)
	case 3:
		s.StopManager()
		s.StartManager()
	}
}

// phase runs a load on new channels with faults, and then returns the resource use with
// fresh units and without requests.
func (s *soak) phase(t *testing.T, rate int, length, pause time.Duration) held {
	t.Helper()
	load := &storm{executed: s.app.executed, rate: rate, length: length}
	for range 20 {
		load.channels = append(load.channels, s.OpenChannel(s.config))
	}
	stop := every(pause, s.fault)
	out := load.run(t)
	stop()
	load.judge(t, out)
	var all sync.WaitGroup
	for _, ch := range load.channels {
		all.Go(func() { ch.Close(context.Background()) })
	}
	all.Wait()
	s.app.mu.Lock()
	s.app.seen = map[string]int{} // clear would keep the map's memory
	s.app.mu.Unlock()
	for i, u := range s.units {
		u.Stop()
		s.units[i] = s.Start("scoring", "scoring 1", s.app)
	}
	attended(t, s.units...)
	return holds(t)
}

// topRate returns the highest rate, in steps of a quarter, at which no request fails and 99
// % of the requests that may be retried get a response within 100 ms. At higher rates the
// requests of an open-loop load only queue.
func (s *soak) topRate(t *testing.T) (top int) {
	t.Helper()
	load := &storm{executed: s.app.executed, rate: 500, length: 5 * time.Second}
	for range 20 {
		load.channels = append(load.channels, s.OpenChannel(s.config))
	}
	for ; ; load.rate += load.rate / 4 {
		out := load.run(t)
		if o := (Outcome{Latency: out.latency}); len(out.failed) > 0 || o.Quantile(.99) > 100*time.Millisecond {
			t.Logf("%d requests a second are too many: %v", load.rate, out)
			break
		}
		top = load.rate
	}
	for _, ch := range load.channels {
		ch.Close(context.Background())
	}
	return top
}

// TestSoak: units are killed and replaced and the authority is restarted, one after another
// under load. No request that may be retried fails, and the process's resource use stays
// flat. The long form runs ten minutes at three fifths of the rate that the machine
// sustains, and also restarts the manager, after which the gateway waits five seconds for
// units that are gone.
func TestSoak(t *testing.T) {
	if testing.Short() {
		t.Skip("SKIPPED: nothing stays behind is not shown; run without -short")
	}
	rate, length, pause := 60, 8*time.Second, 400*time.Millisecond
	s := &soak{app: &service{seen: map[string]int{}}, kinds: 3}
	s.Cluster, s.units = shared(t, 3, time.Hour, s.app)
	s.config = s.OpenConfig("scoring")
	if full() {
		rate, length, pause, s.kinds = s.topRate(t)*3/5, 10*time.Minute, 10*time.Second, 4
	}
	begin := s.phase(t, rate, length/4, pause)
	for range 40 { // units open their connections that wait for the next policy a little later
		time.Sleep(200 * time.Millisecond)
		now := holds(t)
		begin.goroutines, begin.files = max(begin.goroutines, now.goroutines), max(begin.files, now.files)
	}
	before := s.faults.Load()
	end := s.phase(t, rate, length, pause)
	faults := int(s.faults.Load() - before)
	few := faults / 2 // fewer than the faults, so that a leak per fault shows
	testworld.Within(t, 30*time.Second, fmt.Sprintf("what is held to be flat: %v, was %v", end, begin), func() bool {
		end = holds(t)
		return end.goroutines <= begin.goroutines+few && end.files <= begin.files+few
	})
	t.Logf("%d requests a second, %d faults: %v, then %v", rate, faults, begin, end)
	if most := begin.heap*5/4 + 16<<20; end.heap > most {
		t.Errorf("got %v in the end, want at most a quarter and 16 MiB above %v", end, begin)
	}
}
