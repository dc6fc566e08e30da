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
	"github.com/cohort-tee/cohort/internal/manager"
	"github.com/cohort-tee/cohort/internal/wire"
)

// asks is how many requests tell what a cluster does.
const asks = 12

// session is a channel of a story, opened on fresh evidence.
type session struct {
	*client.Channel
	client.Session // the first one
	url            string
}

func (c checker) open(ctx context.Context, gateway string) (*session, error) {
	t, err := c.trust(ctx)
	if err != nil {
		return nil, err
	}
	within, cancel := context.WithTimeout(ctx, stepTime)
	defer cancel()
	ch, err := client.Open(within, client.OpenConfig{Trust: t, Gateway: gateway, FreshEvidence: true, Receipts: true})
	if err != nil {
		return nil, err
	}
	s := &session{Channel: ch, url: "https://" + c.cluster.ServerName + "/"}
	if s.Session, err = ch.Session(within); err == nil && !s.Evidence.OK() {
		err = errors.New("the session has no fresh evidence, and was accepted")
	}
	if err != nil {
		s.close()
	}
	return s, err
}

// close ends the session at the units that answer in time.
func (s *session) close() {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	s.Channel.Close(ctx)
}

// ask asks for "/" with a receipt and gives it.
func (s *session) ask(ctx context.Context) (r client.Record, unit wire.UnitID, err error) {
	if _, err = s.get(client.WithRecord(ctx, &r)); err != nil {
		return r, unit, err
	}
	receipt, err := client.VerifyReceipt(r, s.Channel.Trust(), time.Now())
	if err != nil {
		return r, unit, fmt.Errorf("judging the receipt: %w", err)
	}
	return r, receipt.Unit.UnitID(), nil
}

// get asks for "/" and gives the whole answer.
func (s *session) get(ctx context.Context) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, stepTime)
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, s.url, nil)
	if err != nil {
		return nil, err
	}
	answer, err := s.RoundTrip(r)
	if err != nil {
		return nil, err
	}
	defer answer.Body.Close()
	return io.ReadAll(answer.Body)
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

// unitNamed is the described unit with an id, which its health pages tell.
func (c checker) unitNamed(ctx context.Context, id wire.UnitID) (clusterUnit, bool) {
	for _, u := range c.cluster.Units {
		r, err := http.NewRequestWithContext(ctx, http.MethodGet, u.Health+"/livez", nil)
		if err != nil {
			continue // it has no health pages
		}
		answer, err := http.DefaultClient.Do(r)
		if err != nil {
			continue
		}
		answer.Body.Close()
		if answer.Header.Get(unitField) == id.String() {
			return u, true
		}
	}
	return clusterUnit{}, false
}

// oneSessionAnyUnit: a session is opened on one unit, which is killed; another
// one answers the next request of that session.
func (c checker) oneSessionAnyUnit(ctx context.Context) (string, error) {
	s, err := c.open(ctx, c.cluster.Gateway)
	if err != nil {
		return "", err
	}
	defer s.close()
	opener := s.Unit.UnitID()
	before, err := s.goesOn(ctx)
	if err != nil {
		return "", err
	}
	victim, ok := c.unitNamed(ctx, opener)
	if !ok {
		return "", fmt.Errorf("unit %s opened the session and is none of those described", opener)
	}
	issued, err := c.issued(ctx)
	if err != nil {
		return "", err
	}
	if err := syscall.Kill(c.pid(victim), syscall.SIGKILL); err != nil {
		return "", fmt.Errorf("killing unit %s: %w", victim.Address, err)
	}
	killed := c.app.now()
	_, next, err := s.ask(ctx)
	answered := c.app.now().Sub(killed)
	if err == nil && next == opener {
		err = fmt.Errorf("unit %s answered after it was killed", opener)
	}
	if err != nil {
		return "", err
	}
	if _, err := s.goesOn(ctx); err != nil {
		return "", fmt.Errorf("without the unit that opened it: %w", err)
	}
	_, err = c.comesBack(ctx, victim.Address, issued)
	return fmt.Sprintf("opened on %s, answered by %s; killed, after %v answered by %s, 1 session opened",
		opener.String()[:8], strings.Join(before, " "), answered.Round(time.Millisecond), next.String()[:8]), err
}

// managerRestart: a killed manager costs no open session.
func (c checker) managerRestart(ctx context.Context) (string, error) {
	return c.managerDies(ctx, func() error { return nil })
}

// managerWiped: nor does one that loses all it stored.
func (c checker) managerWiped(ctx context.Context) (string, error) {
	return c.managerDies(ctx, func() error {
		files, err := filepath.Glob(filepath.Join(c.cluster.Manager.Data, "*"))
		for _, f := range files {
			// The self-made certificate is what units were told to expect.
			if own := filepath.Base(manager.SelfMadeCA("")); !strings.HasPrefix(filepath.Base(f), strings.TrimSuffix(own, ".pem")) {
				err = errors.Join(err, os.RemoveAll(f))
			}
		}
		return err
	})
}

