package relay

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"testing"
	"testing/synctest"

	"time"

	"github.com/cohort-tee/cohort/internal/bus"
	"github.com/cohort-tee/cohort/internal/envelope"
	"github.com/cohort-tee/cohort/internal/testworld/bubble"
	"github.com/cohort-tee/cohort/internal/wire"
)

// item is a session as one of an identity would seal it, as far as a manager reads it.
func item(n int, of ...wire.Digest) bus.Item {
	return sealed(bus.Item{Kind: bus.Sealed, Session: wire.SessionID{byte(n >> 8), byte(n)}, Expiry: uint64(time.Now().Add(time.Hour).Unix())}, fmt.Sprintf("sealed %d", n), of...)
}

// sealed is an item with a text in place of the ciphertext.
func sealed(i bus.Item, text string, of ...wire.Digest) bus.Item {
	identity := append(of, wire.Digest{})[0]
	h, kind := envelope.Header{For: identity, Session: i.Session, Expiry: i.Expiry}, sealedKind(i)
	i.Bytes = envelope.Sealed{AD: h.Encode(kind), Nonce: make([]byte, 12), Ciphertext: []byte(text)}.Encode(kind)
	return i
}

// TestBatches is about the relay's clock, so it has a made one.
func TestBatches(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		c := NewCopies(1 << 30)
		j, err := OpenJournal(t.TempDir(), c, time.Now())
		if err != nil {
			t.Fatal(err)
		}
		defer j.Close()
		r := New(c, NewSuccessors(), j, time.Now, slog.New(slog.DiscardHandler))
		take := func(i bus.Item) {
			if err := r.AcceptFromUnit(bus.Unit{Cluster: bus.Cluster{1}}, i); err != nil {
				t.Error(err)
			}
		}
		type pushed struct {
			at   time.Time
			size int
		}
		pushes := make(chan pushed, 8)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() {
			defer close(done)
			r.Run(ctx, Sinks{Units: func(_ bus.Cluster, b []byte) { pushes <- pushed{time.Now(), len(b)} }})
		}()
		begin := time.Now()
		one := item(1)
		take(one)
		if got, want := <-pushes, (pushed{begin, one.ByteSize()}); got != want {
			t.Errorf("after a rest: got %v, want %v", got, want)
		}
		for range 3 {
			take(one)
		}
		if got, want := <-pushes, (pushed{begin.Add(BatchGap), 3 * one.ByteSize()}); got != want {
			t.Errorf("a few: got %v, want %v", got, want)
		}
		begin = time.Now()
		big := sealed(item(2), strings.Repeat("x", 800))
		for range bus.MaxBatch/big.ByteSize() + 1 {
			take(big)
		}
		synctest.Wait()
		if got, want := <-pushes, (pushed{begin, bus.MaxBatch / big.ByteSize() * big.ByteSize()}); got != want {
			t.Errorf("many: got %v, want %v", got, want)
		}
		cancel()
		<-done
		if len(pushes) != 1 {
			t.Errorf("what waited at the end: got %d pushes, want 1", len(pushes))
		}
		take(one) // waits for nobody
	})
}

