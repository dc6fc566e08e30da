package systest

import (
	"io"
	"net"
	"net/http"
	"sync"
	"testing"
	"time"

	"github.com/cohort-tee/cohort/internal/testworld"
)

// forwarded returns the address of a TCP proxy, which dials its target for each connection.
// It copies each direction by pass until the test ends.
func forwarded(t *testing.T, to string, pass func(to io.Writer, from io.Reader)) (address string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			near, err := l.Accept()
			if err != nil {
				return
			}
			far, err := net.Dial("tcp", to)
			if err != nil {
				near.Close()
				continue
			}
			go func() { defer near.Close(); pass(near, far) }()
			go func() { defer far.Close(); pass(far, near) }()
		}
	}()
	return l.Addr().String()
}

// link is a TCP proxy that can swallow traffic, as a partitioned network does: it refuses
// and ends no connection.
type link struct {
	address string
	parted  sync.RWMutex // locked while it swallows traffic
}

func newLink(t *testing.T, to string) *link {
	t.Helper()
	l := &link{}
	l.address = forwarded(t, to, l.pass)
	return l
}

func (l *link) pass(to io.Writer, from io.Reader) {
	b := make([]byte, 16<<10)
	for {
		n, err := from.Read(b)
		l.parted.RLock()
		if n > 0 {
			_, _ = to.Write(b[:n])
		}
		l.parted.RUnlock()
		if err != nil {
			return
		}
	}
}

// TestManagerPartedFromAUnit: the network between the manager and one of three units is cut
// for a while. Requests that may be retried succeed at the other units and sessions open.
// When the network is back, the unit serves again without intervention.
func TestManagerPartedFromAUnit(t *testing.T) {
	waits(t)
	app := &service{seen: map[string]int{}}
	s := &storm{executed: app.executed, rate: 30, length: 8 * time.Second}
	parted := 5 * time.Second
	if full() {
		s.rate, s.length, parted = 200, 75*time.Second, time.Minute
	}
	c, units := shared(t, 2, time.Hour, app)
	l := testworld.Must(net.Listen("tcp", "127.0.0.1:0"))
	toBus, toUnit := newLink(t, c.manager.bus), newLink(t, l.Addr().String())
	config := c.UnitConfig("scoring", "scoring 1")
	config.Manager.URL, config.Address = "tls://"+toBus.address, toUnit.address
	far := c.replica(config, l, app)
	attended(t, append(units, far)...)
	s.channels = channels(c, 20)
	var faults sync.WaitGroup
	faults.Go(func() {
		time.Sleep(time.Second)
		toBus.parted.Lock()
		toUnit.parted.Lock()
		time.Sleep(parted / 2)
		_, err := call(t.Context(), c.OpenChannel(c.OpenConfig("scoring")), http.MethodPost, "while it is parted", "marked")
		if err != nil {
			t.Errorf("new session: %v", err)
		}
		time.Sleep(parted / 2)
		toBus.parted.Unlock()
		toUnit.parted.Unlock()
	})
	out := s.run(t)
	faults.Wait()
	s.judge(t, out)
	testworld.Within(t, 30*time.Second, "the unit to serve again", func() bool {
		id, err := call(t.Context(), s.channels[0], http.MethodGet, "whole again", "")
		return err == nil && id == far.Unit.ID().String()
	})
	if got, want := handshakes(s.channels), uint64(len(s.channels)); got != want {
		t.Errorf("got %d handshakes of %d channels, want one each", got, want)
	}
}
