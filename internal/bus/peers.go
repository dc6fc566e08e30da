package bus

import (
	"encoding/binary"

	"github.com/nats-io/nats.go"
)

// Peers are what a manager does with the messages of other managers, which it
// meets over a NATS cluster. They are hints like those of units. Each is called
// from one goroutine of its own.
type Peers struct {
	Item  func(Cluster, Item) // another manager pushed it to all units
	Claim func(Range)         // another manager gives numbers out of it
	There func() bool         // whether any other may be reached now
}

// OwnSubjects are those on which units speak to their own manager and to no
// other: each manager relays, stores and counts for its own units.
func OwnSubjects() []string {
	return []string{subjectSeal + ">", subjectPull + ">", subjectRange + ">"}
}

// Claim tells other managers which numbers this one gives out.
func (h *Hub) Claim(r Range) error {
	return h.nc.Publish(subjectClaim, binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint64(nil, r.First), r.Count))
}

func (d Duties) pushed(m *nats.Msg) { batchOf(m.Subject, m.Data, d.Peers.Item) }

// batchOf reads a batch up to what is no item.
func batchOf(subject string, rest []byte, f func(Cluster, Item)) {
	c, _, ok := clusterIn(subject, subjectPush)
	for ok && len(rest) > 0 {
		var item Item
		var err error
		if item, rest, err = NextItem(rest); err != nil {
			return
		}
		f(c, item)
	}
}

func (d Duties) claim(m *nats.Msg) {
	if len(m.Data) != 16 {
		return
	}
	r := Range{First: binary.BigEndian.Uint64(m.Data), Count: binary.BigEndian.Uint64(m.Data[8:])}
	if r.Count > 0 && r.First+r.Count > r.First {
		d.Peers.Claim(r)
	}
}

// asked answers, in place of another manager, a unit whose session that one does
// not have; without the session it is silent.
func (d Duties) asked(m *nats.Msg) {
	c, id, ok := pullOf(m, subjectAsk)
	if !ok {
		return
	}
	if item, found := d.Pull(c, id); found {
		_ = m.Respond(item.Append(nil)) // the unit asks again when this is lost
	}
}

// passOn lets other managers answer a unit: whoever has the session does.
func (d Duties) passOn(h *Hub, m *nats.Msg, c Cluster) bool {
	if d.Peers == nil || !d.Peers.There() {
		return false
	}
	return h.nc.PublishRequest(subjectAsk+c.String(), m.Reply, m.Data) == nil
}
