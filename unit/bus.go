package unit

import (
	"context"
	"crypto/tls"
	"errors"
	"log/slog"
	"time"

	"github.com/cohort-tee/cohort/internal/bus"
	"github.com/cohort-tee/cohort/internal/retry"
	"github.com/cohort-tee/cohort/internal/wire"
)

// Times of a unit's bus connection.
const (
	reportInterval  = 100 * time.Millisecond // between checks whether the unit's state changed
	handOverTimeout = 2 * time.Second        // to publish sessions when the unit stops
)

// runBus connects the unit to its managers, again after errors, until ctx is done.
func (u *Unit) runBus(ctx context.Context) {
	for ctx.Err() == nil {
		if err := u.joinCluster(ctx, u.enrolled.Load()); err != nil {
			u.config.Log.Warn("no manager", "unit", u.id, "reason", wire.ReasonOf(err), "cause", err)
			_ = retry.Sleep(ctx, authorityBackoff.Max) // the loop checks ctx
		}
	}
}

// joinCluster connects to the managers as a unit of the identity in e, until the unit's identity
// changes or ctx is done.
func (u *Unit) joinCluster(ctx context.Context, e *enrolment) error {
	conn, err := bus.Connect(bus.Config{URL: u.config.Manager.URL, TLS: u.busTLS(), Ended: u.managerEnded})
	if err != nil {
		return err
	}
	defer conn.Close()
	conn.Subscribe(u.handlePushed)
	u.cluster.relay.SetConn(conn)
	defer u.cluster.relay.SetConn(nil)
	u.report(ctx, conn, e)
	return nil
}

// managerEnded logs the end of a connection to a manager. Malformed messages of the manager
// cause a warning; all other causes are routine.
func (u *Unit) managerEnded(manager string, err error) {
	level := slog.LevelDebug
	if errors.Is(err, wire.Malformed) {
		level = slog.LevelWarn
	}
	u.config.Log.Log(context.Background(), level, "connection to the manager ended", "unit", u.id, "manager", manager, "reason", wire.ReasonOf(err), "cause", err)
}

// busTLS returns a TLS configuration that presents the newest certificate of the signing key.
// The bus client adds the server name, from the URL of the manager.
func (u *Unit) busTLS() *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS13, RootCAs: u.config.Manager.CA,
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			e, err := u.currentEnrolment()
			if err != nil {
				return nil, err
			}
			return &tls.Certificate{Certificate: e.identity.Serving(e.unit), PrivateKey: u.signing}, nil
		},
	}
}

// handlePushed installs a session or tombstone that another unit sealed.
func (u *Unit) handlePushed(i bus.Item) {
	take := u.cluster.host.ImportSession
	if i.Kind == bus.Tombstone {
		take = u.cluster.host.Terminate
	}
	_, err := take(i.Bytes, u.currentTime())
	if errors.Is(err, wire.UnknownRing) {
		u.renewSoon()
	}
}

// report sends a heartbeat every second, and at once when the unit's readiness or address
// changes. It also requests ranges of session numbers.
func (u *Unit) report(ctx context.Context, conn *bus.Conn, e *enrolment) {
	ticker := time.NewTicker(reportInterval)
	defer ticker.Stop()
	var sent bus.Heartbeat
	quiet, asked := bus.HeartbeatInterval, bus.HeartbeatInterval // time since the last heartbeat, and since the last request for numbers
	for {
		select {
		case <-ctx.Done():
			sent.Ready = false
			_ = conn.SendHeartbeat(sent) // otherwise the gateway would still send requests to this unit for a while
			u.handOver()
			return
		case <-ticker.C:
		}
		now := u.enrolled.Load()
		if now.identity.ID != e.identity.ID {
			return
		}
		quiet, asked = quiet+reportInterval, asked+reportInterval
		if state := u.heartbeat(now); state.Ready != sent.Ready || state.Address != sent.Address || quiet >= bus.HeartbeatInterval {
			_ = conn.SendHeartbeat(state) // on an error, the next heartbeat has the same content
			sent, quiet = state, 0
		}
		if conn.Connected() && asked >= bus.HeartbeatInterval {
			asked = 0
			u.cluster.relay.Refill(ctx)
		}
	}
}

// handOver publishes sessions of which this unit may have the only copy. It seals sessions under
// ring keys of the preceding release again, because the next release cannot open them. If a
// session does not reach a manager in time, its client's ticket replaces it.
func (u *Unit) handOver() {
	ctx, cancel := context.WithTimeout(context.Background(), handOverTimeout)
	defer cancel()
	for left := 1; left > 0 && ctx.Err() == nil; {
		var sealed [][]byte
		sealed, left = u.resealSome()
		for _, s := range sealed {
			u.cluster.relay.PushWithin(ctx, s)
		}
	}
}

// heartbeat returns a heartbeat with the unit's current state.
func (u *Unit) heartbeat(e *enrolment) bus.Heartbeat {
	b := bus.Heartbeat{
		Inherits: e.ring.Inherited.Identity,
		InFlight: int(u.cluster.inFlight.Load()), Sessions: u.cluster.host.Stats(u.currentTime()).Sessions,
		Ready: u.cluster.serving.Load() > 0 && u.Ready() == nil,
	}
	if address := u.cluster.address.Load(); address != nil {
		b.Address = *address
	}
	return b
}
