package manager

import (
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/cohort-tee/cohort/internal/bus"
	"github.com/cohort-tee/cohort/internal/bus/bustest"
	"github.com/cohort-tee/cohort/internal/bus/natsd"
	"github.com/cohort-tee/cohort/internal/loopback"
	"github.com/cohort-tee/cohort/internal/relay"
	"github.com/cohort-tee/cohort/internal/testworld"
	"github.com/cohort-tee/cohort/internal/wire"
	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
)

// outside starts an external NATS server with a port for leaf nodes.
func outside(t *testing.T, jetstream bool) (*server.Server, natsd.Join) {
	t.Helper()
	address := loopback.FreeAddress(t)
	_, text, _ := net.SplitHostPort(address)
	port, _ := strconv.Atoi(text)
	s, err := server.NewServer(&server.Options{
		Host: "127.0.0.1", Port: server.RANDOM_PORT, NoSigs: true, LeafNode: server.LeafNodeOpts{Host: "127.0.0.1", Port: port},
		JetStream: jetstream, JetStreamDomain: "hub", StoreDir: t.TempDir(),
	})
	if err != nil {
		t.Fatal(err)
	}
	s.Start()
	t.Cleanup(func() { s.Shutdown(); s.WaitForShutdown() })
	if !s.ReadyForConnections(5 * time.Second) {
		t.Fatal("the NATS server does not listen")
	}
	return s, natsd.Join{URLs: []string{"nats://" + address}}
}

// pair returns two managers connected over NATS.
func pair(t *testing.T) (one, two *world, nats *server.Server) {
	t.Helper()
	nats, join := outside(t, false)
	a := bustest.New(t)
	one, two = newWorldOf(t, a, join), newWorldOf(t, a, join)
	testworld.Eventually(t, "both managers are joined", func() bool { return one.manager.isJoined() && two.manager.isJoined() })
	return one, two, nats
}

// holds reports whether a manager has a copy.
func (w *world) holds(c bus.Cluster, i bus.Item) bool {
	_, found := w.manager.copies.Lookup(c, i.Session, time.Now())
	return found
}

// times returns how often an item was received.
func (h *heard) times(i bus.Item) (n int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, got := range h.items {
		if got.Session == i.Session {
			n++
		}
	}
	return n
}

// TestManagersMeet: an item sealed by a unit of one manager reaches the units of both managers,
// once; both managers store it, and a request through either gateway reaches either unit.
func TestManagersMeet(t *testing.T) {
	one, two, _ := pair(t)
	x, y := one.named(bustest.Scoring), two.named(bustest.Scoring)
	atX, atY := listen(t, x.conn), listen(t, y.conn)
	testworld.Eventually(t, "each manager knows both units", func() bool {
		n, _ := one.manager.registry.counts()
		m, _ := two.manager.registry.counts()
		return n == 2 && m == 2
	})
	probe := item(1000, x.Identity) // repeated until the other side has subscribed
	testworld.Eventually(t, "a probe is heard", func() bool { _ = x.conn.Publish(probe); return atY.times(probe) > 0 })
	var last bus.Item
	for n := range 200 {
		last = item(n, x.Identity)
		if err := x.conn.Publish(last); err != nil {
			t.Fatal(err)
		}
	}
	testworld.Eventually(t, "all items are heard", func() bool { return atX.times(last) > 0 && atY.times(last) > 0 })
	testworld.Eventually(t, "both managers keep them", func() bool { return one.holds(x.Cluster, last) && two.holds(x.Cluster, last) })
	time.Sleep(20 * relay.BatchGap) // time for duplicates to arrive
	for n := range 200 {
		if at, elsewhere := atX.times(item(n)), atY.times(item(n)); at != 1 || elsewhere != 1 {
			t.Errorf("item %d: heard %d and %d times, want once each", n, at, elsewhere)
		}
	}
	for _, w := range []*world{one, two} {
		for _, r := range []*replica{x, y} {
			status, body, _ := w.client(bustest.DNSName(bustest.Scoring)).request(t, wire.Header{Target: r.ID}, "")
			if status != 200 || body != r.ID.String() {
				t.Errorf("bound to %s: got %d from %q", r.ID, status, body)
			}
		}
	}
}

