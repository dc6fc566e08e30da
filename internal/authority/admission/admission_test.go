package admission

import (
	"encoding/binary"
	"fmt"
	"testing"
	"time"

	"github.com/cohort-tee/cohort/internal/testworld"
	"github.com/cohort-tee/cohort/internal/wire"
)

// TestEvenParts: fifty addresses flood the limiter with more than the total. A client with few
// requests gets all of them served, and the flood gets no more than twice the total.
func TestEvenParts(t *testing.T) {
	l := NewLimiter(Limits{}.OrDefault())
	at := time.Unix(1e9, 0)
	for second := range 5 {
		flood, honest := 0, 0
		for n := range 100 {
			now := at.Add(time.Duration(second)*time.Second + time.Duration(n)*10*time.Millisecond)
			for a := range 50 {
				if l.Allow(fmt.Sprintf("198.51.100.%d:1", a), now) == nil {
					flood++
				}
			}
			if n%10 == 9 && l.Allow("192.0.2.1:1", now) == nil {
				honest++
			}
		}
		if honest != 10 {
			t.Errorf("second %d: %d of 10 honest requests were allowed beside %d", second, honest, flood)
		}
		if most := 4 * l.most; flood > most || second > 2 && flood > 2*l.most {
			t.Errorf("second %d: %d requests of the flood were allowed", second, flood)
		}
	}
}

var noon = time.Date(2026, 11, 1, 12, 0, 0, 0, time.UTC)

// TestSpent: a used nonce is remembered until it expires, for every expiry that a nonce can
// contain, and no more nonces are stored than there is room for.
func TestSpent(t *testing.T) {
	nonce := func(end uint64, n byte) (b [NonceBody]byte) {
		binary.BigEndian.PutUint64(b[:], end)
		b[8] = n
		return b
	}
	for _, end := range []uint64{0, 1, 1 << 31, 1<<32 - 1, 1<<63 - 1, 1 << 63, 1<<64 - 2, 1<<64 - 1} {
		s := NewNonces(1)
		at := time.Unix(int64(end), 0)
		if err := s.Add(nonce(end, 1), at); err != nil {
			t.Errorf("%d: %v", end, err)
		}
		testworld.Refused(t, s.Add(nonce(end, 1), at), wire.NonceUsed)
	}
	s := NewNonces(1)
	for i := range s.most {
		if err := s.Add(nonce(uint64(noon.Unix()), byte(i)), noon); err != nil {
			t.Fatalf("nonce %d of %d: %v", i, s.most, err)
		}
	}
	testworld.Refused(t, s.Add(nonce(uint64(noon.Unix())+9, 1), noon), wire.TooMany)
	if err := s.Add(nonce(uint64(noon.Unix())+9, 1), noon.Add(time.Second)); err != nil || s.size != 1 || len(s.all) != 1 {
		t.Errorf("once they ended: %v, %d noted", err, s.size)
	}
}
