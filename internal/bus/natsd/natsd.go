// Package natsd runs the NATS server inside a cluster manager that exchanges messages with other
// managers. The server opens no port: the manager connects in process, and the server joins an
// external NATS cluster as a leaf node ([Join]). Over that link managers exchange the messages
// of package cluster. Units do not connect to the server, and no program that runs inside a TEE
// imports this package.
//
// The link is untrusted, and the size of its messages is limited. The server has no store, no
// monitoring port, no system account and no cluster of its own.
//
// Files, each using those before it: log.go, join.go, natsd.go.
package natsd

import (
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"time"

	"github.com/cohort-tee/cohort/internal/wire"
	"github.com/nats-io/nats-server/v2/server"
)

// Limits of the server.
const (
	startTime  = 10 * time.Second // for the server to start
	writeTime  = 2 * time.Second  // a link with a longer blocked write is closed and reconnected
	maxPending = 64 << 20         // bytes queued for the link
	maxMessage = 128 << 10        // bytes: a batch, or a unit's certificates
	pingEvery  = 5 * time.Second
)

// Server is a running server. It is safe for concurrent use.
type Server struct {
	nats *server.Server
}

// Start starts a server that joins the cluster. The caller ends it with [Server.Stop]. With
// [wire.BadRequest] it refuses a Join that has no URL or that [Join.Validate] refuses.
func Start(join Join, log *slog.Logger) (*Server, error) {
	if len(join.URLs) == 0 {
		return nil, wire.Refuse(wire.BadRequest, "nats: URLs", 0, "a URL of the cluster to join")
	}
	o := &server.Options{
		ServerName: "cohort-" + rand.Text(), DontListen: true,
		NoSigs: true, NoSystemAccount: true, DisableShortFirstPing: true,
		MaxPayload: maxMessage, MaxPending: maxPending,
		WriteDeadline: writeTime, PingInterval: pingEvery, MaxPingsOut: 2,
	}
	if err := join.configure(o); err != nil {
		return nil, err
	}
	n, err := server.NewServer(o)
	if err != nil {
		return nil, fmt.Errorf("making the NATS server: %w", err)
	}
	serverLog := &logger{log: log}
	n.SetLoggerV2(serverLog, false, false, false)
	n.Start()
	s := &Server{nats: n}
	for begun := time.Now(); !n.ReadyForConnections(50 * time.Millisecond); {
		if cause := serverLog.fatal(); cause != nil || time.Since(begun) > startTime {
			s.Stop()
			return nil, fmt.Errorf("starting the NATS server: %w", errors.Join(cause, errors.New("it is not ready for connections")))
		}
	}
	return s, nil
}

// InProcessConn returns a connection for the manager of this process.
func (s *Server) InProcessConn() (net.Conn, error) { return s.nats.InProcessConn() }

// Stop closes all connections and returns when the server has ended.
func (s *Server) Stop() {
	s.nats.Shutdown()
	s.nats.WaitForShutdown()
}
