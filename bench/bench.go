// Package bench measures what the project does beside what no program can do
// cheaper: the bare primitive, the bare transport, or the other way of doing
// the same. Times differ from machine to machine and from minute to minute;
// ratios of one run do not, so a ratio is what it reports.
//
// [Compare] runs its contenders in turn, round after round, so that all of them
// meet the same noise, and reports the median of the rounds' ratios with half the
// distance of their quartiles, in percent. The benchmarks themselves are in this package's tests and in those
// of the packages whose inside they need. docs/performance.md has the figures.
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

// Contender is one of several ways to do the same.
type Contender struct {
	// Name is part of the metrics' names and has no spaces.
	Name string
	// Cost does it some times, as often as is needed to measure it, and returns
	// what once has cost.
	Cost func() time.Duration
}

// Compare measures contenders against the first of them. One operation of b is
// one round. For each contender it reports the median of its cost, and for all
// but the first the median of its ratio to the first and half the distance of
// the ratio's quartiles in percent.
func Compare(b *testing.B, contenders ...Contender) {
	b.Helper()
	for _, c := range contenders {
		c.Cost() // connections, caches and the scheduler warm up
	}
	costs := make([][]float64, len(contenders))
	for round := 0; b.Loop(); round++ {
		for i := range contenders {
			i = (i + round) % len(contenders) // none is always behind the same one
			costs[i] = append(costs[i], float64(contenders[i].Cost()))
		}
	}
	b.ReportMetric(0, "ns/op") // of a round, which means nothing
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

// ratios are those of each round.
func ratios(costs, to []float64) []float64 {
	out := make([]float64, len(costs))
	for i := range costs {
		out[i] = costs[i] / to[i]
	}
	return out
}

// Quartiles are the lower quartile, the median and the upper quartile, each of
// them one of the values; at least one is required.
func Quartiles(values []float64) (low, median, high float64) {
	v := slices.Sorted(slices.Values(values))
	last := len(v) - 1
	return v[last/4], v[last/2], v[last-last/4]
}

// CPU is the CPU time of this process, user and system.
func CPU() time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		panic(err) // it has no reason to fail for the process itself
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// Repeat is a cost: the CPU time that this process needs for one of n calls.
func Repeat(n int, f func()) func() time.Duration {
	return func() time.Duration {
		before := CPU()
		for range n {
			f()
		}
		return (CPU() - before) / time.Duration(n)
	}
}

// Allocates reports what one call of f allocates, in pieces and bytes, under a
// name.
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
