package authority

import (
	"context"
	"time"
)

// tick is how often the authority looks for proposals whose delay has ended, and for steps that
// another authority of this store adopted.
const tick = time.Second

// runPeriodically does the authority's periodic work until ctx ends.
func (a *Authority) runPeriodically(ctx context.Context) {
	every := time.NewTicker(tick)
	defer every.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-every.C:
			a.keepRings(ctx)
			if err := a.history.Sync(ctx); err != nil && ctx.Err() == nil {
				a.log.Warn("keeping up with the store", "error", err)
			}
		}
	}
}
