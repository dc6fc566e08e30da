// Package manager implements the cluster manager. It relays sealed sessions between the units
// of an identity, stores copies for units that join late, allocates ranges of session numbers,
// tracks which units are running, and serves the gateway through which users reach them.
//
// The manager is untrusted. It has no key and imports no package that appraises evidence, issues
// certificates or decrypts data. Its stored data is a cache and can be lost. Units and clients
// treat every message of the manager as a hint. A manager that drops, repeats, reorders or
// invents messages can only delay requests.
//
// The manager accepts only certificates under the authority root. It identifies a unit by the
// client certificate of the unit's bus connection, not by the content of messages. The gateway
// forwards requests to a unit only over TLS, and only if the unit's certificate chain has the
// same identity. Both checks protect availability: strangers and other tenants can neither send
// sessions to the relay nor divert requests.
//
// [New] makes a [Manager] and [Manager.Serve] runs it. Limits are in limits.go.
//
// Files, each using those before it: limits.go, body.go, sessionset.go,
// intake.go, backend.go, registry.go, ticket.go, stream.go, gateway.go,
// metrics.go, history.go, manager.go, status.go, http.go.
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

	"github.com/cohort-tee/cohort/internal/bus"
	"github.com/cohort-tee/cohort/internal/bus/cluster"
	"github.com/cohort-tee/cohort/internal/bus/natsd"
	"github.com/cohort-tee/cohort/internal/forwarded"
	"github.com/cohort-tee/cohort/internal/limit"
	"github.com/cohort-tee/cohort/internal/manager/ranges"
	"github.com/cohort-tee/cohort/internal/manager/selfsigned"
	"github.com/cohort-tee/cohort/internal/manager/trustrelay"
	"github.com/cohort-tee/cohort/internal/opsserver"
	"github.com/cohort-tee/cohort/internal/relay"
	"github.com/cohort-tee/cohort/internal/wire"
)

// Config configures a manager.
type Config struct {
	DataDir    string              // required; created when missing
	Roots      []*x509.Certificate // required: authority roots that units' certificates must chain to
	BusAddress string              // required: host:port where units connect

	// Certificate returns the operator's certificate. It is called at every handshake of
	// gateway and bus. Without it the gateway serves plain HTTP on loopback only, and the bus
	// serves a self-signed certificate that is stored in DataDir (package selfsigned).
	Certificate func() (*tls.Certificate, error)

	// Plain makes the gateway serve plain HTTP on any address, for an ingress that ends TLS. A
	// Certificate is then for the bus alone.
	Plain bool

	// Proxies are trusted to name the addresses of clients, which have the shares.
	Proxies forwarded.Proxies

	// Authorities are https URLs of the authority's replicas. The manager polls one of them
	// for the policy history and serves that history to all clients of the gateway, which
	// verify it, and passes requests for trust on to them. Without Authorities the gateway
	// serves neither.
	Authorities []string

	// NATS is the cluster over which the manager exchanges messages with other managers. The
	// zero Join means that there are no other managers. The cluster is untrusted.
	NATS natsd.Join

	Log    *slog.Logger     // default: slog.Default
	Clock  func() time.Time // default: time.Now
	Limits Limits
}

// Manager is a cluster manager. It is safe for concurrent use.
type Manager struct {
	config     Config
	pool       *x509.CertPool // contains Config.Roots
	ranges     *ranges.Ranges
	copies     *relay.Copies
	journal    *relay.Journal
	registry   *registry
	forwards   *relay.ForwardLog
	gateway    *gateway
	mirror     *historyMirror
	trust      *trustrelay.Relay
	metrics    *metrics
	clients    *limit.Connections
	polls      *limit.Shares  // one for each request that waits for the next policy step
	forwarding sync.WaitGroup // running ForwardSessions of the relay
	ending     chan struct{}  // closed when Serve ends
	serving    atomic.Bool
	started    time.Time
	recalled   atomic.Bool                  // whether the NATS stream was read since the link came up
	bus        atomic.Pointer[bus.Server]   // nil before Serve
	server     atomic.Pointer[natsd.Server] // nil before Serve, and without NATS
	hub        atomic.Pointer[cluster.Hub]  // nil before Serve, and without NATS
}

