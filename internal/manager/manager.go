// Package manager is the cluster manager: it relays sealed sessions between the
// units of an identity and keeps copies for late joiners, allocates ranges of
// session numbers, knows which units are there, and runs the gateway that users
// reach them through.
//
// It is trusted with nothing. It knows no key and reaches no package that
// appraises, issues or decrypts; what it stores is a cache and may be lost.
// What it says is a hint to units and clients alike. A manager that drops,
// repeats, reorders or invents can delay people, and no more than that.
//
// It believes only certificates under the authority root: units reach the bus
// with their own, and the gateway speaks to a unit only over TLS whose chain is
// of the cluster that the unit came from. Both guard availability: that a
// stranger cannot feed the relay or draw requests away.
//
// [New] makes a [Manager] and [Manager.Serve] runs it. Limits are in limits.go.
package manager

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cohort-tee/cohort/internal/api"
	"github.com/cohort-tee/cohort/internal/bus"
	"github.com/cohort-tee/cohort/internal/bus/natsd"
	"github.com/cohort-tee/cohort/internal/wire"
)

// Config is what a manager is made of.
type Config struct {
	DataDir    string              // required; made when it is not there
	Roots      []*x509.Certificate // required: authority roots that units' certificates must chain to
	BusAddress string              // required: host:port where units meet it

	// Certificate is the operator's, asked for at every handshake of gateway
	// and bus. Without one the gateway serves plain HTTP on loopback only, and
	// the bus serves a self-made certificate that is kept in DataDir
	// ([SelfMadeCA]).
	Certificate func() (*tls.Certificate, error)

	// NATS is the cluster over which the manager meets others; the zero Join is
	// none. It is trusted with nothing.
	NATS natsd.Join

	Log    *slog.Logger     // default: slog.Default
	Clock  func() time.Time // default: time.Now
	Limits Limits
}

// Manager is a cluster manager. It is safe for concurrent use.
type Manager struct {
	config   Config
	pool     *x509.CertPool // of Config.Roots
	ranges   *ranges
	copies   *copies
	journal  *journal
	registry *registry
	gateway  *gateway
	metrics  *metrics
	serving  atomic.Bool
	recalled atomic.Bool                  // what NATS keeps was read since the link came up
	server   atomic.Pointer[natsd.Server] // nil before Serve
}

// New reads what a former manager left in the data directory. All faults of the
// configuration are told together.
func New(c Config) (*Manager, error) {
	if err := c.complete(); err != nil {
		return nil, fmt.Errorf("configuring the manager: %w", err)
	}
	if err := os.MkdirAll(c.DataDir, 0o700); err != nil {
		return nil, fmt.Errorf("making the data directory: %w", err)
	}
	m := &Manager{config: c, pool: x509.NewCertPool(), copies: newCopies(c.Limits.Copies)}
	for _, root := range c.Roots {
		m.pool.AddCert(root)
	}
	var err error
	if m.ranges, err = openRanges(c.DataDir); err != nil {
		return nil, fmt.Errorf("reserving session numbers: %w", err)
	}
	if m.journal, err = openJournal(c.DataDir, m.copies, c.Clock()); err != nil {
		return nil, fmt.Errorf("opening the stored copies: %w", err)
	}
	m.registry = newRegistry(c.Limits, dialer{roots: m.pool, clock: c.Clock})
	m.gateway = &gateway{registry: m.registry, copies: m.copies, clock: c.Clock, log: c.Log, slots: make(chan struct{}, c.Limits.InFlight), buckets: api.NewBuckets(c.Limits.PerAddress)}
	m.metrics = newMetrics(m)
	m.gateway.metrics = m.metrics
	return m, nil
}

