package systest

import (
	"testing"
	"time"
)

const applicants = `{"applicants":[{"id":"a-1","features":{"income":31,"debt_ratio":0.52,"utilisation":0.9,"late_payments":3,"history":20,"inquiries":4}}]}`

// TestKillUnderLoad: a cluster of processes under 500 requests a second, and one of three
// units killed with SIGKILL every few seconds. No request that may be retried fails. The
// same test makes a control run without faults first.
func TestKillUnderLoad(t *testing.T) {
	waits(t)
	length, every := 4*time.Second, 1500*time.Millisecond
	if full() {
		length, every = time.Minute, 5*time.Second
	}
	d := StartDev(t)
	load := Load{Client: d.Client(), URL: d.WaitInfo().URL(), Post: "/score", Body: applicants, Rate: 500, Bare: 10, For: length}
	control := load.Run(t.Context())
	t.Logf("control: %v", control)
	if len(control.Failed) > 0 || len(control.BareOther) > 0 {
		t.Fatalf("the control run failed: %v, %v", first(control.Failed), first(control.BareOther))
	}

	stop := make(chan struct{})
	kills := make(chan int)
	go func() { kills <- d.killInTurn(every, stop) }()
	out := load.Run(t.Context())
	close(stop)
	t.Logf("%d kills: %v", <-kills, out)
	t.Logf("p99.9 is %.2f times the control's, the worst %v above its; stats %+v", float64(out.Quantile(.999))/float64(control.Quantile(.999)), out.Quantile(1)-control.Quantile(1), load.Client.Stats())
	if len(out.Failed) > 0 {
		t.Errorf("%d of %d requests failed, want 0; the first: %v", len(out.Failed), out.Sent, first(out.Failed))
	}
	if len(out.BareOther) > 0 {
		t.Errorf("%d requests without a key ended in another error than ErrMaybeExecuted; the first: %v", len(out.BareOther), first(out.BareOther))
	}
}

// killInTurn kills one unit after another until stop closes, and returns the number of
// kills.
func (d *Dev) killInTurn(every time.Duration, stop <-chan struct{}) int {
	tick := time.NewTicker(every)
	defer tick.Stop()
	for n := 0; ; n++ {
		select {
		case <-stop:
			return n
		case <-tick.C:
			d.KillUnit(n % 3)
		}
	}
}