// TestPeersAnswerPulls: a manager without a copy fetches it from another manager. It responds at
// once that there is none when no other manager is reachable.
func TestPeersAnswerPulls(t *testing.T) {
	one, two, nats := pair(t)
	y := two.named(bustest.Scoring)
	stored := item(1, y.Identity)
	one.manager.copies.Store(y.Cluster, stored, time.Now())
	testworld.Eventually(t, "the copy comes from the other manager", func() bool {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		got, err := y.conn.FetchCopy(ctx, stored.Session)
		return err == nil && got.Session == stored.Session && string(got.Bytes) == string(stored.Bytes)
	})
	nats.Shutdown()
	testworld.Eventually(t, "the link is gone", func() bool { return !two.manager.isJoined() })
	_, err := y.conn.FetchCopy(t.Context(), stored.Session)
	testworld.Refused(t, err, wire.NotFound)
}

// TestStream: a manager that starts empty and alone reads the earlier items from the external
// NATS cluster. If that has no JetStream, the manager works without it.
func TestStream(t *testing.T) {
	_, join := outside(t, true)
	join.JetStream = "hub"
	a := bustest.New(t)
	one := newWorldOf(t, a, join)
	x := one.named(bustest.Scoring)
	atX := listen(t, x.conn)
	testworld.Eventually(t, "the stream is there", func() bool { return one.log.says("stored copies read from NATS") })
	var last bus.Item
	for n := range 1000 {
		last = item(n, x.Identity)
		if err := x.conn.Publish(last); err != nil {
			t.Fatal(err)
		}
	}
	testworld.Eventually(t, "all items are heard", func() bool { return atX.times(last) > 0 })
	one.stop()
	two := newWorldOf(t, a, join)
	testworld.Eventually(t, "all items are kept", func() bool { n, _ := two.manager.copies.Totals(); return n == 1000 })

	_, without := outside(t, false)
	without.JetStream = "hub"
	three := newWorldOf(t, a, without)
	testworld.Eventually(t, "it says why", func() bool { return three.log.says("stored copies cannot be read from NATS") })
	if y := three.named(bustest.Scoring); y.conn.Publish(item(1, y.Identity)) != nil {
		t.Error("a manager whose NATS cluster has no JetStream does not relay")
	}
}

// TestRecallIsOlder: items from a stream do not replace items that the manager has.
func TestRecallIsOlder(t *testing.T) {
	one, _, _ := pair(t)
	c := bus.Cluster{1}
	newer, older, lost := sealed(item(1), "newer"), sealed(item(1), "older"), item(2)
	one.manager.copies.Store(c, newer, time.Now())
	r := relay.New(one.manager.copies, one.manager.registry.successors, one.manager.journal, one.manager.config.Clock, one.manager.config.Log)
	n, err := r.RestoreFromStream(func(f func(bus.Cluster, bus.Item)) error { f(c, older); f(c, lost); return nil })
	if err != nil || n != 1 {
		t.Errorf("got %d items, %v, want the one that was lost", n, err)
	}
	if got, _ := one.manager.copies.Lookup(c, newer.Session, time.Now()); !reads(got, "newer") {
		t.Errorf("got %q, want the newer one", got.Bytes)
	}
}

