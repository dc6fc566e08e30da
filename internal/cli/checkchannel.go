package cli

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/cohort-tee/cohort/client"
	"github.com/cohort-tee/cohort/internal/wire"
)

// asks is how many requests tell what a cluster does.
const asks = 12

// session is a channel of a story, with the session that it began with.
type session struct {
	*client.Channel
	client.Session
	url string
}

// inSession tells a story in a session that was opened on fresh evidence.
func (c checker) inSession(ctx context.Context, gateway string, tell func(*session) (string, error)) (string, error) {
	t, err := c.trust(ctx)
	if err != nil {
		return "", err
	}
	opening, cancel := context.WithTimeout(ctx, stepTime)
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
	s := &session{Channel: ch, url: "https://" + c.cluster.ServerName + "/"}
	if s.Session, err = ch.Session(opening); err != nil {
		return "", err
	}
	return tell(s)
}

// overMiddleman is inSession through a middleman.
func (c checker) overMiddleman(ctx context.Context, tell func(*middleman, *session) (string, error)) (string, error) {
	m, err := newMiddleman(c.cluster.Gateway)
	if err != nil {
		return "", err
	}
	defer m.close()
	return c.inSession(ctx, m.url, func(s *session) (string, error) { return tell(m, s) })
}

// ask asks for "/" with a receipt, and gives that and the unit it names.
func (s *session) ask(ctx context.Context) (r client.Record, unit wire.UnitID, err error) {
	if err = call(client.WithRecord(ctx, &r), s, s.url); err != nil {
		return r, unit, err
	}
	receipt, err := client.VerifyReceipt(r, s.Channel.Trust(), time.Now())
	if err != nil {
		return r, unit, fmt.Errorf("judging the receipt: %w", err)
	}
	return r, receipt.Unit.UnitID(), nil
}

// goesOn asks several times and tells who answered. It refuses when another
// session had to be opened for that.
func (s *session) goesOn(ctx context.Context) (units []string, err error) {
	for range asks {
		_, unit, err := s.ask(ctx)
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

// killNamed kills the unit with an id, which its health pages tell.
func (c checker) killNamed(ctx context.Context, id wire.UnitID) (back func() (string, error), err error) {
	for _, u := range c.cluster.Units {
		answer, err := http.Get(u.Health + "/livez")
		if err != nil {
			continue // another may be it
		}
		answer.Body.Close()
		if answer.Header.Get(unitField) == id.String() {
			return c.kill(ctx, u)
		}
	}
	return nil, fmt.Errorf("unit %s is none of those described", id)
}

// receipt: a receipt names the unit that answered, and nothing in it can be
// changed.
func (c checker) receipt(ctx context.Context) (string, error) {
	return c.inSession(ctx, c.cluster.Gateway, func(s *session) (string, error) {
		r, unit, err := s.ask(ctx)
		if err != nil {
			return "", err
		}
		if issued, err := c.issued(ctx); err != nil || !issued[unit.String()] {
			return "", fmt.Errorf("the receipt names unit %s, which holds no certificate: %w", unit, err)
		}
		for name, part := range map[string][]byte{"request": r.Request, "answer": r.Answer, "receipt": r.Receipt} {
			part[len(part)-1] ^= 1
			_, err := client.VerifyReceipt(r, s.Channel.Trust(), c.app.now())
			part[len(part)-1] ^= 1
			if !errors.Is(err, wire.BadDigest) && !errors.Is(err, wire.BadSignature) {
				return "", fmt.Errorf("changed %s: got %v, want a refusal", name, err)
			}
		}
		return fmt.Sprintf("unit %s signed; changed request, answer and receipt refused; session on fresh %s evidence",
			unit.String()[:8], s.Evidence.Measurement().Platform), nil
	})
}

// answerTime is far more than an answer takes. A call that nobody answers well
// looks for another unit for longer.
const answerTime = 500 * time.Millisecond

func callWithin(ctx context.Context, s *session, patience time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	return call(ctx, s, s.url)
}

// alteredBytes: one changed bit of an answer or of a request is refused,
// wherever it is.
func (c checker) alteredBytes(ctx context.Context) (string, error) {
	return c.overMiddleman(ctx, func(m *middleman, s *session) (string, error) {
		for i := range asks {
			for _, way := range []*change{{answer: flip(i, asks)}, {request: flip(i, asks)}} {
				m.way.Store(way)
				if callWithin(ctx, s, answerTime) == nil {
					return "", fmt.Errorf("a bit changed after %d/%d was accepted", i, asks)
				}
			}
		}
		m.way.Store(&change{})
		return fmt.Sprintf("%d requests and answers with one changed bit refused; the next, unchanged, answered", 2*asks), call(ctx, s, s.url)
	})
}

// streamCut: an answer that is cut off is an error, never a short answer. A
// chat's stream is cut by killing its unit; any other answer on its way.
func (c checker) streamCut(ctx context.Context) (string, error) {
	return c.overMiddleman(ctx, func(m *middleman, s *session) (string, error) {
		if c.cluster.Task == devChat {
			return c.chatCut(ctx, m, s)
		}
		m.way.Store(&change{answer: half})
		if err := call(ctx, s, s.url); !errors.Is(err, wire.Truncated) {
			return "", fmt.Errorf("half an answer: got %v, want a refusal [%s]", err, wire.Truncated)
		}
		m.way.Store(&change{})
		_, err := s.goesOn(ctx)
		return fmt.Sprintf("half an answer is refused [%s]; the session goes on", wire.Truncated), err
	})
}

// chatCut kills the unit that streams.
func (c checker) chatCut(ctx context.Context, m *middleman, s *session) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, restartTime)
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, s.url+"chat", strings.NewReader(`{"prompt":"The keeper","max_tokens":2000,"delay_ms":10}`))
	if err != nil {
		return "", err
	}
	r.Header.Set("Content-Type", "application/json")
	answer, err := s.RoundTrip(r)
	if err != nil {
		return "", err
	}
	defer answer.Body.Close()
	first := make([]byte, 1<<10)
	if _, err := io.ReadFull(answer.Body, first); err != nil {
		return "", fmt.Errorf("reading the first tokens: %w", err)
	}
	back, err := c.killNamed(ctx, *m.target.Load())
	if err != nil {
		return "", err
	}
	killed := c.app.now()
	rest, err := io.ReadAll(answer.Body)
	told := c.app.now().Sub(killed).Round(time.Millisecond)
	if !errors.Is(err, client.ErrTruncated) || told > time.Second {
		return "", fmt.Errorf("stream of a killed unit: got %v after %v, want [%s] within 1s", err, told, wire.Truncated)
	}
	_, goesOn := s.goesOn(ctx)
	_, err = back()
	tokens := bytes.Count(append(first, rest...), []byte("event: token"))
	return fmt.Sprintf("unit killed after %d of 2000 tokens: [%s] after %v; the session goes on", tokens, wire.Truncated, told), errors.Join(goesOn, err)
}