func TestCopies(t *testing.T) {
	now := time.Now()
	one := item(1)
	c := NewCopies(3 * one.ByteSize())
	cluster := bus.Cluster{1}
	at := func(n int, left time.Duration) bus.Item {
		i := one
		i.Session, i.Expiry = wire.SessionID{byte(n)}, uint64(now.Add(left).Unix())
		return i
	}
	for _, bad := range []bus.Item{at(0, 0), at(0, -time.Second), at(0, CopyLifetime+time.Minute)} {
		if c.Store(cluster, bad, now) {
			t.Errorf("kept one that expires at %d", bad.Expiry)
		}
	}
	for n, left := range []time.Duration{40 * time.Minute, 10 * time.Minute, 30 * time.Minute, 20 * time.Minute} {
		if !c.Store(cluster, at(n, left), now) {
			t.Errorf("item %d was not kept", n)
		}
	}
	stored := func(n int, at time.Time) bool { _, ok := c.Lookup(cluster, wire.SessionID{byte(n)}, at); return ok }
	if !stored(0, now) || stored(1, now) || !stored(2, now) || !stored(3, now) {
		t.Error("when full, the first to expire makes room, and only that")
	}
	if !c.Store(bus.Cluster{2}, at(1, time.Minute), now) || !stored(0, now) {
		t.Error("a cluster takes another's room")
	}
	later := now.Add(25 * time.Minute)
	if stored(3, later) {
		t.Error("an expired copy is given")
	}
	c.RemoveExpired(later)
	if n, size := c.Totals(); n != 2 || size != 2*one.ByteSize() {
		t.Errorf("after pruning: got %d items of %d bytes, want 2 of %d", n, size, 2*one.ByteSize())
	}
	c.RemoveExpired(now.Add(time.Hour))
	if n, size := c.Totals(); n != 0 || size != 0 || len(c.clusters) != 0 {
		t.Errorf("at the end: got %d items of %d bytes in %d clusters", n, size, len(c.clusters))
	}
}

// TestJournalDamage: whatever happens to the file, what is whole before the
// damage is read, and the manager starts.
func TestJournalDamage(t *testing.T) {
	dir := t.TempDir()
	now := time.Now()
	c := NewCopies(1 << 20)
	j, err := OpenJournal(dir, c, now)
	if err != nil {
		t.Fatal(err)
	}
	const n = 5
	for i := range n {
		c.Store(bus.Cluster{1}, item(i), now)
		j.append(bus.Cluster{1}, item(i))
	}
	j.flush(c)
	j.Close()
	whole, err := os.ReadFile(j.path)
	if err != nil {
		t.Fatal(err)
	}
	size := len(whole) / n
	for at := range whole {
		for _, damaged := range [][]byte{whole[:at], flipped(whole, at)} {
			os.WriteFile(j.path, damaged, 0o600)
			c := NewCopies(1 << 20)
			j, err := OpenJournal(dir, c, now)
			if err != nil {
				t.Fatalf("byte %d: %v", at, err)
			}
			j.Close()
			if got, _ := c.Totals(); got != at/size {
				t.Fatalf("byte %d: got %d copies, want %d", at, got, at/size)
			}
		}
	}
}

func TestJournalIsWrittenAnew(t *testing.T) {
	dir := t.TempDir()
	now := time.Now()
	c := NewCopies(1 << 30)
	j, err := OpenJournal(dir, c, now)
	if err != nil {
		t.Fatal(err)
	}
	big := item(1)
	big.Bytes = make([]byte, bus.MaxSealed)
	for range 2 * journalSlack / big.ByteSize() { // the same one, again and again
		c.Store(bus.Cluster{1}, big, now)
		j.append(bus.Cluster{1}, big)
		if err := j.flush(c); err != nil {
			t.Fatal(err)
		}
	}
	j.Close()
	info, err := os.Stat(j.path)
	if err != nil || info.Size() > journalSlack+4*int64(big.ByteSize()) {
		t.Errorf("got %d bytes, %v, want at most %d", info.Size(), err, journalSlack)
	}
	again := NewCopies(1 << 30)
	if j, err = OpenJournal(dir, again, now); err != nil {
		t.Fatal(err)
	}
	j.Close()
	if n, _ := again.Totals(); n != 1 {
		t.Errorf("got %d copies, want 1", n)
	}
}

func FuzzNextRecord(f *testing.F) {
	f.Add(appendRecord(nil, bus.Cluster{1}, bus.Item{Kind: bus.Sealed, Bytes: []byte("x")}))
	f.Fuzz(func(t *testing.T, b []byte) {
		cluster, item, rest, ok := nextRecord(b)
		if again := append(appendRecord(nil, cluster, item), rest...); ok && !bytes.Equal(again, b) {
			t.Errorf("another encoding was read: got %x, want %x", b, again)
		}
	})
}

