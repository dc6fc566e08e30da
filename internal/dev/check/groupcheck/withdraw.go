package groupcheck

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/cohort-tee/cohort/attest/soft"
	"github.com/cohort-tee/cohort/client"
	"github.com/cohort-tee/cohort/internal/dev"
	"github.com/cohort-tee/cohort/internal/dev/check"
	"github.com/cohort-tee/cohort/internal/wire"
	"github.com/cohort-tee/cohort/policy"
)

// withdrawalStory: the bank's party withdraws, and a bank unit goes on as if it had not.
// A joiner that calls that unit, and the client that asks the joiner, refuse it in time, and
// no further record leaves it.
func (d cluster) withdrawalStory(ctx context.Context) (_ string, err error) {
	dir, err := os.MkdirTemp("", "cohort-withdrawal-")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(dir)
	line, err := check.NewCable(strings.TrimPrefix(d.Doc.Authority, "https://"))
	if err != nil {
		return "", err
	}
	defer line.Close()
	twin, err := d.memberOf(dir, dev.Bank, "https://"+line.Listener.Addr().String(), d.Bin.Members[dev.Bank], nil, d.PartyKey("north"))
	if err != nil {
		return "", err
	}
	caller, err := d.memberOf(dir, dev.Joiner, d.Doc.Authority, d.Bin.Members[dev.Joiner], map[string]string{dev.JointMembers[dev.Bank].Role: twin.Listen}, d.PartyKey("east"))
	if err != nil {
		return "", errors.Join(err, twin.Log.Close())
	}
	for _, n := range []check.Newcomer{twin, caller} {
		defer n.Log.Close()
		p, err := d.begin(ctx, n)
		if err != nil {
			return "", err
		}
		defer func() { _ = check.Ended(p) }() // it is not asked how
	}
	asking, end, err := d.asks(ctx, caller)
	if err != nil {
		return "", err
	}
	defer end()
	parties, err := d.Parties()
	if err != nil {
		return "", err
	}
	north := parties[1]
	last, err := check.LastAccepted(ctx, []check.Use{asking}, func(ctx context.Context) error {
		close(line.Cut)
		return d.Tell(ctx, north, policy.ForWithdraw)
	})
	if err != nil {
		return "", err
	}
	left, err := handedBy(twin)
	if err != nil {
		return "", err
	}
	if err := dev.Ready(ctx, twin.Health); err != nil {
		return "", fmt.Errorf("the unit that was to go on: %w", err)
	}
	if _, err := d.GroupTrust(ctx); !errors.Is(err, wire.NoQuorum) {
		return "", fmt.Errorf("a client that begins now: got %v, want a refusal [%s]", err, wire.NoQuorum)
	}
	check.Pause(ctx, check.QuietTime)
	if now, err := handedBy(twin); err != nil || now != left || left == 0 {
		return "", fmt.Errorf("the unit that goes on handed records out %d times, then %d, %w; want some before the withdrawal and none after", left, now, err)
	}
	if err := d.Tell(ctx, north, policy.ForApprove); err != nil {
		return "", err
	}
	took, err := d.goesOn(ctx)
	return fmt.Sprintf("north withdraws, and a bank unit goes on: the last response accepted, after the withdrawal: %s; then 0 records leave it; north approves again: the statistic is back after %v",
		last, took), err
}

// begin starts a unit and waits until it is ready.
func (d cluster) begin(ctx context.Context, n check.Newcomer) (*soft.Process, error) {
	p, err := n.Launch.Start(ctx, d.Doc.TEE)
	if err != nil {
		return nil, err
	}
	if err := check.ComesUp(ctx, n); err != nil {
		return nil, errors.Join(err, check.Ended(p))
	}
	return p, nil
}

// asks is the use of a joiner by a client of the bank's company: for a statistic, which
// the joiner gets by calling a bank.
func (d cluster) asks(ctx context.Context, joins check.Newcomer) (check.Use, func(), error) {
	t, err := d.GroupTrust(ctx)
	if err != nil {
		return check.Use{}, nil, err
	}
	m, err := check.NewMiddleman("https://" + joins.Listen)
	if err != nil {
		return check.Use{}, nil, err
	}
	ch, err := client.OpenGroup(ctx, client.OpenConfig{Trust: t, Role: dev.JointMembers[dev.Joiner].Role, Gateway: m.Url})
	if err != nil {
		m.Close()
		return check.Use{}, nil, err
	}
	ask := func(ctx context.Context) error {
		r, err := http.NewRequestWithContext(ctx, http.MethodGet, "https://"+d.Doc.ServerName+"/statistic", nil)
		if err != nil {
			return err
		}
		answer, err := ch.RoundTrip(r)
		if err != nil {
			return err
		}
		defer answer.Body.Close()
		if answer.StatusCode != http.StatusOK {
			return fmt.Errorf("asking the joiner: got %s", answer.Status)
		}
		return nil
	}
	return check.Use{Name: "statistics", Ask: ask, End: func() {}}, func() {
		ending, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		ch.Close(ending)
		m.Close()
	}, nil
}

// handedBy is how often records left one holder.
func handedBy(n check.Newcomer) (int, error) {
	b, err := os.ReadFile(n.Log.Name())
	return bytes.Count(b, []byte(handedOut)), err
}
