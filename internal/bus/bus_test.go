package bus

import (
	"bytes"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"errors"
	"math"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/cohort-tee/cohort/internal/wire"
)

var sample = Item{Kind: Sealed, Session: wire.SessionID{1, 2, 3}, Expiry: 1795000000, Bytes: []byte("sealed")}

// vector is one frame of testdata/vectors/frames.json.
type vector struct {
	Name   string `json:"name"`
	From   string `json:"from"` // unit or manager
	Frame  string `json:"frame"`
	Expect string `json:"expect"` // ok, or the reason
}

func vectors(t testing.TB) []vector {
	t.Helper()
	text, err := os.ReadFile("testdata/vectors/frames.json")
	if err != nil {
		t.Fatal(err)
	}
	var file struct {
		Schema string   `json:"schema"`
		Frames []vector `json:"frames"`
	}
	if err := json.Unmarshal(text, &file); err != nil || file.Schema != "cohort/bus-vectors/v1" || len(file.Frames) < 30 {
		t.Fatalf("got %d vectors of %q, %v", len(file.Frames), file.Schema, err)
	}
	return file.Frames
}

// TestVectors parses each frame as its receiver does, and gets the result in the vector.
func TestVectors(t *testing.T) {
	for _, v := range vectors(t) {
		t.Run(v.Name, func(t *testing.T) {
			b, err := hex.DecodeString(v.Frame)
			if err != nil {
				t.Fatal(err)
			}
			err = asUnit(b)
			if v.From == "unit" {
				err = asManager(b)
			}
			if got := reasonOf(err); got != v.Expect {
				t.Errorf("got %s (%v), want %s", got, err, v.Expect)
			}
		})
	}
}

func reasonOf(err error) string {
	if err == nil {
		return "ok"
	}
	return string(wire.ReasonOf(err))
}

// asManager and asUnit parse frames as one of the two sides does, until a frame ends the
// connection.
func asManager(b []byte) error {
	s := &Server{config: ServerConfig{Handlers: Handlers{
		Heartbeat: func(Unit, Heartbeat) {}, Item: func(Unit, Item) {}, Range: func() (Range, error) { return Range{1, 1}, nil },
	}}}
	u := newUnitConn(s, nil, Unit{})
	u.pulls = make(chan struct{}) // always full, so no pull is passed on
	return each(b, func(k Kind, body []byte) error { return u.handleFrame(k, body, nil) })
}

func asUnit(b []byte) error {
	l := &link{conn: &Conn{}, pulls: map[wire.SessionID][]chan<- Item{}}
	return each(b, l.handleFrame)
}

func each(b []byte, take func(Kind, []byte) error) error {
	for len(b) > 0 {
		k, body, rest, err := nextFrame(b)
		if err == nil {
			err = take(k, body)
		}
		if err != nil {
			return err
		}
		b = rest
	}
	return nil
}

// TestSizes: every frame size, and every number in a body at both ends of its range, is accepted
// or refused correctly.
func TestSizes(t *testing.T) {
	for size := range 1 << 16 {
		got, err := frameSize([]byte{byte(size >> 8), byte(size)})
		if ok := size >= 1 && size <= MaxFrame-2; (err == nil) != ok || ok && got != size+2 || !ok && !errors.Is(err, wire.Malformed) {
			t.Fatalf("size %d: got %d, %v", size, got, err)
		}
	}
	ends := []uint64{0, 1, 1 << 31, 1<<32 - 1, 1<<63 - 1, 1 << 63, 1<<64 - 2, 1<<64 - 1}
	for _, first := range ends {
		for _, count := range ends {
			r, err := parseRange(append(wire.Uint64(first), wire.Uint64(count)...))
			none := first == 0 && count == 0
			good := count > 0 && first < 1<<63 && count <= 1<<63-first
			if (err == nil) != (none || good) || err == nil && r != (Range{first, count}) {
				t.Errorf("range %d, %d: got %v, %v", first, count, r, err)
			}
		}
		item := sample
		item.Expiry = first
		if got, _, err := NextItem(item.Append(nil)); err != nil || got.Expiry != first {
			t.Errorf("expiry %d: got %d, %v", first, got.Expiry, err)
		}
	}
	for _, n := range []uint32{0, 1, math.MaxInt32, 1 << 31, math.MaxUint32} {
		body, err := Heartbeat{Address: "a:1"}.Append(nil)
		if err != nil {
			t.Fatal(err)
		}
		copy(body[1:], wire.Uint64(uint64(n)<<32|uint64(n)))
		got, err := ParseHeartbeat(body)
		if (err == nil) != (n <= math.MaxInt32) || err == nil && (got.InFlight != int(n) || got.Sessions != int(n)) {
			t.Errorf("counts %d: got %v, %v", n, got, err)
		}
	}
}

