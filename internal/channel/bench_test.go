package channel

import (
	"fmt"
	"runtime"
	"syscall"
	"testing"

	"github.com/cohort-tee/cohort/internal/envelope"
	"github.com/cohort-tee/cohort/internal/testworld"
	"github.com/cohort-tee/cohort/internal/wire"
)

// cpu returns the process's CPU time in nanoseconds.
func cpu() int64 {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		panic(err)
	}
	return u.Utime.Nano() + u.Stime.Nano()
}

// measured calls f once per iteration, and reports its CPU time.
func measured(b *testing.B, f func()) {
	b.ReportAllocs()
	before := cpu()
	for b.Loop() {
		f()
	}
	b.ReportMetric(float64(cpu()-before)/float64(b.N), "cpu-ns/op")
}

// BenchmarkJoin measures the import of a sealed session, next to the bare AEAD open of the same
// bytes (G10).
func BenchmarkJoin(b *testing.B) {
	w := newWorld(b)
	a := w.host(Limits{})
	_, sealed := w.opened(a, w.byTask())
	u := testworld.Must(envelope.ParseSealed(envelope.Session, sealed))
	k := testworld.Must(a.credentials.follow.deriveSealKey(a.id))
	b.Run("aead", func(b *testing.B) {
		dst := make([]byte, 0, envelope.MaxSealed)
		measured(b, func() { testworld.Must(k.aead.Open(dst, u.Nonce, u.Ciphertext, u.AD)) })
	})
	const batch = 1 << 14
	list := make([][]byte, batch)
	for i := range list {
		list[i] = sealAs(w, a, func(s *session, b *envelope.Header, _ *ring) {
			s.id[23], s.id[22] = byte(i), byte(i>>8)
			b.Session = s.id
		})
	}
	b.Run("join", func(b *testing.B) {
		h, i := w.host(Limits{Sessions: batch}), 0
		measured(b, func() {
			if i++; i%batch == 0 {
				b.StopTimer()
				h = w.host(Limits{Sessions: batch})
				b.StartTimer()
			}
			testworld.Must(h.ImportSession(list[i%batch], noon))
		})
	})
}

// BenchmarkSessionMemory measures the memory of one session in the table, for three table sizes.
func BenchmarkSessionMemory(b *testing.B) {
	for _, n := range []int{1_000, 10_000, 100_000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			for b.Loop() {
				w := newWorld(b)
				h := w.host(Limits{Sessions: n})
				var before, after runtime.MemStats
				runtime.GC()
				runtime.ReadMemStats(&before)
				for i := range n {
					s := &session{id: wire.SessionID{byte(i), byte(i >> 8), byte(i >> 16)}, expiry: 1 << 40, ring: h.credentials.follow.key.ID()}
					if err := h.install(s, noon); err != nil {
						b.Fatal(err)
					}
				}
				runtime.GC()
				runtime.ReadMemStats(&after)
				b.ReportMetric(float64(after.HeapAlloc-before.HeapAlloc)/float64(n), "B/session")
				runtime.KeepAlive(h)
			}
		})
	}
}