// TestCopiedDirectory: two managers on copies of one directory give different numbers as soon as
// they are connected.
func TestCopiedDirectory(t *testing.T) {
	_, join := outside(t, false)
	a := bustest.New(t)
	one := newWorldOf(t, a, natsd.Join{})
	one.stop()
	file, err := os.ReadFile(filepath.Join(one.config.DataDir, "ranges"))
	if err != nil {
		t.Fatal(err)
	}
	two := newWorldOf(t, a, natsd.Join{})
	two.stop()
	if err := os.WriteFile(filepath.Join(two.config.DataDir, "ranges"), file, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, w := range []*world{one, two} {
		w.config.NATS = join
		w.start()
		t.Cleanup(w.stop)
	}
	apart := func() bool {
		p, q := one.manager.ranges.Unallocated(), two.manager.ranges.Unallocated()
		return p.First >= q.First+q.Count || q.First >= p.First+p.Count
	}
	testworld.Eventually(t, "the numbers are apart", apart)
}

// TestForeignMessages: the operator of the NATS cluster sends arbitrary messages. None of them
// ends a manager, makes it respond outside the inboxes of managers, moves a connected unit, or
// adds an unknown unit.
func TestForeignMessages(t *testing.T) {
	one, _, server := pair(t)
	x := one.named(bustest.Scoring)
	nc, err := nats.Connect(server.ClientURL())
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	stored := item(1, x.Identity)
	one.manager.copies.Store(x.Cluster, stored, time.Now())
	cluster := x.Cluster.String()
	for _, subject := range []string{"cohort.push." + cluster, "cohort.ask." + cluster, "cohort.claim", "cohort.unit", "cohort.push.x", "cohort.ask.x"} {
		for _, text := range []string{"", "{", strings.Repeat("x", 16), strings.Repeat("\xff", 16), strings.Repeat("y", 100_000)} {
			if err := nc.Publish(subject, []byte(text)); err != nil {
				t.Fatal(err)
			}
		}
	}
	stranger := bustest.New(t).Unit(bustest.Scoring)
	known, _ := one.manager.registry.counts()
	for name, u := range map[string]bustest.Unit{"of another authority": stranger, "that is connected": x.Unit, "whose leaf is no certificate": {}} {
		body, err := bus.Heartbeat{Address: "127.0.0.1:1", Ready: true}.Append(nil)
		testworld.NoError(t, err)
		testworld.NoError(t, nc.Publish("cohort.unit", wire.Frame(wire.LabelBusUnit, u.Leaf, u.Cross, body)))
		testworld.NoError(t, nc.Flush())
		time.Sleep(20 * relay.BatchGap)
		if got, _ := one.manager.registry.counts(); got > known {
			t.Errorf("a unit %s is known", name)
		}
	}
	if status, body, _ := one.client("").request(t, wire.Header{Target: x.ID}, ""); status != 200 || body != x.ID.String() {
		t.Errorf("after a stranger announced the unit elsewhere: got %d by %q, want the unit", status, body)
	}
	if _, err := nc.Request("cohort.ask."+cluster, stored.Session[:], 300*time.Millisecond); !errors.Is(err, nats.ErrTimeout) && !errors.Is(err, nats.ErrNoResponders) {
		t.Errorf("asked with a foreign inbox: got %v, want no response", err)
	}
	later := item(3, x.Identity)
	testworld.Eventually(t, "what another manager pushes is kept", func() bool {
		_ = nc.Publish("cohort.push."+cluster, later.Append(nil))
		return one.holds(x.Cluster, later)
	})
	if got, err := x.conn.FetchCopy(t.Context(), stored.Session); err != nil || got.Session != stored.Session {
		t.Errorf("afterwards: got %v, %v", got, err)
	}
}

func TestJoinRefusals(t *testing.T) {
	for _, url := range []string{"", "nats://10.0.0.1:7422", "nats://localhost:7422", "tls://host", "http://127.0.0.1:7422", "tls://host:1/path", "://"} {
		if err := (natsd.Join{URLs: []string{"tls://fine:7422", url}}).Validate(); !errors.Is(err, wire.BadRequest) {
			t.Errorf("%q: got %v, want %v", url, err, wire.BadRequest)
		}
	}
	for _, join := range []natsd.Join{{JetStream: "hub"}, {URLs: []string{"tls://fine:7422"}, JetStream: "a.b"}, {URLs: []string{"tls://fine:7422"}, JetStream: "*"}} {
		if err := join.Validate(); !errors.Is(err, wire.BadRequest) {
			t.Errorf("%+v: got %v, want %v", join, err, wire.BadRequest)
		}
	}
	secret := natsd.Join{URLs: []string{"nats://user:hunter2@10.0.0.1:7422"}}
	if err := secret.Validate(); err == nil || strings.Contains(err.Error(), "hunter2") {
		t.Errorf("a password: got %v", err)
	}
	if err := (natsd.Join{URLs: []string{"tls://u:p@host:7422", "nats://127.0.0.1:7422", "nats://[::1]:7422"}}).Validate(); err != nil {
		t.Errorf("good ones: got %v", err)
	}
}
