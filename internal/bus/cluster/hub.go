// Package cluster connects managers over a NATS cluster. Each manager joins that cluster with a
// NATS server in its own process (package natsd). Only this package imports the NATS client and
// defines subjects. Units do not use NATS, and no package that runs inside a TEE imports this
// one.
//
// [Attach] makes the [Hub] of a manager. The NATS cluster is untrusted, and its operator can
// send any message. Messages are hints and sealed bytes, a manager verifies the certificates of
// each announced unit ([VerifyUnit]), and malformed messages are dropped.
package cluster

import (
	"context"
	"crypto/rand"
	"crypto/x509"
	"encoding/binary"
	"fmt"
	"net"
	"strings"
	"time"

	"github.com/cohort-tee/cohort/internal/bus"
	"github.com/cohort-tee/cohort/internal/wire"
	"github.com/nats-io/nats.go"
)

// Subjects. The cluster follows push and ask, a random name follows inbox.
const (
	subjectPush  = "cohort.push."  // batch of items
	subjectAsk   = "cohort.ask."   // request: session id; response: item, or no response
	subjectUnit  = "cohort.unit"   // certificates of a unit and its heartbeat
	subjectClaim = "cohort.claim"  // first ‖ count
	subjectInbox = "cohort.inbox." // responses
)

// maxUnit is the maximum size of a unit's announcement in bytes: two certificates, whose largest
// part is the private extension, and a heartbeat.
const maxUnit = 80 << 10

// copyTimeout limits the wait for a copy from other managers.
const copyTimeout = 50 * time.Millisecond

// Server is the embedded NATS server, to which the manager connects in process.
type Server interface{ InProcessConn() (net.Conn, error) }

// Handlers are a manager's handlers of other managers' messages. Each handler is called from a
// goroutine of its own.
type Handlers struct {
	Item  func(bus.Cluster, bus.Item) // an item from a unit of another manager
	Claim func(bus.Range)             // session numbers that another manager has reserved
	Pull  func(bus.Cluster, wire.SessionID) (bus.Item, bool)
	// Unit receives the unverified certificates and the heartbeat of a unit that is connected to
	// another manager.
	Unit func(leaf, cross []byte, b bus.Heartbeat)
}

// Hub is the manager's connection to the other managers. It is safe for concurrent use.
type Hub struct {
	nc *nats.Conn
}

// Attach connects a manager to its embedded server and subscribes its handlers. The caller ends
// the Hub with [Hub.Close].
func Attach(s Server, d Handlers) (*Hub, error) {
	nc, err := nats.Connect("nats://embedded", nats.InProcessServer(s), nats.NoEcho(), nats.CustomInboxPrefix(subjectInbox+rand.Text()),
		nats.MaxReconnects(-1), nats.IgnoreAuthErrorAbort(), nats.IgnoreDiscoveredServers(),
		nats.ErrorHandler(func(*nats.Conn, *nats.Subscription, error) {}))
	if err != nil {
		return nil, fmt.Errorf("attaching to NATS: %w", err)
	}
	for subject, f := range map[string]nats.MsgHandler{
		subjectPush + "*": func(m *nats.Msg) { forEachItem(m.Subject, m.Data, d.Item) },
		subjectAsk + "*":  d.respondCopy, subjectUnit: d.handleUnit, subjectClaim: d.handleClaim,
	} {
		if _, err := nc.Subscribe(subject, f); err != nil {
			nc.Close()
			return nil, fmt.Errorf("subscribing to %s: %w", subject, err)
		}
	}
	if err := nc.Flush(); err != nil {
		nc.Close()
		return nil, fmt.Errorf("attaching to NATS: %w", err)
	}
	return &Hub{nc: nc}, nil
}

// Close disconnects, which ends the handlers.
func (h *Hub) Close() { h.nc.Close() }

// PushBatch sends a batch of items, at most [bus.MaxBatch] bytes, to the other managers. It does
// not retain the batch.
func (h *Hub) PushBatch(c bus.Cluster, batch []byte) error {
	return h.nc.Publish(subjectPush+c.String(), batch)
}

// AnnounceRanges announces the session numbers that this manager has reserved to the other
// managers.
func (h *Hub) AnnounceRanges(r bus.Range) error {
	return h.nc.Publish(subjectClaim, binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint64(nil, r.First), r.Count))
}

// AnnounceUnit announces a unit that is connected to this manager to the other managers.
func (h *Hub) AnnounceUnit(u bus.Unit, b bus.Heartbeat) error {
	body, err := b.Append(nil)
	if err != nil {
		return err
	}
	return h.nc.Publish(subjectUnit, wire.Frame(wire.LabelBusUnit, u.Leaf, u.Cross, body))
}