// oneSessionAnyUnit: a session is opened on one unit, which is killed; another
// one answers the next request of that session.
func (c checker) oneSessionAnyUnit(ctx context.Context) (string, error) {
	return c.inSession(ctx, c.cluster.Gateway, func(s *session) (string, error) {
		opener := s.Unit.UnitID()
		before, err := s.goesOn(ctx)
		if err != nil {
			return "", err
		}
		back, err := c.killNamed(ctx, opener)
		if err != nil {
			return "", err
		}
		killed := c.app.now()
		_, next, err := s.ask(ctx)
		if err != nil || next == opener {
			return "", fmt.Errorf("after unit %s was killed: answered by %s: %w", opener, next, err)
		}
		answered := c.app.now().Sub(killed).Round(time.Millisecond)
		_, goesOn := s.goesOn(ctx)
		_, err = back()
		return fmt.Sprintf("opened on %s, answered by %s; killed, after %v answered by %s; 1 session opened",
			opener.String()[:8], strings.Join(before, " "), answered, next.String()[:8]), errors.Join(goesOn, err)
	})
}

// managerRestart: a killed manager costs no open session.
func (c checker) managerRestart(ctx context.Context) (string, error) {
	return c.managerDies(ctx, func() error { return nil })
}

// managerWiped: nor does one that loses what it stored. Its certificates stay,
// which units were told to expect.
func (c checker) managerWiped(ctx context.Context) (string, error) {
	return c.managerDies(ctx, func() error {
		files, err := filepath.Glob(filepath.Join(c.cluster.Manager.Data, "*"))
		for _, f := range files {
			if filepath.Ext(f) != ".pem" {
				err = errors.Join(err, os.Remove(f))
			}
		}
		return err
	})
}

// managerDies kills the manager after something was done to it, and demands that
// a session goes on and another can be opened.
func (c checker) managerDies(ctx context.Context, first func() error) (string, error) {
	return c.inSession(ctx, c.cluster.Gateway, func(s *session) (string, error) {
		pid := c.live().Manager.PID
		if pid <= 1 {
			return "", errors.New("the manager has no process id")
		}
		if err := errors.Join(first(), syscall.Kill(pid, syscall.SIGKILL)); err != nil {
			return "", fmt.Errorf("killing the manager: %w", err)
		}
		killed := c.app.now()
		if err := c.managerBack(ctx); err != nil {
			return "", err
		}
		back := c.app.now().Sub(killed).Round(time.Millisecond)
		if _, err := s.goesOn(ctx); err != nil {
			return "", fmt.Errorf("the open session: %w", err)
		}
		return c.inSession(ctx, c.cluster.Gateway, func(another *session) (string, error) {
			_, err := another.goesOn(ctx)
			return fmt.Sprintf("back after %v; the open session went on, another opened", back), err
		})
	})
}

func (c checker) managerBack(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, restartTime)
	defer cancel()
	for {
		units, err := gatewayFlags{url: c.cluster.Gateway}.ready(ctx)
		if err == nil && units > 0 {
			return nil
		}
		if !pause(ctx, 20*time.Millisecond) {
			return fmt.Errorf("manager not back within %v with its units: %w", restartTime, err)
		}
	}
}
