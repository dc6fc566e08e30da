package limit

import (
	"fmt"
	"testing"
	"time"
)

// TestSources counts addresses, and IPv6 networks, apart.
func TestSources(t *testing.T) {
	b := NewBuckets(1)
	rows := []struct {
		x, y string
		same bool
	}{
		{"192.0.2.1:1", "192.0.2.1:2", true},
		{"192.0.2.1:1", "192.0.2.2:1", false},
		{"[2001:db8::1]:1", "[2001:db8::2]:1", true},
		{"[2001:db8::1]:1", "[2001:db8:0:1::1]:1", false},
		{"[::ffff:192.0.2.1]:1", "192.0.2.1:1", true},
	}
	for _, row := range rows {
		if got := b.bucketOf(row.x) == b.bucketOf(row.y); got != row.same {
			t.Errorf("%s and %s: got same %v, want %v", row.x, row.y, got, row.same)
		}
	}
	for i := range 2 * maxAddresses {
		b.bucketOf(fmt.Sprintf("10.0.%d.%d:1", i/256, i%256))
	}
	if len(b.sources) > maxAddresses {
		t.Errorf("got %d addresses kept, want at most %d", len(b.sources), maxAddresses)
	}
}

// TestBuckets: twice as much as a second gives may come at once, then so much a
// second.
func TestBuckets(t *testing.T) {
	b, now := NewBuckets(5), time.Unix(1e9, 0)
	taken := func() (n int) {
		for b.TakeToken("192.0.2.1:1", now) {
			n++
		}
		return n
	}
	if got := taken(); got != 10 {
		t.Errorf("at once: got %d, want 10", got)
	}
	now = now.Add(time.Second)
	if got := taken(); got != 5 {
		t.Errorf("a second later: got %d, want 5", got)
	}
	if !b.TakeToken("192.0.2.2:1", now) {
		t.Error("another address finds nothing")
	}
}
