// Package channelcheck checks the trusted channel of a development cluster: sessions that
// continue while units and managers end, receipts, one-off requests, and peers that violate the
// protocol.
//
// Files, each using those before it: cluster.go, rogue.go, stranger.go, bus.go,
// channelcheck.go, oneoff.go, tenant.go, times.go, upgrade.go.
package channelcheck

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/cohort-tee/cohort/client"
	"github.com/cohort-tee/cohort/internal/authorityclient"
	"github.com/cohort-tee/cohort/internal/dev/check"
	"github.com/cohort-tee/cohort/internal/retry"
	"github.com/cohort-tee/cohort/internal/wire"
)

// Receipt checks that a receipt names the unit that responded, and that a changed request,
// response or receipt is refused.
func Receipt(ctx context.Context, c check.Checker) (string, error) {
	return c.InSession(ctx, c.Cluster.Gateway, func(s *check.Session) (string, error) {
		r, unit, err := s.RequestWithReceipt(ctx)
		if err != nil {
			return "", err
		}
		if issued, err := c.Issued(ctx); err != nil || !issued[unit.String()] {
			return "", fmt.Errorf("the receipt names unit %s, which holds no certificate: %w", unit, err)
		}
		for name, part := range map[string][]byte{"request": r.Request, "response": r.Response, "receipt": r.Receipt} {
			part[len(part)-1] ^= 1
			_, err := client.VerifyReceipt(r, s.Channel.Trust(), c.App.Now())
			part[len(part)-1] ^= 1
			if !errors.Is(err, wire.BadDigest) && !errors.Is(err, wire.BadSignature) {
				return "", fmt.Errorf("changed %s: got %v, want a refusal", name, err)
			}
		}
		return fmt.Sprintf("unit %s signed; changed request, response and receipt refused; session on fresh %s evidence",
			unit.String()[:8], s.Evidence.Measurement().Platform), nil
	})
}

// responseTime is much longer than a response takes, and shorter than the time for which a call
// without a valid response tries further units.
const responseTime = 500 * time.Millisecond

func callWithin(ctx context.Context, s *check.Session, patience time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	return check.RequestOnce(ctx, s, s.URL)
}

// AlteredBytes checks that a response or a request with one changed bit is refused, at several
// positions of the bit.
func AlteredBytes(ctx context.Context, c check.Checker) (string, error) {
	return c.OverTamperingProxy(ctx, func(m *check.TamperingProxy, s *check.Session) (string, error) {
		for i := range check.Asks {
			for _, way := range []*check.Change{{Response: check.FlipBit(i, check.Asks)}, {Request: check.FlipBit(i, check.Asks)}} {
				m.Way.Store(way)
				if callWithin(ctx, s, responseTime) == nil {
					return "", fmt.Errorf("a bit changed after %d/%d was accepted", i, check.Asks)
				}
			}
		}
		m.Way.Store(&check.Change{})
		return fmt.Sprintf("%d requests and responses with one changed bit refused; the next, unchanged, served", 2*check.Asks), check.RequestOnce(ctx, s, s.URL)
	})
}

// StreamCut checks that a truncated response is an error and is never accepted as complete. It
// kills the unit during a streaming response; if the example has none, the proxy truncates a
// response.
func StreamCut(ctx context.Context, c check.Checker) (string, error) {
	return c.OverTamperingProxy(ctx, func(m *check.TamperingProxy, s *check.Session) (string, error) {
		if c.Cluster.Stream != nil {
			return cutStreaming(ctx, c, m, s)
		}
		m.Way.Store(&check.Change{Response: check.CutHalf})
		if err := check.RequestOnce(ctx, s, s.URL); !errors.Is(err, wire.Truncated) {
			return "", fmt.Errorf("half a response: got %v, want a refusal [%s]", err, wire.Truncated)
		}
		m.Way.Store(&check.Change{})
		_, err := s.GoesOn(ctx)
		return fmt.Sprintf("half a response is refused [%s]; the session goes on", wire.Truncated), err
	})
}

