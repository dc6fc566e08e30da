// Package bench measures operations of the project against a floor: the bare primitive, the
// bare transport, or another way of doing the same. Times differ between machines and from
// minute to minute; ratios within one run do not, so the package reports ratios.
//
// [Compare] runs its contenders in turn, round after round, so that all of them meet the
// same noise. It reports the median of the rounds' ratios, and half the distance between
// their quartiles in percent. The benchmarks are in this package's tests, and in the tests
// of packages whose internals they need. docs/performance.md has the figures.
//
// It is for tests only: no package of the product imports it.
package bench

import (
	"runtime"
	"slices"
	"syscall"
	"testing"
	"time"
)

// Contender is one of several ways to do the same operation.
type Contender struct {
	// Name is part of the metrics' names and contains no spaces.
	Name string
	// Cost runs the operation as often as is needed to measure it, and returns the cost of
	// one run.
	Cost func() time.Duration
}

// Compare measures contenders against the first of them. One operation of b is one round.
// For each contender Compare reports the median of its cost. For all but the first it also
// reports the median of its ratio to the first, and half the distance between the ratio's
// quartiles in percent.
func Compare(b *testing.B, contenders ...Contender) {
	b.Helper()
	for _, c := range contenders {
		c.Cost() // warm up connections, caches and the scheduler
	}
	costs := make([][]float64, len(contenders))
	for round := 0; b.Loop(); round++ {
		for i := range contenders {
			i = (i + round) % len(contenders) // no contender always runs after the same one
			costs[i] = append(costs[i], float64(contenders[i].Cost()))
		}
	}
	b.ReportMetric(0, "ns/op") // a round's time is meaningless
	for i, c := range contenders {
		_, median, _ := Quartiles(costs[i])
		b.ReportMetric(median/float64(time.Microsecond), c.Name+"-µs")
		if i == 0 {
			continue
		}
		low, median, high := Quartiles(ratios(costs[i], costs[0]))
		b.ReportMetric(median, c.Name+"/"+contenders[0].Name)
		b.ReportMetric(100*(high-low)/2/median, c.Name+"-±%")
	}
}

// ratios returns the ratio of each round.
func ratios(costs, to []float64) []float64 {
	out := make([]float64, len(costs))
	for i := range costs {
		out[i] = costs[i] / to[i]
	}
	return out
}

// Quartiles returns the lower quartile, the median and the upper quartile, each of which is
// one of the values. It requires at least one value.
func Quartiles(values []float64) (low, median, high float64) {
	v := slices.Sorted(slices.Values(values))
	last := len(v) - 1
	return v[last/4], v[last/2], v[last-last/4]
}

// CPU returns the user and system CPU time of this process.
func CPU() time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		panic(err) // cannot fail for the process itself
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// Repeat returns a cost: the CPU time of this process for one of n calls.
func Repeat(n int, f func()) func() time.Duration {
	return func() time.Duration {
		before := CPU()
		for range n {
			f()
		}
		return (CPU() - before) / time.Duration(n)
	}
}

// Allocates reports the number and bytes of the allocations of one call of f, under a name.
func Allocates(b *testing.B, name string, f func()) {
	b.Helper()
	const n = 100
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	for range n {
		f()
	}
	runtime.ReadMemStats(&after)
	b.ReportMetric(float64(after.Mallocs-before.Mallocs)/n, name+"-allocations")
	b.ReportMetric(float64(after.TotalAlloc-before.TotalAlloc)/n, name+"-bytes")
}