func TestBeatRefusals(t *testing.T) {
	for _, b := range []Heartbeat{
		{InFlight: -1}, {Sessions: math.MaxInt32 + 1}, {Address: "host"}, {Address: ":1"}, {Address: "a:0"}, {Address: "a:65536"},
		{Address: "a:x"}, {Address: "a b:1"}, {Address: "ä:1"}, {Address: strings.Repeat("a", maxAddress) + ":1"},
	} {
		if _, err := b.Append(nil); !errors.Is(err, wire.BadRequest) {
			t.Errorf("%+v: got %v, want %v", b, err, wire.BadRequest)
		}
	}
}

func TestItemRefusals(t *testing.T) {
	for _, c := range []struct {
		name string
		b    []byte
	}{
		{"nothing", nil},
		{"a cut head", sample.Append(nil)[:frameHead-1]},
		{"a cut item", sample.Append(nil)[:sample.ByteSize()-1]},
		{"another kind", appendFrame(nil, kindCopy, make([]byte, 40))},
		{"no bytes", Item{Kind: Sealed}.Append(nil)},
		{"too many bytes", Item{Kind: Sealed, Bytes: make([]byte, MaxSealed+1)}.Append(nil)},
		{"a huge size", append([]byte{0xff, 0xff}, make([]byte, 1<<16)...)},
	} {
		t.Run(c.name, func(t *testing.T) {
			if _, _, err := NextItem(c.b); !errors.Is(err, wire.Malformed) {
				t.Errorf("got %v, want %v", err, wire.Malformed)
			}
		})
	}
	largest := Item{Kind: Tombstone, Bytes: make([]byte, MaxSealed)}
	if _, rest, err := NextItem(largest.Append(nil)); err != nil || len(rest) != 0 {
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

// FuzzFrames feeds fuzzed bytes to both sides: each refuses them with a reason, and an accepted
// heartbeat has its one encoding.
func FuzzFrames(f *testing.F) {
	for _, v := range vectors(f) {
		if b, err := hex.DecodeString(v.Frame); err == nil {
			f.Add(b)
		}
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		for side, err := range map[string]error{"manager": asManager(b), "unit": asUnit(b)} {
			if err != nil && wire.ReasonOf(err) != wire.Malformed && wire.ReasonOf(err) != wire.Unavailable {
				t.Errorf("as %s: got %v, want a reason", side, err)
			}
		}
		in := newFrames(bytes.NewReader(b), func(time.Time) error { return nil })
		for rest := b; ; {
			k, body, more, slow := nextFrame(rest)
			gotKind, gotBody, err := in.readFrame()
			if (slow == nil) != (err == nil) || err == nil && (k != gotKind || !bytes.Equal(body, gotBody)) {
				t.Fatalf("read off a connection %d %x (%v), off bytes %d %x (%v)", gotKind, gotBody, err, k, body, slow)
			}
			if err != nil {
				break
			}
			if beat, err := ParseHeartbeat(body); err == nil {
				if again, err := beat.Append(nil); err != nil || !bytes.Equal(again, body) {
					t.Errorf("another encoding was read: got %x, want %x (%v)", body, again, err)
				}
			}
			rest = more
		}
	})
}

func TestBucket(t *testing.T) {
	now := time.Now()
	b := newBucket(10, 20)
	taken := 0
	for range 100 {
		if b.tryTake(now) {
			taken++
		}
	}
	if taken != 20 || b.tryTake(now.Add(-time.Hour)) || !b.tryTake(now.Add(time.Second)) {
		t.Errorf("got %d at once, want 20, then one after a second and none for a clock that goes back", taken)
	}
	owing := newBucket(100, 100)
	if got := owing.reserve(100, now); got != 0 {
		t.Errorf("within the burst: got %v, want 0", got)
	}
	if got := owing.reserve(50, now); got != 500*time.Millisecond {
		t.Errorf("beyond it: got %v, want 500ms", got)
	}
}

func TestConnectRefusals(t *testing.T) {
	if _, err := Connect(Config{URL: "tls://127.0.0.1:1"}); !errors.Is(err, wire.BadRequest) {
		t.Errorf("without TLS: got %v, want %v", err, wire.BadRequest)
	}
	for _, url := range []string{"", "127.0.0.1:1", "nats://127.0.0.1:1", "tls://127.0.0.1", "tls://u@h:1", "tls://h:1/path", "tls://h:1,"} {
		if ValidURLs(url) {
			t.Errorf("%q: got ok", url)
		}
	}
	if !ValidURLs("tls://h:1,tls://[::1]:2") {
		t.Error("two managers: got refused")
	}
}

func TestCheckChainRefusesNothing(t *testing.T) {
	for _, chain := range [][]*x509.Certificate{nil, {{}}, {{}, {}, {}}} {
		if _, err := VerifyChain(chain, x509.NewCertPool(), time.Now()); !errors.Is(err, wire.BadChain) {
			t.Errorf("%d certificates: got %v, want %v", len(chain), err, wire.BadChain)
		}
	}
	if _, err := VerifyChain([]*x509.Certificate{{}, {}}, nil, time.Now()); !errors.Is(err, wire.BadChain) {
		t.Errorf("no roots: got %v, want %v", err, wire.BadChain)
	}
}
