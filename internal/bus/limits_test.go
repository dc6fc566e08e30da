package bus_test

import (
	"bytes"
	"crypto/tls"
	"encoding/binary"
	"io"
	"net"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cohort-tee/cohort/internal/bus"
	"github.com/cohort-tee/cohort/internal/bus/bustest"
	"github.com/cohort-tee/cohort/internal/testworld"
	"github.com/cohort-tee/cohort/internal/wire"
)

// TestQuietUnits: the server disconnects a unit that sends nothing, or sends a frame too slowly,
// after the time for a frame.
func TestQuietUnits(t *testing.T) {
	a := bustest.New(t)
	s := serve(t, a, nil)
	quiet, slow := raw(t, s, a.Unit(bustest.Scoring)), raw(t, s, a.Unit(bustest.Scoring))
	go func() {
		for _, b := range frame(4, make([]byte, 24)...) {
			if _, err := slow.Write([]byte{b}); err != nil {
				return
			}
			time.Sleep(time.Second)
		}
	}()
	begin := time.Now()
	for _, c := range []*tls.Conn{quiet, slow} {
		_ = c.SetReadDeadline(begin.Add(20 * time.Second))
		_, _ = io.ReadAll(c)
	}
	if took := time.Since(begin); took < 3*time.Second || took > 12*time.Second {
		t.Errorf("cut off after %v, want 4 s", took)
	}
}

// TestSlowUnits: units that do not read pushed items are disconnected, and do not slow down other
// units.
func TestSlowUnits(t *testing.T) {
	a := bustest.New(t)
	s := serve(t, a, nil)
	var heard atomic.Int64
	u := a.Unit(bustest.Scoring)
	connect(t, u, url(s)).Subscribe(func(bus.Item) { heard.Add(1) })
	for range 8 {
		raw(t, s, a.Unit(bustest.Scoring)) // never read from
	}
	testworld.Eventually(t, "all are there", func() bool { return s.Connections() == 9 })
	batch := bus.Item{Kind: bus.Sealed, Bytes: make([]byte, 4000)}.Append(nil)
	batch = bytes.Repeat(batch, bus.MaxBatch/len(batch))
	before := heap()
	for n := range 2000 { // 120 MiB, at the pace of the honest unit
		s.Push(u.Cluster, batch)
		testworld.Eventually(t, "the honest unit hears", func() bool { return heard.Load() > int64(n*16/17) })
	}
	if grown := heap() - before; grown > 64<<20 {
		t.Errorf("the heap grew by %d MiB for units that take nothing", grown>>20)
	}
	testworld.Eventually(t, "they are cut off", func() bool { return s.Connections() == 1 })
}

// TestFloodingUnits: a unit floods the server with heartbeats and range requests. A bounded
// number of them per second counts.
func TestFloodingUnits(t *testing.T) {
	a := bustest.New(t)
	s := serve(t, a, nil)
	u := a.Unit(bustest.Scoring)
	c := raw(t, s, u)
	go func() { _, _ = c.Write(bytes.Repeat(append(frame(1, make([]byte, 41)...), frame(2)...), 5000)) }()
	given := 0
	none := frame(2, make([]byte, 16)...)
	begin := time.Now()
	for range 128 + 100 { // responses beyond the unit's queue are dropped
		head := make([]byte, 3)
		_ = c.SetReadDeadline(time.Now().Add(2 * time.Second))
		if _, err := io.ReadFull(c, head); err != nil {
			break
		}
		body := make([]byte, binary.BigEndian.Uint16(head)-1)
		if _, err := io.ReadFull(c, body); err != nil {
			break
		}
		if whole := append(head, body...); whole[2] == 2 && !bytes.Equal(whole, none) {
			given++
		}
	}
	took := time.Since(begin).Seconds()
	s.mu.Lock()
	defer s.mu.Unlock()
	if got, most := s.heartbeats[u.ID], 20+10*(took+1); got == 0 || float64(got) > most {
		t.Errorf("got %d heartbeats of 5000, want at most %.0f", got, most)
	}
	if most := 8 + 2*(took+1); given == 0 || float64(given) > most {
		t.Errorf("got %d ranges of 5000, want at most %.0f", given, most)
	}
}

// TestHalfOpen: clients that complete no handshake do not keep a unit from connecting.
func TestHalfOpen(t *testing.T) {
	a := bustest.New(t)
	s := serve(t, a, nil)
	for range 300 { // one address, which has 64 places
		c, err := net.Dial("tcp", s.Address())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
	}
	begin := time.Now()
	c := connect(t, a.Unit(bustest.Scoring), url(s))
	if _, err := c.FetchCopy(t.Context(), wire.SessionID{1}); err != nil {
		t.Errorf("got %v", err)
	}
	if took := time.Since(begin); took > 4*time.Second {
		t.Errorf("a unit came in after %v, want it not to wait for strangers", took)
	}
}
