package cli

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/cohort-tee/cohort/attest/soft"
	"github.com/cohort-tee/cohort/client"
	"github.com/cohort-tee/cohort/internal/wire"
)

// Times of a cut.
const (
	cutTime   = 5 * time.Second // after the adoption nothing of the unit is accepted any more
	quietTime = 1500 * time.Millisecond
)

// cable is a TCP connection to an address that can be cut: nothing is passed on from
// then on, in any connection, and nothing ends.
type cable struct {
	listener net.Listener
	to       string
	passing  sync.WaitGroup
	cut      chan struct{}

	mu    sync.Mutex // guards conns
	conns []net.Conn
}

func newCable(to string) (*cable, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	c := &cable{listener: l, to: to, cut: make(chan struct{})}
	c.passing.Go(c.accept)
	return c, nil
}

func (c *cable) accept() {
	for {
		near, err := c.listener.Accept()
		if err != nil {
			return // closed
		}
		far, err := net.DialTimeout("tcp", c.to, stepTime)
		if err != nil {
			near.Close()
			continue
		}
		c.mu.Lock()
		c.conns = append(c.conns, near, far)
		c.mu.Unlock()
		for _, way := range [][2]net.Conn{{near, far}, {far, near}} {
			c.passing.Go(func() { c.pass(way[0], way[1]) })
		}
	}
}

// pass copies from one end to the other until the cable is cut.
func (c *cable) pass(to, from net.Conn) {
	b := make([]byte, 16<<10)
	for {
		n, err := from.Read(b)
		select {
		case <-c.cut:
			return
		default:
		}
		if n > 0 {
			if _, err := to.Write(b[:n]); err != nil {
				return
			}
		}
		if err != nil {
			to.Close()
			return
		}
	}
}

func (c *cable) close() {
	c.listener.Close()
	c.mu.Lock()
	for _, conn := range c.conns {
		conn.Close()
	}
	c.mu.Unlock()
	c.passing.Wait()
}

// twin is a unit that goes on whatever policy says: once its cable to the authority is
// cut no later policy reaches it, and its certificates are good for an hour.
type twin struct {
	newcomer
	id      wire.UnitID
	process *soft.Process
	cable   *cable
	gateway *middleman // brings everything to this unit
}

// newTwin starts a unit with a program in a TEE. Its caller closes it.
func (c checker) newTwin(ctx context.Context, dir, socket string, program []string) (_ *twin, err error) {
	t := &twin{}
	defer func() {
		if err != nil {
			err = errors.Join(err, t.close())
		}
	}()
	if t.cable, err = newCable(strings.TrimPrefix(c.cluster.Authority, "https://")); err != nil {
		return nil, err
	}
	if t.newcomer, err = c.newUnit(dir, "https://"+t.cable.listener.Addr().String(), program); err != nil {
		return nil, err
	}
	if t.process, err = t.launch.start(ctx, socket); err != nil {
		return nil, err
	}
	if err := comesUp(ctx, t.newcomer); err != nil {
		return nil, err
	}
	if t.id, err = unitAt(ctx, clusterUnit{Address: t.listen, Health: t.health}); err != nil {
		return nil, err
	}
	t.gateway, err = newMiddleman("https://" + t.listen)
	return t, err
}

func (t *twin) close() error {
	var faults []error
	if t.gateway != nil {
		t.gateway.close()
	}
	if t.process != nil {
		faults = append(faults, ended(t.process))
	}
	if t.cable != nil {
		t.cable.close()
	}
	if t.log != nil {
		faults = append(faults, t.log.Close())
	}
	return errors.Join(faults...)
}

// use is one way of using a unit: ask fails unless the unit's response is accepted.
type use struct {
	name string
	ask  func(context.Context) error
	end  func()
}

// uses are how clients of ours use a unit of the task: in a session, by a receipt, by a
// one-off request, and over TLS on a connection that is kept.
func (c checker) uses(ctx context.Context, t *twin) (all []use, err error) {
	ctx, cancel := context.WithTimeout(ctx, stepTime)
	defer cancel()
	trust, err := c.trust(ctx)
	if err != nil {
		return nil, err
	}
	url := "https://" + c.cluster.ServerName + "/"
	ch, err := client.Open(ctx, client.OpenConfig{Trust: trust, Gateway: t.gateway.url, Receipts: true})
	if err != nil {
		return nil, err
	}
	all = append(all, use{"sessions", func(ctx context.Context) error { return call(ctx, ch, url) }, func() {
		ending, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		ch.Close(ending)
	}})
	s := &session{Channel: ch, url: url}
	all = append(all, use{"receipts", func(ctx context.Context) error { _, _, err := s.ask(ctx); return err }, func() {}})
	o, err := client.NewOneOff(ctx, client.OneOffConfig{Trust: trust, Gateway: t.gateway.url})
	if err != nil {
		return all, err
	}
	all = append(all, use{"one-offs", func(ctx context.Context) error { _, err := c.once(ctx, o, http.MethodGet); return err }, o.Close})
	direct, err := client.New(client.Config{Trust: trust, ServerName: c.cluster.ServerName, Addresses: []string{t.listen}})
	if err != nil {
		return all, err
	}
	return append(all, use{"TLS", func(ctx context.Context) error { return call(ctx, direct, url) }, direct.Close}), nil
}

// watched is when a use was accepted last.
type watched struct {
	mu   sync.Mutex // guards last
	last time.Time
}

// lastAccepted uses a unit in every way, cuts it off, and returns how long after that
// the last response was accepted, of each way in their order. It refuses a way that did
// not work before, and one that works for longer than cutTime.
func lastAccepted(ctx context.Context, uses []use, cut func(context.Context) error) (string, error) {
	all := make([]watched, len(uses))
	asking, stop := context.WithCancel(ctx)
	var running sync.WaitGroup
	defer func() {
		stop()
		running.Wait()
	}()
	for i, u := range uses {
		if err := u.ask(ctx); err != nil {
			return "", fmt.Errorf("%s before the cut: %w", u.name, err)
		}
		running.Go(func() { all[i].keep(asking, u) })
	}
	began := time.Now()
	if err := cut(ctx); err != nil {
		return "", fmt.Errorf("adopting the cut: %w", err)
	}
	for {
		var parts []string
		var newest time.Time
		for i, u := range uses {
			all[i].mu.Lock()
			last := all[i].last
			all[i].mu.Unlock()
			after := max(0, last.Sub(began))
			if after > cutTime {
				return "", fmt.Errorf("%s: a response of the unit was accepted %v after the cut, want none after %v", u.name, after.Round(time.Millisecond), cutTime)
			}
			parts = append(parts, fmt.Sprintf("%s %v", u.name, after.Round(10*time.Millisecond)))
			newest = slices.MaxFunc([]time.Time{newest, last}, time.Time.Compare)
		}
		if time.Since(newest) > quietTime && time.Since(began) > quietTime {
			return strings.Join(parts, ", "), nil
		}
		if !pause(ctx, 20*time.Millisecond) {
			return "", ctx.Err()
		}
	}
}

// keep uses a unit until ctx is done.
func (w *watched) keep(ctx context.Context, u use) {
	for ctx.Err() == nil {
		asking, cancel := context.WithTimeout(ctx, 2*time.Second)
		err := u.ask(asking)
		cancel()
		if err == nil {
			w.mu.Lock()
			w.last = time.Now()
			w.mu.Unlock()
		}
		pause(ctx, 10*time.Millisecond)
	}
}
