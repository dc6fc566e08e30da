// Package bubble runs tests on a made-up clock.
package bubble

import (
	"runtime"
	"testing"
	"testing/synctest"
)

// Test is [synctest.Test] on one processor. With more, the race detector crashes
// now and then: while the bubble runs the timers that are due, a goroutine that
// one of them started may run another, and both take the detector's one context
// for the bubble (golang/go#78156).
func Test(t *testing.T, f func(t *testing.T)) {
	t.Helper()
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
	synctest.Test(t, f)
}
