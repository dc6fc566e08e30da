package cluster

import (
	"bytes"
	"errors"
	"strings"
	"testing"

	"github.com/cohort-tee/cohort/internal/bus"
	"github.com/cohort-tee/cohort/internal/wire"
	"github.com/nats-io/nats.go"
)

// TestDutiesDrop: a manager accepts good messages and drops malformed ones.
func TestDutiesDrop(t *testing.T) {
	cluster := bus.Cluster{0xab}
	item := bus.Item{Kind: bus.Sealed, Session: wire.SessionID{1}, Bytes: []byte("x")}.Append(nil)
	body, err := bus.Heartbeat{Address: "a:1"}.Append(nil)
	if err != nil {
		t.Fatal(err)
	}
	unit := wire.Frame(wire.LabelBusUnit, []byte("leaf"), []byte("cross"), body)
	push := subjectPush + cluster.String()
	for _, c := range []struct {
		name    string
		subject string
		data    []byte
		took    int
	}{
		{"an item", push, item, 1},
		{"two items", push, append(bytes.Clone(item), item...), 2},
		{"an item and a half", push, append(bytes.Clone(item), item[:9]...), 1},
		{"an item of no cluster", subjectPush + "x", item, 0},
		{"an item of a cluster in capitals", subjectPush + strings.ToUpper(cluster.String()), item, 0},
		{"a unit", subjectUnit, unit, 1},
		{"a unit and a byte", subjectUnit, append(bytes.Clone(unit), 0), 0},
		{"a unit without a heartbeat", subjectUnit, wire.Frame(wire.LabelBusUnit, []byte("leaf"), []byte("cross"), nil), 0},
		{"a unit of many bytes", subjectUnit, wire.Frame(wire.LabelBusUnit, make([]byte, maxUnit), nil, body), 0},
		{"a claim", subjectClaim, append(wire.Uint64(1), wire.Uint64(2)...), 1},
		{"a claim of nothing", subjectClaim, make([]byte, 16), 0},
		{"a claim that wraps", subjectClaim, bytes.Repeat([]byte{0xff}, 16), 0},
		{"a claim that is cut", subjectClaim, make([]byte, 15), 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			took := 0
			d := Handlers{
				Item:  func(got bus.Cluster, _ bus.Item) { took++ },
				Unit:  func(_, _ []byte, _ bus.Heartbeat) { took++ },
				Claim: func(bus.Range) { took++ },
			}
			m := &nats.Msg{Subject: c.subject, Data: c.data}
			switch {
			case strings.HasPrefix(c.subject, subjectPush):
				forEachItem(m.Subject, m.Data, d.Item)
			case c.subject == subjectUnit:
				d.handleUnit(m)
			default:
				d.handleClaim(m)
			}
			if took != c.took {
				t.Errorf("taken: got %d, want %d", took, c.took)
			}
		})
	}
}

func FuzzParseUnit(f *testing.F) {
	body, _ := bus.Heartbeat{Address: "a:1", InFlight: 3, Ready: true}.Append(nil)
	f.Add(wire.Frame(wire.LabelBusUnit, []byte("leaf"), []byte("cross"), body))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, message []byte) {
		leaf, cross, b, err := parseUnit(message)
		if err != nil {
			if !errors.Is(err, wire.Malformed) {
				t.Fatalf("got %v, want %v", err, wire.Malformed)
			}
			return
		}
		body, err := b.Append(nil)
		if again := wire.Frame(wire.LabelBusUnit, leaf, cross, body); err != nil || !bytes.Equal(again, message) {
			t.Errorf("another encoding was read: got %x, want %x (%v)", again, message, err)
		}
	})
}
