package client

import (
	"net/http"
	"testing"
	"time"
)

var origin = time.Date(2026, 11, 22, 9, 0, 0, 0, time.UTC)

func TestBackoffPauses(t *testing.T) {
	var b backoff
	at := origin
	for i, want := range []time.Duration{50, 100, 200, 400, 800, 1600, 3200, 6400, 10000, 10000, 10000, 10000} {
		b.failed(at, at, 1)
		if got := b.until.Sub(at); got != want*time.Millisecond {
			t.Errorf("failure %d: got a pause of %v, want %v", i+1, got, want*time.Millisecond)
		}
		if b.ready(b.until.Add(-1)) || !b.ready(b.until) {
			t.Errorf("failure %d: want ready exactly after the pause", i+1)
		}
		at = b.until
	}
	for range 1000 {
		b.failed(at, at, 1)
	}
	if got := b.until.Sub(at); got != backoffs.Max {
		t.Errorf("after many failures: got a pause of %v, want %v", got, backoffs.Max)
	}
}

func TestBackoffCountsOnceWhatRanTogether(t *testing.T) {
	var b backoff
	for i := range 10 {
		b.failed(origin, origin.Add(time.Duration(i+1)), 0)
	}
	if b.failures != 1 {
		t.Errorf("got %d failures, want 1", b.failures)
	}
	b.failed(b.last, b.last.Add(1), 0)
	if b.failures != 2 {
		t.Errorf("got %d failures, want 2", b.failures)
	}
}

func TestBudget(t *testing.T) {
	b := newBudget(0.1, 5)
	spent := 0
	for range 1000 {
		b.refill()
		for b.spend() {
			spent++
		}
	}
	if spent < 100 || spent > 105 {
		t.Errorf("spent %d for 1000 requests, want 100 to 105", spent)
	}
}

func TestLateAfter(t *testing.T) {
	var l latencies
	if got := l.lateAfter(); got != defaultLateAfter {
		t.Errorf("at first: got %v, want %v", got, defaultLateAfter)
	}
	for range hedgeWindow {
		l.addSample(time.Millisecond)
	}
	if got := l.lateAfter(); got != minLateAfter {
		t.Errorf("fast responses: got %v, want %v", got, minLateAfter)
	}
	for i := range hedgeWindow {
		l.addSample(time.Duration(i) * time.Millisecond)
	}
	p99 := time.Duration(hedgeWindow*99/100) * time.Millisecond
	if got, want := l.lateAfter(), p99+p99/4; got != want {
		t.Errorf("got %v, want %v", got, want)
	}
}

// TestLateDoesNotFeedItself: cancelled responses move the quantile neither up nor down.
func TestLateDoesNotFeedItself(t *testing.T) {
	var l latencies
	for i := range hedgeWindow {
		l.addSample(time.Duration(i%100) * time.Millisecond)
	}
	want := l.lateAfter()
	for i := range 20 * hedgeWindow {
		if d := time.Duration(i%100) * time.Millisecond; d > want || i%3 == 0 {
			l.addLate()
		} else {
			l.addSample(d)
		}
	}
	if got := l.lateAfter(); got != want {
		t.Errorf("got %v, want %v as before", got, want)
	}
}

// someReplicas returns n replicas without connections.
func someReplicas(n int) (*pool, []*replica) {
	p := newPool([32]byte{1}, time.Now, func(*replica) *http.Transport { return &http.Transport{} })
	var addresses []string
	for i := range n {
		addresses = append(addresses, string(rune('a'+i)))
	}
	p.setAddresses(addresses)
	return p, p.allReplicas()
}

func TestPick(t *testing.T) {
	paused := func(r *replica, ago time.Duration) {
		r.backoff = backoff{failures: 1, last: origin.Add(-ago), until: origin.Add(time.Second)}
	}
	tests := []struct {
		name  string
		set   func(r []*replica)
		tried []int
		want  []int // any of these; empty for none
		rank  int
	}{
		{"any", func([]*replica) {}, nil, []int{0, 1, 2}, rankUntried},
		{"not tried", func([]*replica) {}, []int{0, 1}, []int{2}, rankUntried},
		{"not paused", func(r []*replica) { paused(r[0], 0); paused(r[1], 0) }, nil, []int{2}, rankUntried},
		{"not late", func(r []*replica) { r[0].late, r[2].late = 1, 1 }, nil, []int{1}, rankUntried},
		{"late before tried", func(r []*replica) { r[2].late = 1 }, []int{0, 1}, []int{2}, rankLate},
		{"tried before paused", func(r []*replica) { paused(r[1], 0); paused(r[2], 0) }, []int{0}, []int{0}, rankTried},
		{"less busy", func(r []*replica) { r[0].busy, r[1].busy, r[2].busy = 9, 9, 0 }, []int{1}, []int{2}, rankUntried},
		{"all paused, the oldest failure", func(r []*replica) { paused(r[0], 1); paused(r[1], 3); paused(r[2], 2) }, nil, []int{1}, rankPaused},
		{"all tried and late", func(r []*replica) { r[0].late, r[1].late, r[2].late = 1, 1, 1 }, []int{0, 1, 2}, nil, rankNone},
		{"pause over", func(r []*replica) {
			for _, r := range r {
				paused(r, 0)
			}
			r[1].backoff.until = origin
		}, nil, []int{1}, rankUntried},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			for range 20 {
				p, all := someReplicas(3)
				tt.set(all)
				var tried []*replica
				for _, i := range tt.tried {
					tried = append(tried, all[i])
				}
				got, rank := p.choose(origin, tried)
				ok := got == nil && tt.want == nil
				for _, i := range tt.want {
					ok = ok || got == all[i]
				}
				if !ok || rank != tt.rank {
					t.Fatalf("got %+v with rank %d, want one of %v with rank %d", got, rank, tt.want, tt.rank)
				}
			}
		})
	}
}

// TestProbe: when a pause ends, one call tries the replica, and the others avoid it for
// another pause.
func TestProbe(t *testing.T) {
	p, all := someReplicas(2)
	all[0].backoff = backoff{failures: 3, last: origin, until: origin}
	all[1].busy = 1
	if got, _ := p.choose(origin, nil); got != all[0] {
		t.Fatalf("got %v, want the replica whose pause is over", got.address)
	}
	if got, _ := p.choose(origin, nil); got != all[1] {
		t.Errorf("got %v, want the other while the first is tried", got.address)
	}
}

func TestSetKeepsWhatIsKnown(t *testing.T) {
	p, all := someReplicas(2)
	all[1].busy = 7
	p.setAddresses([]string{"b", "c"})
	if got := p.allReplicas(); len(got) != 2 || got[0] != all[1] || got[1].address != "c" {
		t.Errorf("got %+v, want b as it was and a new c", got)
	}
}
