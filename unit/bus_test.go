package unit

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/cohort-tee/cohort/internal/api"
	"github.com/cohort-tee/cohort/internal/bus"
	"github.com/cohort-tee/cohort/internal/testworld"
	"github.com/cohort-tee/cohort/unit/unittest"
)

// manager serves the bus for the units of the world's authority, and sends their
// publications to a channel.
func manager(w *unittest.World, u *Unit) (Manager, <-chan bus.Item) {
	w.T.Helper()
	own := httptest.NewTLSServer(nil) // for its certificate, which is valid for 127.0.0.1
	own.Close()
	roots := x509.NewCertPool()
	roots.AddCert(u.authorityRoot())
	items := make(chan bus.Item, 100)
	s, err := bus.Listen(bus.ServerConfig{
		Address: "127.0.0.1:0", Certificate: func() (*tls.Certificate, error) { return &own.TLS.Certificates[0], nil },
		Roots: roots, Clock: time.Now, Connections: 20,
		Handlers: bus.Handlers{
			Heartbeat: func(bus.Unit, bus.Heartbeat) {},
			Item:      func(_ bus.Unit, i bus.Item) { items <- i },
			Range:     func() (bus.Range, error) { return bus.Range{First: 5, Count: 1 << 13}, nil },
		},
	})
	testworld.NoError(w.T, err)
	w.T.Cleanup(s.Stop)
	ca := x509.NewCertPool()
	ca.AddCert(own.Certificate())
	return Manager{URL: "tls://" + s.Address(), CA: ca}, items
}

// TestHandsOver: a unit ends before it has resealed sessions under older ring keys. It
// reseals and publishes them before its connection to the manager ends.
func TestHandsOver(t *testing.T) {
	w := unittest.New(t, "1h")
	f := w.Authority(w.AuthorityKeys)
	u, err := prepare(configOf(w, "scoring", f)) // runs nothing by itself
	testworld.NoError(t, err)
	close(u.done) // no renewal
	defer u.Close()
	never := func(error) bool { return false }
	testworld.NoError(t, u.obtain(testworld.ShortContext(t), never))
	s, sealed := open(w, u)
	f.Set(func(f *unittest.Authority) {
		f.Faults.Report = func(r *api.Report) {
			before := r.Rings
			r.Rings.Strict, r.Rings.Follow = unittest.RingKeys(0x50, f.Clock()), unittest.RingKeys(0x60, f.Clock())
			r.Rings.Strict.Previous, r.Rings.Follow.Previous = before.Strict.Current, before.Follow.Current
		}
	})
	testworld.NoError(t, u.obtain(testworld.ShortContext(t), never))

	var items <-chan bus.Item
	u.config.Manager, items = manager(w, u)
	ctx, end := context.WithCancel(t.Context())
	attended := make(chan error)
	go func() { attended <- u.joinCluster(ctx, u.enrolled.Load()) }()
	testworld.Within(t, 10*time.Second, "the unit is connected", u.cluster.relay.Connected)
	end()
	testworld.NoError(t, <-attended)
	select {
	case got := <-items:
		if got.Kind != bus.Sealed || got.Session != s.ID() || int64(got.Expiry) != s.Expires().Unix() || bytes.Equal(got.Bytes, sealed) {
			t.Errorf("got %v of %v, want session %v sealed again", got.Kind, got.Session, s.ID())
		}
	case <-time.After(10 * time.Second):
		t.Error("nothing came")
	}
}