// New makes a manager and loads what a previous process stored in the data directory. It
// reports all configuration errors together.
func New(c Config) (*Manager, error) {
	if err := c.validate(); err != nil {
		return nil, fmt.Errorf("configuring the manager: %w", err)
	}
	if err := os.MkdirAll(c.DataDir, 0o700); err != nil {
		return nil, fmt.Errorf("making the data directory: %w", err)
	}
	m := &Manager{
		config: c, pool: x509.NewCertPool(), copies: relay.NewCopies(c.Limits.Copies), forwards: relay.NewForwardLog(),
		clients: limit.NewConnections(c.Limits.Clients), polls: limit.NewShares(quotaPolls, c.Limits.Polls), ending: make(chan struct{}),
		started: c.Clock(),
	}
	for _, root := range c.Roots {
		m.pool.AddCert(root)
	}
	var err error
	if m.ranges, err = ranges.OpenDir(c.DataDir); err != nil {
		return nil, fmt.Errorf("reserving session numbers: %w", err)
	}
	if m.journal, err = relay.OpenJournal(c.DataDir, m.copies, c.Clock()); err != nil {
		return nil, fmt.Errorf("opening the stored copies: %w", err)
	}
	if m.mirror, err = newHistoryMirror(m.config, m.pool); err != nil {
		return nil, err
	}
	m.trust = trustrelay.NewRelay(m.mirror.authorities, func() wire.Digest { return m.mirror.current.Load().lastHead() }, c.Clock)
	m.registry = newRegistry(c.Limits, dialer{roots: m.pool, clock: c.Clock})
	m.gateway = newGateway(m.config, m.registry, m.copies)
	m.metrics = newMetrics(m)
	m.gateway.metrics = m.metrics
	return m, nil
}

// validate sets defaults and reports all missing or invalid fields.
func (c *Config) validate() error {
	if c.Log == nil {
		c.Log = slog.Default()
	}
	if c.Clock == nil {
		c.Clock = time.Now
	}
	c.Limits = c.Limits.withDefaults()
	faults := []error{c.NATS.Validate()}
	for _, field := range []struct {
		name    string
		missing bool
	}{{"data directory", c.DataDir == ""}, {"authority roots", len(c.Roots) == 0}, {"bus address", c.BusAddress == ""}} {
		if field.missing {
			faults = append(faults, wire.Refuse(wire.BadRequest, field.name, "an empty value", "a value"))
		}
	}
	return errors.Join(faults...)
}

// Serve serves the bus, and the gateway on l, until ctx ends. At shutdown it lets running
// requests finish for at most 10 seconds. It closes l, and returns when all goroutines of the
// manager have ended. Serve can be called once.
func (m *Manager) Serve(ctx context.Context, l net.Listener) error {
	defer m.journal.Close()
	defer m.mirror.close()
	defer m.trust.Close()
	defer m.registry.close()
	certificate, err := m.busCertificate(l)
	if err != nil {
		return errors.Join(err, l.Close())
	}
	r := relay.New(m.copies, m.registry.successors, m.journal, m.config.Clock, m.config.Log)
	leave, err := m.joinCluster(r)
	if err != nil {
		return errors.Join(err, l.Close())
	}
	defer leave()
	work, stop := context.WithCancel(ctx)
	defer m.forwarding.Wait()
	units, err := bus.Listen(m.busConfig(work, r, certificate))
	if err != nil {
		stop()
		return errors.Join(err, l.Close())
	}
	defer units.Stop()
	m.bus.Store(units)

	var running sync.WaitGroup
	defer running.Wait()
	defer stop()
	running.Go(func() { r.Run(work, m.sinks(units)) })
	running.Go(func() { m.runMaintenance(work) })
	running.Go(func() { m.mirror.follow(work) })
	if m.config.NATS.JetStream != "" {
		running.Go(func() { m.restoreCopies(work, m.hub.Load(), r) })
	}
	m.gateway.startWarmUp(m.config.Clock())
	m.serving.Store(true)
	defer m.serving.Store(false)
	return m.serveGateway(work, l)
}

// busConfig returns the configuration of the bus server.
func (m *Manager) busConfig(ctx context.Context, r *relay.Relay, certificate func() (*tls.Certificate, error)) bus.ServerConfig {
	return bus.ServerConfig{
		Address: m.config.BusAddress, Certificate: certificate, Roots: m.pool,
		Clock: m.config.Clock, Connections: m.config.Limits.Connections,
		Ended: func(remote net.Addr, err error) {
			reason := wire.ReasonOf(err)
			if reason == wire.Internal {
				reason = "" // the unit disconnected, or its network failed
			}
			m.metrics.busEnded.WithLabelValues(string(reason)).Inc()
			m.config.Log.Debug("bus connection ended", "remote", remote, "reason", reason, "cause", err)
		},
		Handlers: bus.Handlers{
			Heartbeat: func(u bus.Unit, b bus.Heartbeat) { m.handleHeartbeat(ctx, r, u, b) },
			Item: func(u bus.Unit, i bus.Item) {
				if err := r.AcceptFromUnit(u, i); err != nil {
					m.metrics.itemsRefused.Inc()
					m.config.Log.Debug("item not relayed", "unit", u.ID, "cause", err)
				}
			},
			Pull: m.pullCopy, Range: m.allocateRange,
		},
	}
}

