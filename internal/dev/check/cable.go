package check

import (
	"context"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/cohort-tee/cohort/internal/retry"
)

// Times of a cut-off.
const (
	cutTime   = 5 * time.Second // a response accepted later than this after the adoption is an error
	QuietTime = 1500 * time.Millisecond
)

// Cable is a TCP proxy to an address. When it is cut, it forwards no more bytes but keeps all
// connections open.
type Cable struct {
	Listener net.Listener
	to       string
	passing  sync.WaitGroup
	Cut      chan struct{}

	mu    sync.Mutex // guards conns
	conns []net.Conn
}

// NewCable starts a proxy to an address.
func NewCable(to string) (*Cable, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	c := &Cable{Listener: l, to: to, Cut: make(chan struct{})}
	c.passing.Go(c.accept)
	return c, nil
}

func (c *Cable) accept() {
	for {
		near, err := c.Listener.Accept()
		if err != nil {
			return // closed
		}
		far, err := net.DialTimeout("tcp", c.to, StepTime)
		if err != nil {
			near.Close()
			continue
		}
		c.mu.Lock()
		c.conns = append(c.conns, near, far)
		c.mu.Unlock()
		for _, way := range [][2]net.Conn{{near, far}, {far, near}} {
			c.passing.Go(func() { c.forward(way[0], way[1]) })
		}
	}
}

// forward copies one direction of a connection until the cable is cut.
func (c *Cable) forward(to, from net.Conn) {
	b := make([]byte, 16<<10)
	for {
		n, err := from.Read(b)
		select {
		case <-c.Cut:
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

// Close closes the listener and all connections.
func (c *Cable) Close() {
	c.Listener.Close()
	c.mu.Lock()
	for _, conn := range c.conns {
		conn.Close()
	}
	c.mu.Unlock()
	c.passing.Wait()
}

// Use is one way to use a unit. Ask sends a request and fails unless the client accepts the
// unit's response.
type Use struct {
	Name string
	Ask  func(context.Context) error
	End  func()
}

// watched records the time of the last accepted response of a use.
type watched struct {
	mu   sync.Mutex // guards last
	last time.Time
}

// LastAccepted repeats all uses of a unit, and calls cut to cut it off. For each use it returns
// the time of the last accepted response after the start of cut. A use that fails before the
// cut-off is an error, and so is one that still succeeds after cutTime.
func LastAccepted(ctx context.Context, uses []Use, cut func(context.Context) error) (string, error) {
	all := make([]watched, len(uses))
	asking, stop := context.WithCancel(ctx)
	var running sync.WaitGroup
	defer func() {
		stop()
		running.Wait()
	}()
	for i, u := range uses {
		if err := u.Ask(ctx); err != nil {
			return "", fmt.Errorf("%s before the cut: %w", u.Name, err)
		}
		running.Go(func() { all[i].keepUsing(asking, u) })
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
				return "", fmt.Errorf("%s: a response of the unit was accepted %v after the cut, want none after %v", u.Name, after.Round(time.Millisecond), cutTime)
			}
			parts = append(parts, fmt.Sprintf("%s %v", u.Name, after.Round(10*time.Millisecond)))
			newest = slices.MaxFunc([]time.Time{newest, last}, time.Time.Compare)
		}
		if time.Since(newest) > QuietTime && time.Since(began) > QuietTime {
			return strings.Join(parts, ", "), nil
		}
		if retry.Sleep(ctx, 20*time.Millisecond) != nil {
			return "", ctx.Err()
		}
	}
}

// keepUsing repeats a use until ctx is done.
func (w *watched) keepUsing(ctx context.Context, u Use) {
	for ctx.Err() == nil {
		asking, cancel := context.WithTimeout(ctx, 2*time.Second)
		err := u.Ask(asking)
		cancel()
		if err == nil {
			w.mu.Lock()
			w.last = time.Now()
			w.mu.Unlock()
		}
		_ = retry.Sleep(ctx, 10*time.Millisecond)
	}
}
