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

// negotiate opens a session, and retries after faults that may be temporary. After a cut-off it
// requests a session that all units can share. If no unit has received a certificate report since
// the cut-off, and the transport has no session, it accepts a session that only its opener has.
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
		// A certificate that expired while the response was sent is renewed by the next try. A
		// unit that left its group, or whose release did, sends heartbeats until its
		// certificate expires; at the next try the gateway may choose a different unit.
		unreached, refused := errors.Is(err, ErrUnreachable), (*cutUnit)(nil)
		left := !unreached && (errors.Is(err, wire.WrongRole) || errors.Is(err, wire.WrongIdentity))
		beforeCut := errors.Is(err, channel.ErrBeforeCut) // this request carried the newest head: the unit learns the cut-off
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

// cutUnits contains the units to which the transport sends no request: the cut units that the
// policy lists, and the units whose certificate was refused as cut off. It affects only where a
// request is sent.
type cutUnits struct {
	head    attest.Digest // head of the policy from which ids was computed
	ids     map[wire.UnitID]bool
	refused []wire.UnitID // the latest maxUnits refused units
}

// idsUnder returns the ids of all these units under a policy.
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

// refuse adds a unit whose certificate was refused.
func (c *cutUnits) refuse(id wire.UnitID) {
	if len(c.refused) == maxUnits {
		c.refused = c.refused[1:]
	}
	c.refused, c.ids = append(c.refused, id), nil
}

// cutUnit is the refusal of a unit that trust cuts off.
type cutUnit struct {
	unit  wire.UnitID // unverified
	cause error
}

func (c *cutUnit) Error() string { return "unit " + c.unit.String() + ": " + c.cause.Error() }
func (c *cutUnit) Unwrap() error { return c.cause }

// hasSession reports whether the transport has a session in use.
func (t *Transport) hasSession() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.active != nil
}

// otherUnit records that a unit is cut off. It returns a random unit of the hint that is not cut
// off, or zero if there is none.
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

// requestOpen sends the open request once and verifies the response. Together with an error it
// may return the header fields for the next attempt.
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
		err = t.cutOff(s) // by a policy that arrived meanwhile
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

// isCut reports whether an error means that the policy cuts a unit off.
func isCut(err error) bool { return errors.Is(err, wire.CutOff) || errors.Is(err, wire.Withdrawn) }

// cutOff returns the error of [channel.Session.CutOff] under the newest trust. The error matches
// "cut-off" in addition to its own reason.
func (t *Transport) cutOff(s *channel.Session) error {
	if err := s.CutOff(t.config.Trust.Trust().Policy, t.config.Clock()); err != nil {
		return fmt.Errorf("%w: %w", err, wire.CutOff)
	}
	return nil
}
