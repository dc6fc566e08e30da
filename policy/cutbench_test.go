package policy

import (
	"fmt"
	"runtime"
	"strings"
	"testing"

	"github.com/cohort-tee/cohort/internal/wire"
)

// BenchmarkReplay replays the longest possible history. Each step replaces a release, and so cuts
// off a new identity.
func BenchmarkReplay(b *testing.B) {
	h := newHouse()
	text := func(sequence int, previous string) []byte {
		return h.Text(b, "sequence     = 1\n", fmt.Sprintf("sequence     = %d\n", sequence), `previous     = ""`, fmt.Sprintf("previous     = %q", previous),
			"sha256:"+strings.Repeat("5", 64), fmt.Sprintf("sha256:%064x", sequence))
	}
	steps := []Step{h.step(b, text(1, ""), "ana", "ben")}
	for len(steps) < wire.MaxHistory {
		raw := text(len(steps)+1, wire.Sum(steps[len(steps)-1].Policy).String())
		steps = append(steps, h.step(b, raw, "ana", "ben"))
	}
	pin := wire.Sum(steps[0].Policy)
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	var kept Approved
	for b.Loop() {
		var err error
		if kept, err = Replay(pin, steps); err != nil {
			b.Fatal(err)
		}
	}
	runtime.GC()
	runtime.ReadMemStats(&after)
	b.ReportMetric(float64(after.HeapAlloc-before.HeapAlloc)/float64(len(kept.Steps())), "kept-B/step")
}