// joinCluster connects to the other managers, if NATS is configured. The caller calls leave at
// the end.
func (m *Manager) joinCluster(r *relay.Relay) (leave func(), err error) {
	if len(m.config.NATS.URLs) == 0 {
		return func() {}, nil
	}
	server, err := natsd.Start(m.config.NATS, m.config.Log)
	if err != nil {
		return nil, err
	}
	hub, err := cluster.Attach(server, cluster.Handlers{Item: r.AcceptFromManager, Claim: m.handleClaim, Pull: m.findCopy, Unit: m.handleAnnouncement})
	if err != nil {
		server.Stop()
		return nil, err
	}
	m.server.Store(server)
	m.hub.Store(hub)
	return func() { hub.Close(); server.Stop() }, nil
}

// sinks returns the functions with which the relay pushes batches.
func (m *Manager) sinks(units *bus.Server) relay.Sinks {
	if hub := m.hub.Load(); hub != nil {
		return relay.Sinks{Units: units.Push, Managers: hub.PushBatch}
	}
	return relay.Sinks{Units: units.Push}
}

// isJoined reports whether the link to the external NATS cluster is up.
func (m *Manager) isJoined() bool {
	server := m.server.Load()
	return server != nil && server.Joined()
}

// busCertificate returns the certificate of the bus. It refuses to serve the gateway over plain
// HTTP on an address that is not loopback, unless Plain is set.
func (m *Manager) busCertificate(l net.Listener) (func() (*tls.Certificate, error), error) {
	if m.config.Certificate != nil {
		return m.config.Certificate, nil
	}
	if address, ok := l.Addr().(*net.TCPAddr); ok && !address.IP.IsLoopback() && !m.config.Plain {
		return nil, wire.Refuse(wire.NotAllowed, "gateway without a certificate", address, "a loopback address, --tls-cert, or --plain behind an ingress that ends TLS")
	}
	return selfsigned.LoadOrCreate(m.config.DataDir, m.config.BusAddress, m.config.Clock())
}

func (m *Manager) serveGateway(ctx context.Context, l net.Listener) error {
	var protocols http.Protocols
	protocols.SetHTTP1(true)
	protocols.SetHTTP2(true)
	protocols.SetUnencryptedHTTP2(true) // used without TLS only
	server := &http.Server{
		Handler: m.Handler(), HTTP2: clientPace().HTTP2(), Protocols: &protocols,
		ReadHeaderTimeout: headerWait, IdleTimeout: idleWait, MaxHeaderBytes: 16 << 10,
		ConnState: m.clients.Track,
		ErrorLog:  slog.NewLogLogger(m.config.Log.Handler(), slog.LevelDebug), // DEBUG: any client can cause failed handshakes
	}
	ended := make(chan struct{})
	cancel := context.AfterFunc(ctx, func() { defer close(ended); close(m.ending); m.shutDown(server) })
	err := m.serveListener(server, l)
	if cancel() {
		return errors.Join(fmt.Errorf("serving the gateway: %w", err), server.Close())
	}
	<-ended
	return nil
}

func (m *Manager) serveListener(server *http.Server, l net.Listener) error {
	if m.config.Certificate == nil || m.config.Plain {
		if !opsserver.IsLocal(l.Addr()) {
			m.config.Log.Warn("the gateway serves plain HTTP on an address that is neither loopback nor private: the networks on the way read who asks for what task", "address", l.Addr())
		}
		return server.Serve(l)
	}
	server.TLSConfig = &tls.Config{
		MinVersion: tls.VersionTLS13, SessionTicketsDisabled: true,
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return m.config.Certificate() },
	}
	return server.ServeTLS(l, "", "")
}

// shutDown waits for running requests, and closes their connections after endWait.
func (m *Manager) shutDown(server *http.Server) {
	ctx, cancel := context.WithTimeout(context.Background(), endWait)
	defer cancel()
	if err := server.Shutdown(ctx); err != nil {
		m.config.Log.Warn("requests cut off at shutdown", "error", errors.Join(err, server.Close()))
	}
}

// runMaintenance removes silent units and expired copies, and announces to the other managers
// which session numbers this manager has reserved.
func (m *Manager) runMaintenance(ctx context.Context) {
	ticker := time.NewTicker(maintenanceInterval)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
			now := m.config.Clock()
			m.registry.dropSilent(ctx, now)
			m.copies.RemoveExpired(now)
			m.forwards.RemoveExpired(now)
			if hub := m.hub.Load(); hub != nil {
				_ = hub.AnnounceRanges(m.ranges.Unallocated()) // an announcement can be lost: the next one follows in a second
			}
		}
	}
}