func TestLineage(t *testing.T) {
	unit := func(n byte, task string) bus.Unit {
		return bus.Unit{Cluster: bus.Cluster{n}, Identity: wire.Digest{n}, Task: task}
	}
	role := func(n byte, role string) bus.Unit {
		return bus.Unit{Cluster: bus.Cluster{n}, Identity: wire.Digest{n}, Group: "t", Role: role}
	}
	l := NewSuccessors()
	for _, row := range []struct {
		name     string
		unit     bus.Unit
		inherits byte
		heirs    int // of the first afterwards
	}{
		{"the heir of an unknown release", unit(2, "t"), 1, 0},
		{"the first", unit(1, "t"), 0, 0},
		{"the heir", unit(2, "t"), 1, 1},
		{"the heir again", unit(2, "t"), 1, 1},
		{"another heir", unit(3, "t"), 1, 2},
		{"another task", unit(4, "u"), 1, 2},
		{"a group of the task's name", role(5, "r"), 1, 2},
		{"its own heir", unit(1, "t"), 1, 2},
		{"a role", role(6, "r"), 0, 2},
		{"another role", role(7, "s"), 6, 2},
	} {
		l.Record(row.unit, wire.Digest{row.inherits})
		if got := len(l.SuccessorsOf(bus.Cluster{1})); got != row.heirs {
			t.Errorf("%s: got %d heirs, want %d", row.name, got, row.heirs)
		}
	}
	if got := l.SuccessorsOf(bus.Cluster{6}); len(got) > 0 {
		t.Errorf("of a role: got %v, want none", got)
	}
	if got := l.HolderOf([]bus.Cluster{{9}, {1}}); got != "t" {
		t.Errorf("holder: got %q, want %q", got, "t")
	}
	for n := range 3 * MaxClusters {
		u := unit(byte(n), "t")
		u.Cluster[1], u.Identity[1] = byte(n>>8)+1, byte(n>>8)+1
		l.Record(u, wire.Digest{})
	}
	if got := len(l.clusters); got > 2*MaxClusters {
		t.Errorf("identities known: got %d, want at most %d", got, 2*MaxClusters)
	}
}

// TestBequests: a unit that comes back is pushed what it inherits again only
// after it was away for a while.
func TestBequests(t *testing.T) {
	b, now := NewForwardLog(), time.Now()
	unit, from := wire.UnitID{1}, bus.Cluster{1}
	for _, row := range []struct {
		after  time.Duration
		begins bool
	}{{0, true}, {time.Second, false}, {forwardAgainAfter, false}, {2 * forwardAgainAfter, false}, {3*forwardAgainAfter + 1, true}} {
		if got := b.ShouldForward(unit, from, now.Add(row.after)); got != row.begins {
			t.Errorf("after %v: got %v, want %v", row.after, got, row.begins)
		}
	}
	if b.RemoveExpired(now.Add(5 * forwardAgainAfter)); len(b.lastSeen) != 0 {
		t.Errorf("got %d units, want none", len(b.lastSeen))
	}
}

// TestBequeathEnds: a unit that takes nothing ends what it is pushed.
func TestBequeathEnds(t *testing.T) {
	c := NewCopies(1 << 20)
	r := New(c, NewSuccessors(), nil, time.Now, nil)
	for n := range 1000 {
		c.Store(bus.Cluster{1}, item(n), time.Now())
	}
	batches := 0
	r.ForwardSessions(bus.Cluster{1}, bus.Unit{Cluster: bus.Cluster{2}}, func(b []byte) bool {
		if batches++; len(b) == 0 || len(b) > bus.MaxBatch {
			t.Errorf("got a batch of %d bytes", len(b))
		}
		return batches < 2
	})
	if batches != 2 {
		t.Errorf("got %d batches, want the end after two", batches)
	}
}

func flipped(b []byte, at int) []byte {
	b = bytes.Clone(b)
	b[at] ^= 1
	return b
}
