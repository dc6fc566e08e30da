package relay

import (
	"encoding/binary"
	"fmt"
	"runtime"
	"testing"
	"time"

	"github.com/cohort-tee/cohort/internal/bus"
	"github.com/cohort-tee/cohort/internal/wire"
)

// sealedSize is about that of a sealed session, in bytes.
const sealedSize = 480

// BenchmarkCopiesMemory is the memory of one session that the manager knows,
// beside the sealed bytes themselves, up to a million of them: the slope between
// two sizes says what the next one costs.
func BenchmarkCopiesMemory(b *testing.B) {
	for _, n := range []int{10_000, 100_000, 1_000_000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			for b.Loop() {
				b.ReportMetric(float64(copiesHeap(n))/float64(n), "B/session")
			}
		})
	}
}

// copiesHeap is what n kept sessions take.
func copiesHeap(n int) uint64 {
	now := time.Now()
	var before, after runtime.MemStats
	runtime.GC()
	runtime.GC() // what tests before left to finalizers
	runtime.ReadMemStats(&before)
	c := NewCopies(1 << 40)
	sealed := make([]byte, sealedSize)
	for i := range n {
		item := bus.Item{Kind: bus.Sealed, Expiry: uint64(now.Add(time.Hour).Unix()) + uint64(i%600), Bytes: sealed}
		binary.BigEndian.PutUint64(item.Session[:], uint64(i))
		c.Store(bus.Cluster{1}, item, now)
	}
	runtime.GC()
	runtime.ReadMemStats(&after)
	runtime.KeepAlive(c)
	return after.HeapAlloc - before.HeapAlloc
}

// TestCopiesMemory bounds it at a size that costs nothing: a session is kept once,
// and what stands around it is less than half of it.
func TestCopiesMemory(t *testing.T) {
	const n = 20_000
	each := copiesHeap(n) / n
	if each < sealedSize || each > sealedSize*3/2+wire.HeaderSize {
		t.Errorf("got %d bytes for a session of %d", each, sealedSize)
	}
}