// managerDies kills the manager after something was done to it, and demands that
// a session goes on and another can be opened.
func (c checker) managerDies(ctx context.Context, first func() error) (string, error) {
	s, err := c.open(ctx, c.cluster.Gateway)
	if err != nil {
		return "", err
	}
	defer s.close()
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
	back := c.app.now().Sub(killed)
	if _, err := s.goesOn(ctx); err != nil {
		return "", fmt.Errorf("the open session: %w", err)
	}
	another, err := c.open(ctx, c.cluster.Gateway)
	if err != nil {
		return "", fmt.Errorf("another session: %w", err)
	}
	defer another.close()
	_, err = another.goesOn(ctx)
	return fmt.Sprintf("back after %v; the open session went on, another opened", back.Round(time.Millisecond)), err
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
			return fmt.Errorf("the manager is not back within %v with its units: %w", restartTime, err)
		}
	}
}

// streamCut: an answer that is cut off is an error, never a short answer. A
// chat's stream is cut by killing its unit; any other answer on its way.
func (c checker) streamCut(ctx context.Context) (string, error) {
	m, s, done, err := c.between(ctx)
	if err != nil {
		return "", err
	}
	defer done()
	if c.cluster.Task == devChat {
		return c.chatCut(ctx, m, s)
	}
	m.change.Store(&change{answer: half})
	b, err := s.get(ctx)
	if err == nil {
		return "", fmt.Errorf("half an answer was accepted, with %d bytes", len(b))
	}
	if !wantReason(err, wire.Truncated, wire.Unavailable) {
		return "", fmt.Errorf("half an answer: %w, want [%s]", err, wire.Truncated)
	}
	m.change.Store(&change{})
	_, err = s.goesOn(ctx)
	return fmt.Sprintf("half an answer is refused [%s]; the session goes on", wire.ReasonOf(err)), err
}

// chatCut kills the unit that streams.
func (c checker) chatCut(ctx context.Context, m *middleman, s *session) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, restartTime)
	defer cancel()
	question := strings.NewReader(`{"prompt":"The keeper","max_tokens":2000,"delay_ms":10}`)
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, s.url+"chat", question)
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
	bound := m.target.Load()
	victim, ok := c.unitNamed(ctx, *bound)
	if !ok {
		return "", fmt.Errorf("unit %s streams and is none of those described", bound)
	}
	issued, err := c.issued(ctx)
	if err != nil {
		return "", err
	}
	if err := syscall.Kill(c.pid(victim), syscall.SIGKILL); err != nil {
		return "", fmt.Errorf("killing unit %s: %w", victim.Address, err)
	}
	killed := c.app.now()
	rest, err := io.ReadAll(answer.Body)
	told := c.app.now().Sub(killed)
	if !errors.Is(err, client.ErrTruncated) || told > time.Second {
		return "", fmt.Errorf("stream of a killed unit: got %v after %v, want [%s] within 1s", err, told, wire.Truncated)
	}
	_, goesOn := s.goesOn(ctx)
	_, back := c.comesBack(ctx, victim.Address, issued)
	tokens := bytes.Count(first, []byte("event: token")) + bytes.Count(rest, []byte("event: token"))
	return fmt.Sprintf("unit killed after %d of 2000 tokens: [%s] after %v; the session goes on", tokens, wire.Truncated, told.Round(time.Millisecond)),
		errors.Join(goesOn, back)
}

// alteredBytes: one changed bit of an answer or of a request is refused,
// wherever it is.
func (c checker) alteredBytes(ctx context.Context) (string, error) {
	m, s, done, err := c.between(ctx)
	if err != nil {
		return "", err
	}
	defer done()
	refused := 0
	for i := range asks {
		for _, way := range []*change{{answer: flip(i, asks)}, {request: flip(i, asks)}} {
			m.change.Store(way)
			if b, err := s.get(ctx); err == nil {
				return "", fmt.Errorf("a changed bit at %d of %d was accepted, with an answer of %d bytes", i, asks, len(b))
			}
			refused++
		}
	}
	m.change.Store(&change{})
	if _, err := s.get(ctx); err != nil {
		return "", fmt.Errorf("after the changes: %w", err)
	}
	return fmt.Sprintf("%d of %d requests and answers with one changed bit refused; the next, unchanged, answered", refused, refused), nil
}

// receipt: a receipt names the unit that answered, and nothing in it can be
// changed.
func (c checker) receipt(ctx context.Context) (string, error) {
	s, err := c.open(ctx, c.cluster.Gateway)
	if err != nil {
		return "", err
	}
	defer s.close()
	r, unit, err := s.ask(ctx)
	if err != nil {
		return "", err
	}
	issued, err := c.issued(ctx)
	if err != nil {
		return "", err
	}
	if !issued[unit.String()] {
		return "", fmt.Errorf("the receipt names unit %s, which holds no certificate", unit)
	}
	for _, part := range []struct {
		name  string
		bytes []byte
	}{{"request", r.Request}, {"answer", r.Answer}, {"receipt", r.Receipt}} {
		last := len(part.bytes) - 1
		part.bytes[last] ^= 1
		_, err := client.VerifyReceipt(r, s.Channel.Trust(), c.app.now())
		part.bytes[last] ^= 1
		if !wantReason(err, wire.BadDigest, wire.BadSignature) {
			return "", fmt.Errorf("changed %s: got %v, want a refusal", part.name, err)
		}
	}
	evidence := s.Evidence.Measurement().Platform
	return fmt.Sprintf("unit %s signed; changed request, answer and receipt refused; session on fresh %s evidence", unit.String()[:8], evidence), nil
}

// wantReason reports whether an error has one of these reasons.
func wantReason(err error, reasons ...wire.Reason) bool {
	return err != nil && slices.ContainsFunc(reasons, func(r wire.Reason) bool { return errors.Is(err, r) })
}
