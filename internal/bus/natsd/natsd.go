// Package natsd is the NATS server inside the cluster manager, and its guard:
// it lets in nobody but units with a certificate under the authority root, over
// TLS 1.3, and gives each the subjects of its own identity and of its own unit
// id only (bus.RightsOf). A connection ends with its unit's certificate.
//
// It trusts the authority root it is given. It refuses plain text, leaves that
// serve TLS (all replicas may share those), and certificates without an
// identity between them and the root. It has no store, no monitoring port, no
// system account and no cluster; units always meet this server, and an external
// cluster is joined behind it as a leaf node ([Join]).
package natsd

import (
	"crypto/rand"
	"crypto/subtle"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strconv"
	"time"

	"github.com/cohort-tee/cohort/internal/bus"
	"github.com/cohort-tee/cohort/internal/wire"
	"github.com/nats-io/nats-server/v2/server"
)

// Bounds of one unit's connection.
const (
	startTime      = 10 * time.Second // the server listens within this
	handshakeTime  = 5 * time.Second
	writeTime      = 2 * time.Second // a unit that takes nothing for so long is cut, and comes back
	maxPending     = 16 << 20        // bytes that wait for one unit
	maxSubjects    = 16              // subscriptions of one unit
	maxControlLine = 1 << 10
	pingEvery      = 5 * time.Second
)

// Config is what a server is made of. All fields but Join are required.
type Config struct {
	Address     string // host:port; port 0 takes a free one
	Certificate func() (*tls.Certificate, error)
	Roots       *x509.CertPool // authority roots
	Clock       func() time.Time
	Log         *slog.Logger
	Connections int // open at once
	Join        Join
}

// Server is a running server. It is safe for concurrent use.
type Server struct {
	nats     *server.Server
	password string
}

// Start listens. The caller ends the server with [Server.Stop].
func Start(c Config) (*Server, error) {
	password := rand.Text()
	g := &guard{roots: c.Roots, clock: c.Clock, password: password}
	options, err := options(c, g)
	if err != nil {
		return nil, err
	}
	n, err := server.NewServer(options)
	if err != nil {
		return nil, fmt.Errorf("making the bus: %w", err)
	}
	log := &logger{log: c.Log}
	n.SetLoggerV2(log, false, false, false)
	n.Start()
	s := &Server{nats: n, password: password}
	for begun := time.Now(); !n.ReadyForConnections(50 * time.Millisecond); {
		if cause := log.fatal(); cause != nil || time.Since(begun) > startTime {
			s.Stop()
			return nil, fmt.Errorf("starting the bus on %s: %w", c.Address, errors.Join(cause, errors.New("it does not listen")))
		}
	}
	return s, nil
}

func options(c Config, g *guard) (*server.Options, error) {
	host, port, err := net.SplitHostPort(c.Address)
	if err != nil {
		return nil, fmt.Errorf("reading the bus address: %w", err)
	}
	number, err := strconv.ParseUint(port, 10, 16)
	if err != nil {
		return nil, fmt.Errorf("reading the bus address: %w", err)
	}
	o := &server.Options{
		ServerName: "cohort-" + rand.Text(), Host: host, Port: int(number),
		NoSigs: true, NoSystemAccount: true, DisableShortFirstPing: true,
		MaxConn: c.Connections, MaxPayload: bus.MaxMessage, MaxPending: maxPending, MaxSubs: maxSubjects, MaxControlLine: maxControlLine,
		WriteDeadline: writeTime, PingInterval: pingEvery, MaxPingsOut: 2,
		AuthTimeout: handshakeTime.Seconds(), TLSTimeout: handshakeTime.Seconds(),
		TLS: true, TLSHandshakeFirst: true, TLSConfig: g.tls(c.Certificate),
		CustomClientAuthentication: g,
	}
	if number == 0 {
		o.Port = server.RANDOM_PORT
	}
	return o, c.Join.apply(o)
}

// Address is where the server listens.
func (s *Server) Address() string { return s.nats.Addr().String() }

// InProcessConn is a connection of the manager itself.
func (s *Server) InProcessConn() (net.Conn, error) { return s.nats.InProcessConn() }

// Password admits a connection in process, and nothing else.
func (s *Server) Password() string { return s.password }

// Connections is how many are open now, the manager's own included.
func (s *Server) Connections() int { return s.nats.NumClients() }

// Stop cuts all connections and returns when nothing of the server runs.
func (s *Server) Stop() {
	s.nats.Shutdown()
	s.nats.WaitForShutdown()
}

// guard decides who comes in, and what he may do.
type guard struct {
	roots    *x509.CertPool
	clock    func() time.Time
	password string
}

// tls is the configuration of the listener: strangers fail in the handshake.
func (g *guard) tls(certificate func() (*tls.Certificate, error)) *tls.Config {
	return &tls.Config{
		MinVersion:             tls.VersionTLS13,
		SessionTicketsDisabled: true,
		ClientAuth:             tls.RequireAnyClientCert, // VerifyConnection judges it
		GetCertificate:         func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return certificate() },
		VerifyConnection: func(s tls.ConnectionState) error {
			_, _, err := g.unit(s.PeerCertificates)
			return err
		},
	}
}

// unit is who presents a chain.
func (g *guard) unit(chain []*x509.Certificate) (bus.Cluster, wire.UnitID, error) {
	cluster, err := bus.CheckChain(chain, g.roots, g.clock())
	if err != nil {
		return bus.Cluster{}, wire.UnitID{}, err
	}
	if n := len(chain[0].ExtKeyUsage) + len(chain[0].UnknownExtKeyUsage); n != 0 {
		return bus.Cluster{}, wire.UnitID{}, wire.Refuse(wire.WrongKind, "bus: certificate", "one that serves TLS", "a unit's signing certificate")
	}
	return cluster, wire.UnitIDOf(chain[0].RawSubjectPublicKeyInfo), nil
}

// Check admits a connection: the manager's own, in process and with the
// password, or a unit's.
func (g *guard) Check(c server.ClientAuthentication) bool {
	if c.Kind() != server.CLIENT {
		return false
	}
	state := c.GetTLSConnectionState()
	if state == nil {
		return subtle.ConstantTimeCompare([]byte(c.GetOpts().Password), []byte(g.password)) == 1
	}
	cluster, unit, err := g.unit(state.PeerCertificates)
	if err != nil {
		return false
	}
	rights := bus.RightsOf(cluster, unit)
	c.RegisterUser(&server.User{
		Username: unit.String(),
		Permissions: &server.Permissions{
			Publish:   &server.SubjectPermission{Allow: rights.Publish},
			Subscribe: &server.SubjectPermission{Allow: rights.Subscribe},
		},
		ConnectionDeadline: state.PeerCertificates[0].NotAfter,
	})
	return true
}
