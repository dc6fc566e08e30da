package client

import (
	"context"
	"sync/atomic"
	"time"
)

// fresh is trust that is fetched anew when it is due, or when a peer is refused
// that newer trust may accept. It is safe for concurrent use.
type fresh struct {
	atomic.Pointer[Trust]               // the newest
	least                 time.Duration // between two fetches
	patient               bool          // a fetch that comes too soon is waited for
	turn                  chan struct{} // holds a value during a fetch; guards asked
	asked                 time.Time     // when trust was last asked for
}

func (f *fresh) begin(t *Trust, least time.Duration) {
	f.Store(t)
	f.least, f.turn, f.asked = least, make(chan struct{}, 1), t.at
}

// after gives trust newer than old: what another goroutine fetched meanwhile, or
// what the authority gives. It gives the newest there is when the authority was
// asked a moment ago, unless f is patient, and beside the error when it does not
// answer or refuses; certificates end soon enough that the cluster need not stop
// for that.
func (f *fresh) after(ctx context.Context, old *Trust) (*Trust, error) {
	select {
	case f.turn <- struct{}{}:
		defer func() { <-f.turn }()
	case <-ctx.Done():
		return f.Load(), nil
	}
	held := f.Load()
	early := f.least - held.config.Clock().Sub(f.asked)
	if held != old || early > 0 && !f.patient {
		return held, nil
	}
	select {
	case <-time.After(early): // now, when it is not early
	case <-ctx.Done():
		return held, nil
	}
	f.asked = held.config.Clock()
	newer, err := held.again(ctx)
	if err != nil {
		return held, err
	}
	f.Store(newer)
	return newer, nil
}
