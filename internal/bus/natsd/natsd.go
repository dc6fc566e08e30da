// Package natsd is the NATS server inside a cluster manager that has others
// beside it. It listens nowhere: the manager reaches it in process, and it joins
// an external NATS cluster as a leaf node ([Join]), over which managers exchange
// what package cluster sends. No unit connects to it, and no program that runs
// inside a TEE imports it.
//
// It trusts nothing that comes over the link and bounds it. It has no store, no
// monitoring port, no system account and no cluster of its own.
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

// Bounds of the server.
const (
	startTime  = 10 * time.Second // it is up within this
	writeTime  = 2 * time.Second  // a link that takes nothing for so long is cut, and made again
	maxPending = 64 << 20         // bytes that wait for the link
	maxMessage = 128 << 10        // bytes: a batch, or a unit's certificates
	pingEvery  = 5 * time.Second
)

// Server is a running server. It is safe for concurrent use.
type Server struct {
	nats *server.Server
}

// Start starts a server and begins to join. The caller ends it with
// [Server.Stop]. It refuses, with [wire.BadRequest], a Join without a URL and
// one that [Join.Check] refuses.
func Start(join Join, log *slog.Logger) (*Server, error) {
	if len(join.URLs) == 0 {
		return nil, wire.Refuse(wire.BadRequest, "nats: URL", "none", "one of the cluster to join")
	}
	o := &server.Options{
		ServerName: "cohort-" + rand.Text(), DontListen: true,
		NoSigs: true, NoSystemAccount: true, DisableShortFirstPing: true,
		MaxPayload: maxMessage, MaxPending: maxPending,
		WriteDeadline: writeTime, PingInterval: pingEvery, MaxPingsOut: 2,
	}
	if err := join.apply(o); err != nil {
		return nil, err
	}
	n, err := server.NewServer(o)
	if err != nil {
		return nil, fmt.Errorf("making the NATS server: %w", err)
	}
	said := &logger{log: log}
	n.SetLoggerV2(said, false, false, false)
	n.Start()
	s := &Server{nats: n}
	for begun := time.Now(); !n.ReadyForConnections(50 * time.Millisecond); {
		if cause := said.fatal(); cause != nil || time.Since(begun) > startTime {
			s.Stop()
			return nil, fmt.Errorf("starting the NATS server: %w", errors.Join(cause, errors.New("it is not up")))
		}
	}
	return s, nil
}

// InProcessConn is a connection of the manager itself.
func (s *Server) InProcessConn() (net.Conn, error) { return s.nats.InProcessConn() }

// Stop cuts all connections and returns when nothing of the server runs.
func (s *Server) Stop() {
	s.nats.Shutdown()
	s.nats.WaitForShutdown()
}
