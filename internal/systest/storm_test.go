package systest

import (
	"errors"
	"fmt"
	"net/http"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/cohort-tee/cohort/client"
)

// storm is a load on many channels: in turn GET, POST with an Idempotency-Key, and POST
// without one, each with a unique mark.
type storm struct {
	executed func() map[string]int // by mark, as counted by the service
	channels []*client.Channel
	rate     int // requests per second
	length   time.Duration
}

// tally is the result of a storm.
type tally struct {
	mu      sync.Mutex // guards the fields below
	sent    int
	failed  []error // requests that may be retried, and other requests with a disallowed error
	unknown int     // POST requests without a key whose outcome is unknown
	done    []string
	bare    []string
	latency []time.Duration // of requests that may be retried, from their due time
}

func (s *storm) run(t *testing.T) *tally {
	var (
		out tally
		all sync.WaitGroup
	)
	begin := time.Now()
	for n := range s.rate * int(s.length.Seconds()) {
		due := begin.Add(time.Duration(n) * time.Second / time.Duration(s.rate))
		time.Sleep(time.Until(due))
		all.Go(func() {
			mark, key, method := fmt.Sprintf("%s-%d-%d", t.Name(), begin.UnixNano(), n), "", http.MethodPost
			switch n % 3 {
			case 0:
				method = http.MethodGet
			case 1:
				key = mark
			}
			_, err := call(t.Context(), s.channels[n%len(s.channels)], method, mark, key)
			out.count(mark, n%3 == 2, err, time.Since(due))
		})
	}
	all.Wait()
	slices.Sort(out.latency)
	return &out
}

func (y *tally) count(mark string, bare bool, err error, took time.Duration) {
	y.mu.Lock()
	defer y.mu.Unlock()
	y.sent++
	switch {
	case err == nil:
		y.done = append(y.done, mark)
	case bare && errors.Is(err, client.ErrOutcomeUnknown):
		y.unknown++
	default:
		y.failed = append(y.failed, err)
	}
	if bare {
		y.bare = append(y.bare, mark)
	} else {
		y.latency = append(y.latency, took)
	}
}

// String returns the figures in one line.
func (y *tally) String() string {
	o := Outcome{Latency: y.latency}
	return fmt.Sprintf("%d sent, %d done, %d of unknown outcome, %d failed; what may be retried: p50 %v, p99 %v, p99.9 %v, max %v",
		y.sent, len(y.done), y.unknown, len(y.failed), o.Quantile(.5), o.Quantile(.99), o.Quantile(.999), o.Quantile(1))
}

// judge requires that every request with a response was executed, that none fails, and that
// no POST request without a key is executed twice.
func (s *storm) judge(t *testing.T, y *tally) {
	t.Helper()
	t.Log(y)
	if len(y.failed) > 0 {
		t.Errorf("%d of %d failed, want 0; the first: %v", len(y.failed), y.sent, y.failed[0])
	}
	executed := s.executed()
	for _, mark := range y.done {
		if executed[mark] == 0 {
			t.Errorf("%s was answered and never executed", mark)
		}
	}
	for _, mark := range y.bare {
		if got := executed[mark]; got > 1 {
			t.Errorf("%s was executed %d times, want at most once", mark, got)
		}
	}
}

// channels opens n channels to the scoring task.
func channels(c *Cluster, n int) []*client.Channel {
	config := c.OpenConfig("scoring")
	var list []*client.Channel
	for range n {
		list = append(list, c.OpenChannel(config))
	}
	return list
}

// handshakes returns the number of sessions that the channels have opened.
func handshakes(channels []*client.Channel) (n uint64) {
	for _, ch := range channels {
		n += ch.Opens()
	}
	return n
}

// TestUnitsComeAndGo: of three units some end and others replace them under load.
// Everything runs in one process, so that the race detector sees it.
func TestUnitsComeAndGo(t *testing.T) {
	waits(t)
	app := &service{seen: map[string]int{}}
	c, units := shared(t, 3, time.Hour, app)
	s := &storm{executed: app.executed, rate: 100, length: 4 * time.Second, channels: channels(c, 40)}
	stop := every(1500*time.Millisecond, func(n int) {
		units[n%3].Kill()
		units[n%3] = c.Start("scoring", "scoring 1", app)
	})
	out := s.run(t)
	stop()
	s.judge(t, out)
}

// every calls f with 0, 1, 2 and so on at an interval of d, until stop is called.
func every(d time.Duration, f func(int)) (stop func()) {
	end := make(chan struct{})
	var calls sync.WaitGroup
	calls.Go(func() {
		for n := 0; ; n++ {
			select {
			case <-end:
				return
			case <-time.After(d):
				f(n)
			}
		}
	})
	return func() { close(end); calls.Wait() }
}