// RequestCopy requests the copy of a session from the other managers, and waits for at most
// copyTimeout.
func (h *Hub) RequestCopy(ctx context.Context, c bus.Cluster, s wire.SessionID) (bus.Item, bool) {
	ctx, cancel := context.WithTimeout(ctx, copyTimeout)
	defer cancel()
	m, err := h.nc.RequestWithContext(ctx, subjectAsk+c.String(), s[:])
	if err != nil {
		return bus.Item{}, false
	}
	item, rest, err := bus.NextItem(m.Data)
	return item, err == nil && len(rest) == 0 && item.Session == s
}

// respondCopy responds with the copy of a session. If there is no copy it does not respond.
func (d Handlers) respondCopy(m *nats.Msg) {
	c, ok := clusterOfSubject(m.Subject, subjectAsk)
	if !ok || len(m.Data) != len(wire.SessionID{}) || !strings.HasPrefix(m.Reply, subjectInbox) {
		return
	}
	if item, found := d.Pull(c, wire.SessionID(m.Data)); found {
		_ = m.Respond(item.Append(nil)) // if the response is lost, the unit repeats its request
	}
}

func (d Handlers) handleUnit(m *nats.Msg) {
	if leaf, cross, b, err := parseUnit(m.Data); err == nil {
		d.Unit(leaf, cross, b)
	}
}

// parseUnit parses an announcement. Its error has the reason [wire.Malformed].
func parseUnit(message []byte) (leaf, cross []byte, b bus.Heartbeat, err error) {
	var fields [3][]byte
	if len(message) > maxUnit {
		return nil, nil, b, wire.Refuse(wire.Malformed, "announced unit: size in bytes", len(message), maxUnit)
	}
	if err := wire.UnframeInto(fields[:], wire.LabelBusUnit, message); err != nil {
		return nil, nil, b, err
	}
	b, err = bus.ParseHeartbeat(fields[2])
	return fields[0], fields[1], b, err
}

// VerifyUnit is [bus.UnitOf] for the certificates of an announced unit. If known returns a unit
// for the id and certificates, VerifyUnit checks only that they have not expired. It refuses
// malformed certificates with [wire.Malformed], and expired ones with [wire.Expired].
func VerifyUnit(leaf, cross []byte, known func(id wire.UnitID, leaf, cross []byte) (bus.Unit, bool), roots *x509.CertPool, at time.Time) (bus.Unit, error) {
	first, err := x509.ParseCertificate(leaf)
	if err != nil {
		return bus.Unit{}, fmt.Errorf("%w: %w", wire.Refuse(wire.Malformed, "announced unit: size of the leaf in bytes", len(leaf), "a certificate in DER"), err)
	}
	if u, ok := known(wire.UnitIDOf(first.RawSubjectPublicKeyInfo), leaf, cross); ok {
		if at.After(u.NotAfter) {
			return bus.Unit{}, wire.Refuse(wire.Expired, "announced unit: end of the certificate", u.NotAfter, "a later time")
		}
		return u, nil
	}
	second, err := x509.ParseCertificate(cross)
	if err != nil {
		return bus.Unit{}, fmt.Errorf("%w: %w", wire.Refuse(wire.Malformed, "announced unit: size of the cross-certificate in bytes", len(cross), "a certificate in DER"), err)
	}
	return bus.UnitOf([]*x509.Certificate{first, second}, roots, at)
}

func (d Handlers) handleClaim(m *nats.Msg) {
	if len(m.Data) != 16 {
		return
	}
	r := bus.Range{First: binary.BigEndian.Uint64(m.Data), Count: binary.BigEndian.Uint64(m.Data[8:])}
	if r.Count > 0 && r.First+r.Count > r.First {
		d.Claim(r)
	}
}

// forEachItem calls f with the items of a batch, up to the first malformed item.
func forEachItem(subject string, rest []byte, f func(bus.Cluster, bus.Item)) {
	c, ok := clusterOfSubject(subject, subjectPush)
	for ok && len(rest) > 0 {
		var item bus.Item
		var err error
		if item, rest, err = bus.NextItem(rest); err != nil {
			return
		}
		f(c, item)
	}
}

// clusterOfSubject parses the cluster in a subject.
func clusterOfSubject(subject, prefix string) (bus.Cluster, bool) {
	digits, ok := strings.CutPrefix(subject, prefix)
	c, known := bus.ParseCluster(digits)
	return c, ok && known
}
