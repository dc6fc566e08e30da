package systest

import (
	"context"
	"os/exec"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/cohort-tee/cohort/client"
)

// during runs a load with a fault in the middle, and logs its figures beside those of a
// control run. No request that may be retried may fail, and few requests may be sent twice.
func (l Load) during(t *testing.T, control *Outcome, fault func()) {
	t.Helper()
	before := l.Client.Stats()
	ctx, stop := context.WithCancel(t.Context())
	ready := make(chan int)
	go func() { ready <- fewestReady(ctx, l.Client) }()
	var faulty sync.WaitGroup
	faulty.Go(func() {
		time.Sleep(500 * time.Millisecond)
		fault()
	})
	out := l.Run(t.Context())
	faulty.Wait()
	stop()
	after := l.Client.Stats()
	extra := after.Sends - before.Sends - (after.Requests - before.Requests)
	t.Logf("%v; p99 %.2f times the control's; %d extra sends (%.1f %%), %d connections asked for, at least %d of %d units in no pause",
		out, float64(out.Quantile(.99))/float64(control.Quantile(.99)), extra, 100*float64(extra)/float64(out.Sent),
		after.Dials-before.Dials, <-ready, len(after.Replicas))
	l.unharmed(t, out)
	if most := int64(out.Sent)/20 + 20; extra > most {
		t.Errorf("%d extra sends for %d requests, want at most %d", extra, out.Sent, most)
	}
}

// unharmed requires that all requests were sent and none failed.
func (l Load) unharmed(t *testing.T, out *Outcome) {
	t.Helper()
	if len(out.Failed) > 0 || out.Sent < l.Rate*int(l.For/time.Millisecond)/2000 {
		t.Errorf("%d of %d requests failed, want 0 of about %d a second; the first: %v", len(out.Failed), out.Sent, l.Rate, first(out.Failed))
	}
}

// fewestReady returns the least number of ready replicas that it sees until ctx ends.
func fewestReady(ctx context.Context, c *client.Client) int {
	fewest := 1 << 10
	for ctx.Err() == nil {
		ready := 0
		for _, r := range c.Stats().Replicas {
			if r.Failures == 0 || time.Now().After(r.Until) {
				ready++
			}
		}
		fewest = min(fewest, ready)
		time.Sleep(5 * time.Millisecond)
	}
	return fewest
}

// freeze stops units for a while, as a paused machine does: their sockets stay open, and
// the kernel still accepts connections.
func (d *Dev) freeze(t *testing.T, wait time.Duration, units ...int) {
	all := d.WaitInfo().Units
	for _, s := range []syscall.Signal{syscall.SIGSTOP, syscall.SIGCONT} {
		for _, u := range units {
			if err := syscall.Kill(all[u].Pid, s); err != nil {
				t.Errorf("sending %v to unit %d: %v", s, u+1, err)
			}
		}
		if s == syscall.SIGSTOP {
			time.Sleep(wait)
		}
	}
}

// spin keeps four processors busy for a while.
func spin(t *testing.T, wait time.Duration) {
	var loops []*exec.Cmd
	for range 4 {
		loop := exec.Command("sh", "-c", "while :; do :; done")
		if err := loop.Start(); err != nil {
			t.Error(err)
			continue
		}
		loops = append(loops, loop)
	}
	time.Sleep(wait)
	for _, loop := range loops {
		loop.Process.Kill()
		loop.Wait()
	}
}

// TestFaultsUnderLoad: under 500 requests a second one of three units is frozen, then all
// units, then the machine is kept busy. No request fails while all units are late, which
// shows that a client never stops using its last replica.
func TestFaultsUnderLoad(t *testing.T) {
	waits(t)
	length := time.Second
	if full() {
		length = 5 * time.Second
	}
	d := StartDev(t)
	load := Load{Client: d.Client(), URL: d.WaitInfo().URL(), Post: "/score", Body: applicants, Rate: 500, For: length + time.Second}
	control := load.Run(t.Context())
	t.Logf("control: %v", control)
	load.unharmed(t, control)
	t.Run("one frozen", func(t *testing.T) { load.during(t, control, func() { d.freeze(t, length, 1) }) })
	t.Run("all frozen", func(t *testing.T) { load.during(t, control, func() { d.freeze(t, length/5, 0, 1, 2) }) })
	load.For += length
	t.Run("busy machine", func(t *testing.T) { load.during(t, control, func() { spin(t, 2*length) }) })
}
