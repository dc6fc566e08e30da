package bus

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"slices"
	"sync"
	"time"

	"github.com/cohort-tee/cohort/internal/wire"
)

// Handlers are a manager's handlers of units' messages. For each unit, one goroutine calls them;
// Pull is called from several. While a handler other than Pull blocks, the server reads no
// message of that unit; other units are not affected.
type Handlers struct {
	Heartbeat func(Unit, Heartbeat)
	Item      func(Unit, Item) // takes ownership of the item's bytes
	Pull      func(context.Context, Unit, wire.SessionID) (Item, bool)
	Range     func() (Range, error)
}

// ServerConfig configures a server. All fields but Ended are required.
type ServerConfig struct {
	Address     string // host:port; port 0 means any free port
	Certificate func() (*tls.Certificate, error)
	Roots       *x509.CertPool // authority roots
	Clock       func() time.Time
	Connections int // maximum number of connected units
	Handlers    Handlers

	// Ended, if set, is called after a connection ended or was refused, with the error.
	Ended func(remote net.Addr, err error)
}

// Server is the manager's side of the bus. It is safe for concurrent use.
type Server struct {
	config   ServerConfig
	listener net.Listener
	half     halfOpen
	ctx      context.Context // done when the server stops
	stop     context.CancelFunc
	running  sync.WaitGroup

	mu        sync.RWMutex
	clusters  map[Cluster]map[wire.UnitID]*unitConn // guarded by mu
	connected int                                   // guarded by mu: number of connected units
}

// Listen starts to serve units. The caller ends the server with [Server.Stop].
func Listen(c ServerConfig) (*Server, error) {
	l, err := net.Listen("tcp", c.Address)
	if err != nil {
		return nil, fmt.Errorf("starting the bus: %w", err)
	}
	s := &Server{config: c, listener: l, clusters: make(map[Cluster]map[wire.UnitID]*unitConn)}
	s.half.addresses = make(map[string]int)
	s.ctx, s.stop = context.WithCancel(context.Background())
	s.running.Go(s.accept)
	return s, nil
}

// Address returns the address of the listener.
func (s *Server) Address() string { return s.listener.Addr().String() }

// Connections returns the number of connected units.
func (s *Server) Connections() int {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.connected
}

// Stop ends all connections and returns when all goroutines of the server have ended.
func (s *Server) Stop() {
	s.stop()
	s.listener.Close()
	s.half.close()
	s.mu.Lock()
	for _, units := range s.clusters {
		for _, u := range units {
			u.terminate(nil)
		}
	}
	s.mu.Unlock()
	s.running.Wait()
}

// Push queues a batch of items, at most [MaxBatch] bytes, for all units of a cluster that
// request pushes in their heartbeats. It skips a unit whose queue is full.
func (s *Server) Push(c Cluster, batch []byte) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	batch = bytes.Clone(batch) // one copy, shared by all units
	for _, u := range s.clusters[c] {
		if u.wantsItems.Load() {
			u.enqueue(batch)
		}
	}
}

// PushTo sends a batch to one unit after the unit's queued frames. It blocks until the
// connection's writer accepts the batch, and reports whether it did.
func (s *Server) PushTo(ctx context.Context, to Unit, batch []byte) bool {
	s.mu.RLock()
	u := s.clusters[to.Cluster][to.ID]
	s.mu.RUnlock()
	if u == nil {
		return false
	}
	select {
	case u.bulk <- bytes.Clone(batch):
		return true
	case <-u.done:
	case <-ctx.Done():
	}
	return false
}

func (s *Server) accept() {
	for {
		conn, err := s.listener.Accept()
		switch {
		case errors.Is(err, net.ErrClosed):
			return
		case err != nil:
			time.Sleep(10 * time.Millisecond) // for example, out of file descriptors for a moment
			continue
		}
		s.half.track(conn)
		s.running.Go(func() { s.reportEnd(conn.RemoteAddr(), s.serve(conn)) })
	}
}

func (s *Server) reportEnd(remote net.Addr, err error) {
	if s.config.Ended != nil && s.ctx.Err() == nil {
		s.config.Ended(remote, err)
	}
}

// serve handles one connection until it ends.
func (s *Server) serve(raw net.Conn) error {
	defer raw.Close()
	conn, unit, err := s.handshake(raw)
	if !s.half.remove(raw) || err != nil {
		return errors.Join(err, wire.Refuse(wire.Unavailable, "bus: handshake", "not completed", "a handshake of a unit"))
	}
	u := newUnitConn(s, conn, unit)
	if err := s.admit(u); err != nil {
		u.sendHint(wire.ReasonOf(err))
		return err
	}
	defer s.remove(u)
	return u.serve()
}

