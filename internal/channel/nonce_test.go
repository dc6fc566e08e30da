package channel

import (
	"encoding/binary"
	"fmt"
	"sync"
	"testing"
	"testing/cryptotest"
	"time"

	"github.com/cohort-tee/cohort/internal/chunk"
	"github.com/cohort-tee/cohort/internal/testworld"
	"github.com/cohort-tee/cohort/internal/wire"
)

// pairs collects the (subkey, nonce) pairs that messages were encrypted under, from the sent
// bytes. It names a subkey by its derivation inputs, which determine it.
type pairs struct {
	mu    sync.Mutex
	seen  map[string]int
	count int
	twice int
}

func (p *pairs) message(subkey string, chunks []byte) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.seen == nil {
		p.seen = map[string]int{}
	}
	for n := 0; len(chunks) >= chunk.LengthSize; n++ {
		size := chunk.LengthSize + int(binary.BigEndian.Uint32(chunks)&^uint32(chunk.Final))
		pair := fmt.Sprint(subkey, " ", n)
		p.seen[pair]++
		p.count++
		if p.seen[pair] > 1 {
			p.twice++
		}
		chunks = chunks[size:]
	}
}

// TestPairsWithASeededSource shows that the check of pairs can fail: with repeated random
// numbers, two responses to one header use the same key.
func TestPairsWithASeededSource(t *testing.T) {
	w := newWorld(t)
	h := w.host(Limits{})
	s, _ := w.opened(h, w.byTask())
	x := testworld.Must(s.newRequest(wire.UnitID{}, noon.Add(time.Minute), 0))
	var p pairs
	for i := range 4 {
		if i >= 2 { // the first two use real random numbers
			if i == 2 && p.twice != 0 {
				t.Errorf("without a seed: got %d pairs twice, want 0", p.twice)
			}
			cryptotest.SetGlobalRandom(t, 1)
		}
		in := &ServerRequest{host: h, raw: x.raw, keys: newKeys(&s.secret)}
		b := testworld.Must(in.responseWithoutContent(KindNotExecuted, wire.Expired))
		p.message(fmt.Sprintf("answer %x %x", x.raw, b[:responsePrefix]), b[responsePrefix:])
	}
	if p.twice != 1 {
		t.Errorf("got %d pairs twice, want 1", p.twice)
	}
}

// TestSeededUnits: two clients and a unit get the same random numbers twice. The second session
// has the id of the first, and the unit refuses it.
func TestSeededUnits(t *testing.T) {
	w := newWorld(t)
	h := w.host(Limits{})
	for i := range 2 {
		cryptotest.SetGlobalRandom(t, 7)
		o := testworld.Must(NewClientHandshake(w.byTask(), 0))
		a := testworld.Must(h.Accept(OpenRequest{Body: o.Request(), Number: 1}, noon))
		_, _, err := a.Finish(noEvidence, noon)
		h.spent = usedKEMKeys{} // otherwise it refuses the KEM key
		if i == 0 && err != nil {
			t.Fatal(err)
		}
		if i == 1 {
			testworld.Refused(t, err, wire.Replayed)
		}
	}
}

// TestNumbersAreNeverReused: many goroutines make requests at once, and no two get the same
// number.
func TestNumbersAreNeverReused(t *testing.T) {
	w := newWorld(t)
	s, _ := w.opened(w.host(Limits{}), w.byTask())
	var mu sync.Mutex
	seen := map[uint64]bool{}
	var all sync.WaitGroup
	for range 8 {
		all.Go(func() {
			for range 500 {
				n := testworld.Must(s.newRequest(wire.UnitID{}, noon, 0)).header.Number
				mu.Lock()
				if n == 0 || seen[n] {
					t.Errorf("number %d again", n)
				}
				seen[n] = true
				mu.Unlock()
			}
		})
	}
	all.Wait()
}
