package bus

import (
	"bytes"
	"crypto/x509"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/cohort-tee/cohort/internal/wire"
	"github.com/nats-io/nats.go"
)

var sample = Item{Kind: Sealed, Session: wire.SessionID{1, 2, 3}, Expiry: 1795000000, Bytes: []byte("sealed")}

func TestItemRefusals(t *testing.T) {
	change := func(at int, to byte) []byte {
		b := sample.Append(nil)
		b[at] = to
		return b
	}
	for _, c := range []struct {
		name string
		b    []byte
	}{
		{"nothing", nil},
		{"a cut head", sample.Append(nil)[:itemHead-1]},
		{"a cut item", sample.Append(nil)[:sample.Size()-1]},
		{"kind 0", change(0, 0)},
		{"kind 3", change(0, 3)},
		{"no bytes", Item{Kind: Sealed}.Append(nil)},
		{"too many bytes", Item{Kind: Sealed, Bytes: make([]byte, MaxSealed+1)}.Append(nil)},
		{"a huge length", change(33, 0xff)},
	} {
		t.Run(c.name, func(t *testing.T) {
			if _, _, err := NextItem(c.b); !errors.Is(err, wire.Malformed) {
				t.Errorf("got %v, want %v", err, wire.Malformed)
			}
		})
	}
	if _, err := oneItem(append(sample.Append(nil), 0)); !errors.Is(err, wire.Malformed) {
		t.Errorf("a byte behind it: got %v, want %v", err, wire.Malformed)
	}
	largest := Item{Kind: Tombstone, Bytes: make([]byte, MaxSealed)}
	if _, err := oneItem(largest.Append(nil)); err != nil {
		t.Errorf("the largest: %v", err)
	}
}

func FuzzNextItem(f *testing.F) {
	f.Add(sample.Append(nil))
	f.Add(sample.Append(sample.Append(nil)))
	f.Fuzz(func(t *testing.T, b []byte) {
		item, rest, err := NextItem(b)
		if err != nil {
			if !errors.Is(err, wire.Malformed) {
				t.Fatalf("got %v, want %v", err, wire.Malformed)
			}
			return
		}
		if again := append(item.Append(nil), rest...); !bytes.Equal(again, b) {
			t.Errorf("another encoding was read: got %x, want %x", b, again)
		}
	})
}

// TestDutiesDrop is the table of messages that a manager takes for noise. The
// server would let none of them through but those of a unit gone mad.
func TestDutiesDrop(t *testing.T) {
	cluster, unit := Cluster{7}, wire.UnitID{8}
	beats, items := subjectBeat+cluster.String()+"."+unit.String(), subjectSeal+cluster.String()
	for _, c := range []struct {
		name    string
		subject string
		data    string
		took    bool
	}{
		{"a beat", beats, `{"address":"a:1"}`, true},
		{"a beat that is no JSON", beats, `{`, false},
		{"a long beat", beats, `{"address":"` + strings.Repeat("a", MaxBeat) + `"}`, false},
		{"a beat of half a unit", beats[:len(beats)-2], `{}`, false},
		{"a beat of nobody", subjectBeat + cluster.String(), `{}`, false},
		{"a beat in capitals", subjectBeat + strings.ToUpper(Cluster{0xab}.String()) + "." + unit.String(), `{}`, false},
		{"an item", items, string(sample.Append(nil)), true},
		{"half an item", items, string(sample.Append(nil)[:20]), false},
		{"two items", items, string(sample.Append(sample.Append(nil))), false},
		{"an item of no cluster", subjectSeal + "x", string(sample.Append(nil)), false},
	} {
		t.Run(c.name, func(t *testing.T) {
			took := false
			d := Duties{
				Beat: func(gotCluster Cluster, got wire.UnitID, _ Beat) { took = gotCluster == cluster && got == unit },
				Item: func(got Cluster, _ Item) { took = got == cluster },
			}
			m := &nats.Msg{Subject: c.subject, Data: []byte(c.data)}
			if strings.HasPrefix(c.subject, subjectBeat) {
				d.beat(m)
			} else {
				d.item(m)
			}
			if took != c.took {
				t.Errorf("taken: got %v, want %v", took, c.took)
			}
		})
	}
}

func TestReconnectDelayIsBoundedAndSpread(t *testing.T) {
	seen := map[time.Duration]bool{}
	for attempt := range 100 {
		d := reconnectDelay(attempt)
		if d < 20*time.Millisecond || d > reconnectMost {
			t.Errorf("attempt %d: got %v, want at most %v", attempt, d, reconnectMost)
		}
		seen[d] = true
	}
	if len(seen) < 50 {
		t.Errorf("got %d delays in 100 attempts, want them spread", len(seen))
	}
}

func TestConnectRefusals(t *testing.T) {
	if _, err := Connect(Config{URL: "tls://127.0.0.1:1"}); !errors.Is(err, wire.BadRequest) {
		t.Errorf("without TLS: got %v, want %v", err, wire.BadRequest)
	}
}

func TestCheckChainRefusesNothing(t *testing.T) {
	for _, chain := range [][]*x509.Certificate{nil, {{}}, {{}, {}, {}}} {
		if _, err := CheckChain(chain, x509.NewCertPool(), time.Now()); !errors.Is(err, wire.BadChain) {
			t.Errorf("%d certificates: got %v, want %v", len(chain), err, wire.BadChain)
		}
	}
	if _, err := CheckChain([]*x509.Certificate{{}, {}}, nil, time.Now()); !errors.Is(err, wire.BadChain) {
		t.Errorf("no roots: got %v, want %v", err, wire.BadChain)
	}
}