// complete fills in defaults and lists what is missing.
func (c *Config) complete() error {
	if c.Log == nil {
		c.Log = slog.Default()
	}
	if c.Clock == nil {
		c.Clock = time.Now
	}
	c.Limits = c.Limits.orDefault()
	faults := []error{c.NATS.Check()}
	for _, field := range []struct {
		name    string
		missing bool
	}{{"data directory", c.DataDir == ""}, {"authority roots", len(c.Roots) == 0}, {"bus address", c.BusAddress == ""}} {
		if field.missing {
			faults = append(faults, wire.Refuse(wire.BadRequest, field.name, "none", "one"))
		}
	}
	return errors.Join(faults...)
}

// Serve serves the bus, and the gateway on a listener, until ctx ends. It lets
// requests under way finish for at most 10 seconds, and returns when nothing of
// it runs any more. It closes the listener. A manager serves once.
func (m *Manager) Serve(ctx context.Context, l net.Listener) error {
	defer m.journal.close()
	defer m.registry.close()
	certificate, err := m.certificate(l)
	if err != nil {
		return errors.Join(err, l.Close())
	}
	server, err := natsd.Start(natsd.Config{
		Address: m.config.BusAddress, Certificate: certificate, Roots: m.pool,
		Clock: m.config.Clock, Log: m.config.Log, Connections: m.config.Limits.Connections, Join: m.config.NATS,
	})
	if err != nil {
		return errors.Join(err, l.Close())
	}
	defer server.Stop()
	m.server.Store(server)
	r := newRelay(m.copies, m.registry.lineage, m.journal, m.config)
	hub, err := bus.Attach(server, m.duties(r))
	if err != nil {
		return errors.Join(err, l.Close())
	}
	defer r.tasks.Wait()
	defer hub.Close()

	work, stop := context.WithCancel(ctx)
	var running sync.WaitGroup
	defer running.Wait()
	defer stop()
	running.Go(func() { r.run(work, hub.Push) })
	running.Go(func() { m.tidy(work, hub) })
	if m.config.NATS.JetStream != "" {
		running.Go(func() { m.remember(work, hub, r) })
	}
	m.gateway.warm(m.config.Clock())
	m.serving.Store(true)
	defer m.serving.Store(false)
	return m.serveGateway(work, l)
}

// duties are what the manager does for its units and beside other managers.
func (m *Manager) duties(r *relay) bus.Duties {
	beat := func(c bus.Cluster, unit wire.UnitID, b bus.Beat) { m.beat(r, c, unit, b) }
	d := bus.Duties{Beat: beat, Item: r.take, Pull: m.pull, Range: m.take}
	if len(m.config.NATS.URLs) > 0 {
		d.Peers = &bus.Peers{Item: r.keep, Claim: m.claimed, There: m.joined}
	}
	return d
}

// joined reports whether the link to the external cluster is there.
func (m *Manager) joined() bool {
	server := m.server.Load()
	return server != nil && server.Joined()
}

// certificate is what the bus serves; it also refuses a gateway in plain text
// that strangers could reach.
func (m *Manager) certificate(l net.Listener) (func() (*tls.Certificate, error), error) {
	if m.config.Certificate != nil {
		return m.config.Certificate, nil
	}
	if address, ok := l.Addr().(*net.TCPAddr); ok && !address.IP.IsLoopback() {
		return nil, wire.Refuse(wire.NotAllowed, "gateway without a certificate", address, "a loopback address, or --tls-cert")
	}
	return selfMade(m.config)
}

func (m *Manager) serveGateway(ctx context.Context, l net.Listener) error {
	server := &http.Server{
		Handler:           m.Handler(),
		ReadHeaderTimeout: headerWait, IdleTimeout: idleWait, MaxHeaderBytes: 16 << 10,
		ConnState: api.NewConnections(m.config.Limits.Clients).Track,
		ErrorLog:  slog.NewLogLogger(m.config.Log.Handler(), slog.LevelDebug), // broken handshakes of strangers
	}
	ended := make(chan struct{})
	cancel := context.AfterFunc(ctx, func() { defer close(ended); m.shutDown(server) })
	err := m.accept(server, l)
	if cancel() {
		return errors.Join(fmt.Errorf("serving the gateway: %w", err), server.Close())
	}
	<-ended
	return nil
}