// restoreCopies reads the NATS stream each time the link to the external cluster comes up. It
// stores the sessions that other managers pushed while the link was down.
func (m *Manager) restoreCopies(ctx context.Context, hub *cluster.Hub, r *relay.Relay) {
	stream := cluster.Stream{Domain: m.config.NATS.JetStream, Replicas: min(len(m.config.NATS.URLs), 3), MaxAge: relay.CopyLifetime}
	ticker := time.NewTicker(maintenanceInterval)
	defer ticker.Stop()
	var since time.Time // older items are already stored; zero: none are
	for faulty := false; ; {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		now := m.config.Clock()
		if !m.isJoined() {
			m.recalled.Store(false)
			continue
		}
		if !m.recalled.Load() {
			items, err := r.RestoreFromStream(func(f func(bus.Cluster, bus.Item)) error { return hub.Recall(ctx, stream, since, f) })
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

// handleHeartbeat records a heartbeat and announces the unit to the other managers. If the unit
// inherits sessions of a predecessor, handleHeartbeat also sends it those stored sessions of the
// predecessor that the unit's own cluster has not sealed again: the units that received them at
// the first push may have stopped.
func (m *Manager) handleHeartbeat(ctx context.Context, r *relay.Relay, u bus.Unit, b bus.Heartbeat) {
	now := m.config.Clock()
	from, inherits := m.recordUnit(u, b, ownConnection, now)
	if !b.Relay {
		return // the unit uses another manager as its relay
	}
	if hub := m.hub.Load(); hub != nil {
		_ = hub.AnnounceUnit(u, b) // an announcement can be lost: the next heartbeat repeats it
	}
	if units := m.bus.Load(); inherits && units != nil && m.forwards.ShouldForward(u.ID, from, now) {
		m.forwarding.Go(func() { r.ForwardSessions(from, u, func(batch []byte) bool { return units.PushTo(ctx, u, batch) }) })
	}
}

// recordUnit records a heartbeat, from a unit or announced by another manager. It returns the
// cluster from which the unit inherits sessions.
func (m *Manager) recordUnit(u bus.Unit, b bus.Heartbeat, by reporter, now time.Time) (from bus.Cluster, inherits bool) {
	if m.registry.recordHeartbeat(u, b, by, now) {
		m.config.Log.Info("unit added", "unit", u.ID, "task", u.Holder(), "address", b.Address)
	}
	return m.registry.successors.Record(u, b.Inherits)
}

// handleAnnouncement records a unit that another manager announced. It verifies each pair of
// certificates once.
func (m *Manager) handleAnnouncement(leaf, cross []byte, b bus.Heartbeat) {
	now := m.config.Clock()
	u, err := cluster.VerifyUnit(leaf, cross, m.registry.unitByCertificates, m.pool, now)
	if err != nil {
		m.config.Log.Debug("announced unit not verified", "cause", err)
		return
	}
	m.recordUnit(u, b, otherManager, now)
}

// pullCopy returns the stored copy of a session to a unit. If this manager has no copy, pullCopy
// requests one from the other managers.
func (m *Manager) pullCopy(ctx context.Context, u bus.Unit, s wire.SessionID) (bus.Item, bool) {
	item, found := m.findCopy(u.Cluster, s)
	if hub := m.hub.Load(); !found && hub != nil && m.isJoined() {
		item, found = hub.RequestCopy(ctx, u.Cluster, s)
	}
	m.metrics.pulls.WithLabelValues(foundLabel[found]).Inc()
	return item, found
}

// findCopy returns the copy of a session that a cluster may open: a session of the cluster or of
// one of its predecessors.
func (m *Manager) findCopy(c bus.Cluster, s wire.SessionID) (bus.Item, bool) {
	item, found := m.copies.Lookup(c, s, m.config.Clock())
	for _, before := range m.registry.successors.PredecessorsOf(c) {
		if !found {
			item, found = m.copies.Lookup(before, s, m.config.Clock())
		}
	}
	return item, found
}

func (m *Manager) allocateRange() (bus.Range, error) {
	r, err := m.ranges.Allocate()
	if err != nil {
		m.config.Log.Warn("session numbers not allocated", "error", err)
	}
	return r, err
}

func (m *Manager) handleClaim(other bus.Range) {
	if err := m.ranges.AvoidClaim(other, m.config.Clock()); err != nil {
		m.config.Log.Warn("session numbers that another manager allocates too", "error", err)
	}
}

// connectedUnits returns the number of units that are connected to the bus.
func (m *Manager) connectedUnits() int {
	if units := m.bus.Load(); units != nil {
		return units.Connections()
	}
	return 0
}
