package client_test

import (
	"sync"
	"testing"

	"github.com/cohort-tee/cohort/bench"
	"github.com/cohort-tee/cohort/client"
	"github.com/cohort-tee/cohort/internal/testworld"
)

// BenchmarkRoundTrip measures requests over open connections, one at a time and 16 at a
// time.
func BenchmarkRoundTrip(b *testing.B) {
	w := newWorld(b, "1")
	c := w.client(w.replicas(3, "1")...)
	get(b, c, "ok")
	b.Run("one", func(b *testing.B) {
		b.ReportAllocs()
		defer cpu(b)()
		for b.Loop() {
			get(b, c, "ok")
		}
	})
	b.Run("16", func(b *testing.B) {
		b.ReportAllocs()
		b.SetParallelism(8)
		defer cpu(b)()
		b.RunParallel(func(pb *testing.PB) {
			for pb.Next() {
				get(b, c, "ok")
			}
		})
	})
}

// cpu reports the CPU time of both ends for one operation.
func cpu(b *testing.B) func() {
	before := bench.CPU()
	return func() { b.ReportMetric(float64((bench.CPU()-before).Microseconds())/float64(b.N), "cpu-µs/op") }
}

// BenchmarkBurst measures 64 concurrent requests of a client without connections.
func BenchmarkBurst(b *testing.B) {
	w := newWorld(b, "1")
	trust := w.fetch(nil)
	var addresses []string
	for _, r := range w.replicas(3, "1") {
		addresses = append(addresses, r.address)
	}
	dials := int64(0)
	defer cpu(b)()
	for b.Loop() {
		c := testworld.Must(client.New(client.Config{Trust: trust, Addresses: addresses}))
		var all sync.WaitGroup
		for range 64 {
			all.Go(func() { get(b, c, "ok") })
		}
		all.Wait()
		dials += c.Stats().Dials
		c.Close()
	}
	b.ReportMetric(float64(dials)/float64(b.N), "dials/op")
}
