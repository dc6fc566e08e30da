package check

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"slices"
	"time"

	"github.com/cohort-tee/cohort/client"
	"github.com/cohort-tee/cohort/internal/cli/frame"
	"github.com/cohort-tee/cohort/internal/wire"
)

// Asks is the number of requests of one observation.
const Asks = 12

// Session is a channel of a check, with the first session of the channel.
type Session struct {
	*client.Channel
	client.Session
	URL string
}

// InSession opens a session with fresh evidence, and calls use with it.
func (c Checker) InSession(ctx context.Context, gateway string, use func(*Session) (string, error)) (string, error) {
	t, err := c.Trust(ctx)
	if err != nil {
		return "", err
	}
	opening, cancel := context.WithTimeout(ctx, StepTime)
	defer cancel()
	ch, err := client.Open(opening, client.OpenConfig{Trust: t, Gateway: gateway, FreshEvidence: true, Receipts: true})
	if err != nil {
		return "", err
	}
	defer func() {
		ending, cancel := context.WithTimeout(ctx, time.Second)
		defer cancel()
		ch.Close(ending)
	}()
	s := &Session{Channel: ch, URL: "https://" + c.Cluster.ServerName + "/"}
	if s.Session, err = ch.Session(opening); err != nil {
		return "", err
	}
	return use(s)
}

// OverTamperingProxy is InSession through a tampering proxy.
func (c Checker) OverTamperingProxy(ctx context.Context, use func(*TamperingProxy, *Session) (string, error)) (string, error) {
	m, err := NewTamperingProxy(c.Cluster.Gateway)
	if err != nil {
		return "", err
	}
	defer m.Close()
	return c.InSession(ctx, m.URL, func(s *Session) (string, error) { return use(m, s) })
}

// RequestWithReceipt requests "/" with a receipt, verifies the receipt, and returns it with the
// unit that it names.
func (s *Session) RequestWithReceipt(ctx context.Context) (r client.Record, unit wire.UnitID, err error) {
	if err = RequestOnce(client.WithRecord(ctx, &r), s, s.URL); err != nil {
		return r, unit, err
	}
	receipt, err := client.VerifyReceipt(r, s.Channel.Trust(), time.Now())
	if err != nil {
		return r, unit, fmt.Errorf("judging the receipt: %w", err)
	}
	return r, receipt.Unit.UnitID(), nil
}

// GoesOn sends several requests and returns the units that responded. It returns an error if the
// channel had to open a second session.
func (s *Session) GoesOn(ctx context.Context) (units []string, err error) {
	for range Asks {
		_, unit, err := s.RequestWithReceipt(ctx)
		if err != nil {
			return nil, err
		}
		if name := unit.String()[:8]; !slices.Contains(units, name) {
			units = append(units, name)
		}
	}
	if opens := s.Opens(); opens != 1 {
		return nil, fmt.Errorf("got %d sessions, want the first to go on", opens)
	}
	return units, nil
}

// KillNamed kills the unit with an id, which it finds by the health pages.
func (c Checker) KillNamed(ctx context.Context, id wire.UnitID) (back func() (string, error), err error) {
	for _, u := range c.Cluster.Units {
		response, err := http.Get(u.Health + "/livez")
		if err != nil {
			continue // a later unit may have the id
		}
		response.Body.Close()
		if response.Header.Get(frame.UnitField) == id.String() {
			return c.KillUnit(ctx, u)
		}
	}
	return nil, fmt.Errorf("unit %s is none of those described", id)
}

// SendOneOff sends a one-off request with an idempotency key, and returns the status of its
// response.
func (c Checker) SendOneOff(ctx context.Context, o *client.OneOff, method string) (int, error) {
	r, err := http.NewRequestWithContext(ctx, method, "https://"+c.Cluster.ServerName+"/", nil)
	if err != nil {
		return 0, err
	}
	r.Header.Set("Idempotency-Key", "check")
	response, err := o.RoundTrip(r)
	if err != nil {
		return 0, err
	}
	defer response.Body.Close()
	_, err = io.Copy(io.Discard, response.Body)
	return response.StatusCode, err
}