// cutStreaming kills the unit that sends a streaming response.
func cutStreaming(ctx context.Context, c check.Checker, m *check.TamperingProxy, s *check.Session) (string, error) {
	stream := c.Cluster.Stream
	ctx, cancel := context.WithTimeout(ctx, check.RestartTime)
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, strings.TrimSuffix(s.URL, "/")+stream.Path, strings.NewReader(stream.Body))
	if err != nil {
		return "", err
	}
	r.Header.Set("Content-Type", "application/json")
	response, err := s.RoundTrip(r)
	if err != nil {
		return "", err
	}
	defer response.Body.Close()
	first := make([]byte, 1<<10)
	if _, err := io.ReadFull(response.Body, first); err != nil {
		return "", fmt.Errorf("reading the first tokens: %w", err)
	}
	back, err := c.KillNamed(ctx, *m.Target.Load())
	if err != nil {
		return "", err
	}
	killed := c.App.Now()
	rest, err := io.ReadAll(response.Body)
	took := c.App.Now().Sub(killed).Round(time.Millisecond)
	if !errors.Is(err, client.ErrTruncated) || took > time.Second {
		return "", fmt.Errorf("stream of a killed unit: got %v after %v, want [%s] within 1s", err, took, wire.Truncated)
	}
	_, goesOn := s.GoesOn(ctx)
	_, err = back()
	tokens := bytes.Count(append(first, rest...), []byte(stream.Event))
	return fmt.Sprintf("unit killed after %d of %d tokens: [%s] after %v; the session goes on", tokens, stream.Count, wire.Truncated, took), errors.Join(goesOn, err)
}

// OneSessionAnyUnit checks that after the unit that opened a session is killed, a different unit
// responds to the next request of the session.
func OneSessionAnyUnit(ctx context.Context, c check.Checker) (string, error) {
	return c.InSession(ctx, c.Cluster.Gateway, func(s *check.Session) (string, error) {
		opener := s.Unit.UnitID()
		before, err := s.GoesOn(ctx)
		if err != nil {
			return "", err
		}
		back, err := c.KillNamed(ctx, opener)
		if err != nil {
			return "", err
		}
		killed := c.App.Now()
		_, next, err := s.RequestWithReceipt(ctx)
		if err != nil || next == opener {
			return "", fmt.Errorf("after unit %s was killed: served by %s: %w", opener, next, err)
		}
		responded := c.App.Now().Sub(killed).Round(time.Millisecond)
		_, goesOn := s.GoesOn(ctx)
		_, err = back()
		return fmt.Sprintf("opened on %s, served by %s; killed, after %v served by %s; 1 session opened",
			opener.String()[:8], strings.Join(before, " "), responded, next.String()[:8]), errors.Join(goesOn, err)
	})
}

// ManagerRestart checks that open sessions survive a kill of the manager.
func ManagerRestart(ctx context.Context, c check.Checker) (string, error) {
	return managerDies(ctx, c, func() error { return nil })
}

// ManagerWiped checks that open sessions survive a kill of the manager and the loss of its data.
// The manager's certificates stay, since units are configured with them.
func ManagerWiped(ctx context.Context, c check.Checker) (string, error) {
	return managerDies(ctx, c, func() error {
		files, err := filepath.Glob(filepath.Join(c.Cluster.Manager.Data, "*"))
		for _, f := range files {
			if filepath.Ext(f) != ".pem" {
				err = errors.Join(err, os.Remove(f))
			}
		}
		return err
	})
}

// managerDies calls first and kills the manager. It returns an error unless an open session
// continues and a new one can be opened.
func managerDies(ctx context.Context, c check.Checker, first func() error) (string, error) {
	return c.InSession(ctx, c.Cluster.Gateway, func(s *check.Session) (string, error) {
		pid := c.Live().Manager.PID
		if pid <= 1 {
			return "", errors.New("the manager has no process id")
		}
		if err := errors.Join(first(), syscall.Kill(pid, syscall.SIGKILL)); err != nil {
			return "", fmt.Errorf("killing the manager: %w", err)
		}
		killed := c.App.Now()
		if err := managerBack(ctx, c); err != nil {
			return "", err
		}
		back := c.App.Now().Sub(killed).Round(time.Millisecond)
		if _, err := s.GoesOn(ctx); err != nil {
			return "", fmt.Errorf("the open session: %w", err)
		}
		return c.InSession(ctx, c.Cluster.Gateway, func(another *check.Session) (string, error) {
			_, err := another.GoesOn(ctx)
			return fmt.Sprintf("back after %v; the open session went on, another opened", back), err
		})
	})
}

func managerBack(ctx context.Context, c check.Checker) error {
	ctx, cancel := context.WithTimeout(ctx, check.RestartTime)
	defer cancel()
	for {
		units, err := authorityclient.Gateway{URL: c.Cluster.Gateway}.Ready(ctx)
		if err == nil && units > 0 {
			return nil
		}
		if retry.Sleep(ctx, 20*time.Millisecond) != nil {
			return fmt.Errorf("manager not back within %v with its units: %w", check.RestartTime, err)
		}
	}
}