// handshake completes TLS and verifies the unit's certificate.
func (s *Server) handshake(raw net.Conn) (conn *tls.Conn, unit Unit, err error) {
	ctx, cancel := context.WithTimeout(s.ctx, handshakeTime)
	defer cancel()
	conn = tls.Server(raw, &tls.Config{
		MinVersion:             tls.VersionTLS13,
		SessionTicketsDisabled: true,
		NextProtos:             []string{Protocol},
		ClientAuth:             tls.RequireAnyClientCert, // VerifyConnection verifies it
		GetCertificate:         func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return s.config.Certificate() },
		VerifyConnection: func(c tls.ConnectionState) (err error) {
			if c.NegotiatedProtocol != Protocol {
				return wire.Refuse(wire.BadRequest, "bus: protocol of the unit", c.NegotiatedProtocol, Protocol)
			}
			unit, err = UnitOf(c.PeerCertificates, s.config.Roots, s.config.Clock())
			return err
		},
	})
	return conn, unit, conn.HandshakeContext(ctx)
}

// admit adds a unit's connection. A unit's new connection replaces an older one, which may still
// be open after a network failure.
func (s *Server) admit(u *unitConn) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	units := s.clusters[u.unit.Cluster]
	before := units[u.unit.ID]
	switch {
	case s.ctx.Err() != nil:
		return wire.Refuse(wire.Unavailable, "bus: manager", "shutting down", "a running manager")
	case before != nil:
		before.terminate(nil)
		s.connected--
	case s.connected >= s.config.Connections:
		return wire.Refuse(wire.Overload, "bus: units connected", s.connected, "fewer")
	}
	if units == nil {
		units = make(map[wire.UnitID]*unitConn)
		s.clusters[u.unit.Cluster] = units
	}
	units[u.unit.ID] = u
	s.connected++
	return nil
}

// remove removes a connection unless a later connection of the unit has replaced it.
func (s *Server) remove(u *unitConn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	units := s.clusters[u.unit.Cluster]
	if units[u.unit.ID] != u {
		return
	}
	s.connected--
	if delete(units, u.unit.ID); len(units) == 0 {
		delete(s.clusters, u.unit.Cluster)
	}
}

// halfOpen tracks connections whose handshake is not complete, since any client can open many of
// them. When an address or the server has too many, halfOpen closes the oldest: an honest
// handshake takes milliseconds, so the oldest is unlikely to be honest.
type halfOpen struct {
	mu        sync.Mutex
	waiting   []net.Conn     // guarded by mu: the oldest first
	addresses map[string]int // guarded by mu: connections of each address
	closed    bool           // guarded by mu
}

// track adds a connection, or closes it if close was called before.
func (h *halfOpen) track(c net.Conn) {
	h.mu.Lock()
	defer h.mu.Unlock()
	from := sourceAddress(c)
	switch {
	case h.closed:
		c.Close()
		return
	case h.addresses[from] >= mostOfAddress:
		h.closeAt(slices.IndexFunc(h.waiting, func(one net.Conn) bool { return sourceAddress(one) == from }))
	case len(h.waiting) >= mostHalfOpen:
		h.closeAt(0)
	}
	h.waiting = append(h.waiting, c)
	h.addresses[from]++
}

// remove removes a connection, and reports whether it was still tracked.
func (h *halfOpen) remove(c net.Conn) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	i := slices.Index(h.waiting, c)
	if i >= 0 {
		h.removeAt(i)
	}
	return i >= 0
}

// close closes all tracked connections.
func (h *halfOpen) close() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.closed = true
	for len(h.waiting) > 0 {
		h.closeAt(0)
	}
}

// closeAt closes a connection and removes it. The caller holds mu.
func (h *halfOpen) closeAt(i int) {
	h.waiting[i].Close()
	h.removeAt(i)
}

// removeAt removes a connection. The caller holds mu.
func (h *halfOpen) removeAt(i int) {
	from := sourceAddress(h.waiting[i])
	if h.addresses[from]--; h.addresses[from] == 0 {
		delete(h.addresses, from)
	}
	h.waiting = slices.Delete(h.waiting, i, i+1)
}

// sourceAddress returns the address under which a connection is counted: an IPv4 address, or the
// /64 network of an IPv6 address.
func sourceAddress(c net.Conn) string {
	address, ok := c.RemoteAddr().(*net.TCPAddr)
	if !ok {
		return ""
	}
	if four := address.IP.To4(); four != nil {
		return string(four)
	}
	return string(address.IP[:min(8, len(address.IP))])
}
