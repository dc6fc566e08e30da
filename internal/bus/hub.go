package bus

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"net"
	"strings"

	"github.com/cohort-tee/cohort/internal/wire"
	"github.com/nats-io/nats.go"
)

// Server is the embedded server, as the manager reaches it in process.
type Server interface {
	InProcessConn() (net.Conn, error)
	Password() string // admits the manager
}

// Duties are what a manager does with the messages of units. Each is called
// from one goroutine of its own.
type Duties struct {
	Beat  func(Cluster, wire.UnitID, Beat)
	Item  func(Cluster, Item)
	Pull  func(Cluster, wire.SessionID) (Item, bool)
	Range func() (Range, error)
	Peers *Peers // nil: the manager meets no other
}

// Hub is the manager's end of the bus. It is safe for concurrent use.
type Hub struct {
	nc *nats.Conn
}

// managerName is the user name of the manager at its own server.
const managerName = "manager"

// Attach connects a manager to its server and begins its duties. The caller
// ends it with [Hub.Close].
func Attach(s Server, d Duties) (*Hub, error) {
	nc, err := nats.Connect("nats://embedded", nats.InProcessServer(s), nats.UserInfo(managerName, s.Password()), nats.NoEcho(),
		nats.MaxReconnects(-1), nats.IgnoreAuthErrorAbort(), nats.IgnoreDiscoveredServers(),
		nats.ErrorHandler(func(*nats.Conn, *nats.Subscription, error) {}))
	if err != nil {
		return nil, fmt.Errorf("attaching to the bus: %w", err)
	}
	h := &Hub{nc: nc}
	for subject, f := range d.handlers(h) {
		if _, err := nc.Subscribe(subject, f); err != nil {
			nc.Close()
			return nil, fmt.Errorf("subscribing to %s: %w", subject, err)
		}
	}
	if err := nc.Flush(); err != nil {
		nc.Close()
		return nil, fmt.Errorf("attaching to the bus: %w", err)
	}
	return h, nil
}

func (d Duties) handlers(h *Hub) map[string]nats.MsgHandler {
	all := map[string]nats.MsgHandler{
		subjectBeat + "*.*": d.beat,
		subjectSeal + "*":   d.item,
		subjectPull + "*":   func(m *nats.Msg) { d.pull(h, m) },
		subjectRange + "*":  d.numbers,
	}
	if d.Peers != nil {
		all[subjectPush+"*"], all[subjectAsk+"*"], all[subjectClaim] = d.pushed, d.asked, d.claim
	}
	return all
}

// Close ends the duties.
func (h *Hub) Close() { h.nc.Close() }

// Push sends a batch of items, at most [MaxMessage] bytes, to all units of a
// cluster. It keeps nothing of the batch.
func (h *Hub) Push(c Cluster, batch []byte) error {
	return h.nc.Publish(subjectPush+c.String(), batch)
}

// What a duty cannot read is dropped: it was a hint.

func (d Duties) beat(m *nats.Msg) {
	c, rest, ok := clusterIn(m.Subject, subjectBeat)
	var unit wire.UnitID
	var b Beat
	if !ok || unit.UnmarshalText([]byte(rest)) != nil || len(m.Data) > MaxBeat || json.Unmarshal(m.Data, &b) != nil {
		return
	}
	d.Beat(c, unit, b)
}

func (d Duties) item(m *nats.Msg) {
	c, _, ok := clusterIn(m.Subject, subjectSeal)
	item, err := oneItem(m.Data)
	if ok && err == nil {
		d.Item(c, item)
	}
}

func (d Duties) pull(h *Hub, m *nats.Msg) {
	c, id, ok := pullOf(m, subjectPull)
	if !ok {
		return
	}
	var answer []byte
	if item, found := d.Pull(c, id); found {
		answer = item.Append(nil)
	} else if d.passOn(h, m, c) {
		return
	}
	// The unit asks again when this is lost.
	_ = m.Respond(answer)
}

func (d Duties) numbers(m *nats.Msg) {
	if _, ok := asker(m, subjectRange); !ok {
		return
	}
	var answer []byte // empty when no range can be had
	if r, err := d.Range(); err == nil {
		answer = binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint64(nil, r.First), r.Count)
	}
	_ = m.Respond(answer)
}

// pullOf is the session that is asked for, and of which cluster.
func pullOf(m *nats.Msg, prefix string) (c Cluster, id wire.SessionID, ok bool) {
	c, ok = asker(m, prefix)
	if !ok || len(m.Data) != len(id) {
		return c, id, false
	}
	return c, wire.SessionID(m.Data), true
}

// asker is the cluster of a request. The manager may publish anywhere, so it
// answers only into inboxes of the cluster that asks: else a unit could have it
// speak to others in its place.
func asker(m *nats.Msg, prefix string) (Cluster, bool) {
	c, _, ok := clusterIn(m.Subject, prefix)
	return c, ok && strings.HasPrefix(m.Reply, subjectInbox+c.String()+".")
}