func (m *Manager) accept(server *http.Server, l net.Listener) error {
	if m.config.Certificate == nil {
		return server.Serve(l)
	}
	server.TLSConfig = &tls.Config{
		MinVersion: tls.VersionTLS13, SessionTicketsDisabled: true,
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return m.config.Certificate() },
	}
	return server.ServeTLS(l, "", "")
}

// shutDown lets requests under way finish, and cuts off those that do not.
func (m *Manager) shutDown(server *http.Server) {
	ctx, cancel := context.WithTimeout(context.Background(), endWait)
	defer cancel()
	if err := server.Shutdown(ctx); err != nil {
		m.config.Log.Warn("requests cut off at shutdown", "error", errors.Join(err, server.Close()))
	}
}

// tidy forgets silent units and expired copies, and tells other managers which
// numbers are taken.
func (m *Manager) tidy(ctx context.Context, hub *bus.Hub) {
	ticker := time.NewTicker(tidyEvery)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
			now := m.config.Clock()
			m.registry.forget(ctx, now)
			m.copies.prune(now)
			_ = hub.Claim(m.ranges.claim()) // again in a second
		}
	}
}

// remember reads, whenever the link to the external cluster has come up, what its
// stream keeps of what was pushed meanwhile.
func (m *Manager) remember(ctx context.Context, hub *bus.Hub, r *relay) {
	stream := bus.Stream{Domain: m.config.NATS.JetStream, Replicas: min(len(m.config.NATS.URLs), 3), Life: copyLife}
	ticker := time.NewTicker(tidyEvery)
	defer ticker.Stop()
	var since time.Time // what was pushed before is here; zero: none of it
	for faulty := false; ; {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		now := m.config.Clock()
		if !m.joined() {
			m.recalled.Store(false)
			continue
		}
		if !m.recalled.Load() {
			items, err := r.recall(func(f func(bus.Cluster, bus.Item)) error { return hub.Recall(ctx, stream, since, f) })
			if err != nil {
				if !faulty && ctx.Err() == nil {
					m.config.Log.Warn("stored copies cannot be read from NATS", "error", err)
				}
				faulty = true
				continue
			}
			faulty = false
			m.config.Log.Info("stored copies read from NATS", "items", items)
			m.recalled.Store(true)
		}
		since = now.Add(-recallSlack)
	}
}

// beat takes a beat in. Each new unit of a cluster that inherits is pushed what
// its cluster has not sealed for itself yet, because those that were pushed it
// before may be gone.
func (m *Manager) beat(r *relay, c bus.Cluster, unit wire.UnitID, b bus.Beat) {
	begins := m.registry.lineage.heard(c, b)
	found := m.registry.heard(c, unit, b, m.config.Clock())
	if found {
		m.config.Log.Info("unit found", "unit", unit, "task", b.Task, "address", b.Address)
	}
	if !begins && !found {
		return
	}
	for _, from := range m.registry.lineage.parents(c) {
		r.tasks.Go(func() { r.bequeath(from, c) })
	}
}

func (m *Manager) pull(c bus.Cluster, s wire.SessionID) (bus.Item, bool) {
	item, found := m.copies.get(c, s, m.config.Clock())
	for _, before := range m.registry.lineage.parents(c) {
		if !found {
			item, found = m.copies.get(before, s, m.config.Clock())
		}
	}
	m.metrics.pulls.WithLabelValues(foundLabel[found]).Inc()
	return item, found
}

func (m *Manager) take() (bus.Range, error) {
	r, err := m.ranges.take()
	if err != nil {
		m.config.Log.Warn("no session numbers given", "error", err)
	}
	return r, err
}

func (m *Manager) claimed(other bus.Range) {
	if err := m.ranges.heard(other, m.config.Clock()); err != nil {
		m.config.Log.Warn("session numbers that another manager gives as well", "error", err)
	}
}
