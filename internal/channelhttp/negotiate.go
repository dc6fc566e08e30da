package channelhttp

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"time"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/internal/channel"
	"github.com/cohort-tee/cohort/internal/retry"
	"github.com/cohort-tee/cohort/internal/wire"
	"github.com/cohort-tee/cohort/policy"
)

// negotiate opens a session, and retries after faults that may pass. After a cut it asks
// for a session that all units may have. If no unit has a certificate report since, and
// there is no session, it accepts one that only its opener has.
func (t *Transport) negotiate(ctx context.Context) (*channel.Session, error) {
	var o *channel.ClientHandshake
	var with retryWith
	shared := true
	for try := 1; ; try++ {
		if with.cookie == "" { // a unit accepts a KEM key once, and a cookie is for one key
			var least attest.Digest
			if shared {
				least = t.config.Pin.LastCut(t.config.Trust.Trust().Policy)
			}
			var err error
			if o, err = channel.NewClientHandshakeSince(t.config.Pin, t.config.Options, least); err != nil {
				return nil, err
			}
		}
		s, next, err := t.requestOpen(ctx, o, with)
		if err == nil {
			return s, nil
		}
		// A certificate that ended while the response was sent is renewed by now. A unit
		// that left its group, or whose release did, sends heartbeats until its
		// certificate's end: the gateway may choose another unit.
		unreached, refused := errors.Is(err, ErrUnreachable), (*cutUnit)(nil)
		left := !unreached && (errors.Is(err, wire.WrongRole) || errors.Is(err, wire.WrongIdentity))
		beforeCut := errors.Is(err, channel.ErrBeforeCut) // by the next try the unit has the head that came with this one
		isCut := errors.As(err, &refused)
		repeat := unreached || beforeCut || isCut || errors.Is(err, wire.Expired) || left && try < openWrongUnits
		if !repeat || try == openTries || ctx.Err() != nil {
			return nil, fmt.Errorf("opening a session: %w", err)
		}
		with = next
		switch {
		case with.cookie != "" || left:
		case unreached && shared && errors.Is(err, wire.Behind) && !t.hasSession():
			shared = false
		case isCut:
			if with.unit = t.otherUnit(refused.unit); with.unit == (wire.UnitID{}) {
				_ = retry.Sleep(ctx, time.Duration(try*try)*openPause)
			}
		default:
			_ = retry.Sleep(ctx, time.Duration(try*try)*openPause)
		}
	}
}

// cutUnits are units that no request is sent to: those that policy names, and those whose
// certificate it refused. They select where a request is sent, and nothing else.
type cutUnits struct {
	head    attest.Digest // of the policy that ids are of
	ids     map[wire.UnitID]bool
	refused []wire.UnitID // the newest
}

// idsUnder returns the ids under a policy.
func (c *cutUnits) idsUnder(p policy.Approved) map[wire.UnitID]bool {
	if c.ids != nil && c.head == p.PolicyHead() || !p.Genuine() {
		return c.ids
	}
	c.head, c.ids = p.PolicyHead(), map[wire.UnitID]bool{}
	for _, task := range p.Document().Tasks {
		for _, text := range task.CutUnits {
			var id wire.UnitID
			if id.UnmarshalText([]byte(text)) == nil {
				c.ids[id] = true
			}
		}
	}
	for _, id := range c.refused {
		c.ids[id] = true
	}
	return c.ids
}

// refuse notes a unit whose certificate was refused.
func (c *cutUnits) refuse(id wire.UnitID) {
	if len(c.refused) == maxUnits {
		c.refused = c.refused[1:]
	}
	c.refused, c.ids = append(c.refused, id), nil
}

// cutUnit is the refusal of a unit that trust cuts off.
type cutUnit struct {
	unit  wire.UnitID // as it claims
	cause error
}

func (c *cutUnit) Error() string { return "unit " + c.unit.String() + ": " + c.cause.Error() }
func (c *cutUnit) Unwrap() error { return c.cause }

// hasSession reports whether there is a session.
func (t *Transport) hasSession() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.active != nil
}

// otherUnit notes one more unit that is cut off, and returns any unit of the hint that is
// not; zero: none.
func (t *Transport) otherUnit(one wire.UnitID) wire.UnitID {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.cut.refuse(one)
	cut := t.cut.idsUnder(t.config.Trust.Trust().Policy)
	for _, i := range rand.Perm(len(t.units)) {
		if !cut[t.units[i]] {
			return t.units[i]
		}
	}
	return wire.UnitID{}
}

// requestOpen sends the open request once and verifies the response. With an error it may
// return the fields for the next attempt.
func (t *Transport) requestOpen(ctx context.Context, o *channel.ClientHandshake, with retryWith) (s *channel.Session, next retryWith, err error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, t.sessionURL.String(), bytes.NewReader(o.Request()))
	if err != nil {
		return nil, retryWith{}, err
	}
	request.Header.Set("Content-Type", wire.TypeSession)
	with.setHeader(request.Header)
	setHead(request.Header, t.config.Heads.newest())
	response, err := t.config.Inner.RoundTrip(request)
	if err != nil {
		return nil, retryWith{}, fmt.Errorf("%w: %w", ErrUnreachable, err)
	}
	defer response.Body.Close()
	t.noteUnits(hintOf(response))
	t.config.Heads.receive(response.Header)
	if response.StatusCode != http.StatusOK {
		err := wire.Refuse(wire.Unavailable, "open request: status", response.StatusCode, http.StatusOK)
		if response.StatusCode == http.StatusPreconditionFailed {
			err = wire.Refuse(wire.Behind, "open request: status", response.StatusCode, http.StatusOK)
		}
		next, unread := t.retryOf(o, response)
		if next.unit == (wire.UnitID{}) {
			next.unit = with.unit
		}
		return nil, next, fmt.Errorf("%w: %w", ErrUnreachable, errors.Join(err, unread))
	}
	body, err := io.ReadAll(io.LimitReader(response.Body, channel.MaxOpenResponse+1))
	if err != nil {
		return nil, retryWith{}, fmt.Errorf("%w: %w", ErrUnreachable, err)
	}
	now := t.config.Clock()
	if s, err = o.Finish(body, t.config.Trust.Trust(), now); err != nil && !isCut(err) && !errors.Is(err, channel.ErrBeforeCut) {
		s, err = o.Finish(body, t.config.Trust.Renew(ctx), now) // with newer trust
	}
	if err == nil {
		err = t.cutOff(s) // by policy that arrived meanwhile
	}
	if isCut(err) {
		return nil, retryWith{}, &cutUnit{channel.UnverifiedOpener(body), err}
	}
	if err != nil {
		return nil, retryWith{}, err
	}
	t.times.opened(s.OpenedBy().UnitID(), s.OpenedAt(), now)
	return s, retryWith{}, nil
}

// isCut reports whether an error says that policy cuts a unit off.
func isCut(err error) bool { return errors.Is(err, wire.CutOff) || errors.Is(err, wire.Withdrawn) }

// cutOff is [channel.Session.CutOff] by the newest trust. Whatever the reason, the error is a
// "cut-off" too.
func (t *Transport) cutOff(s *channel.Session) error {
	if err := s.CutOff(t.config.Trust.Trust().Policy, t.config.Clock()); err != nil {
		return fmt.Errorf("%w: %w", err, wire.CutOff)
	}
	return nil
}
