package cli

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
	"github.com/cohort-tee/cohort/internal/wire"
	"github.com/cohort-tee/cohort/policy"
)

// withdrawalStory: the bank's party withdraws, and a bank unit goes on as if it had not.
// A joiner that calls that unit, and the client that asks the joiner, refuse it in time, and
// no further record leaves it.
func (d *dev) withdrawalStory(ctx context.Context) (_ string, err error) {
	dir, err := os.MkdirTemp("", "cohort-withdrawal-")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(dir)
	line, err := newCable(strings.TrimPrefix(d.cluster.Authority, "https://"))
	if err != nil {
		return "", err
	}
	defer line.close()
	twin, err := d.memberOf(dir, bank, "https://"+line.listener.Addr().String(), d.bin.members[bank], nil, d.partyKey("north"))
	if err != nil {
		return "", err
	}
	caller, err := d.memberOf(dir, joiner, d.cluster.Authority, d.bin.members[joiner], map[string]string{jointMembers[bank].role: twin.listen}, d.partyKey("east"))
	if err != nil {
		return "", errors.Join(err, twin.log.Close())
	}
	for _, n := range []newcomer{twin, caller} {
		defer n.log.Close()
		p, err := d.begin(ctx, n)
		if err != nil {
			return "", err
		}
		defer func() { _ = ended(p) }() // it is not asked how
	}
	asking, end, err := d.asks(ctx, caller)
	if err != nil {
		return "", err
	}
	defer end()
	parties, err := d.parties()
	if err != nil {
		return "", err
	}
	north := parties[1]
	last, err := lastAccepted(ctx, []use{asking}, func(ctx context.Context) error {
		close(line.cut)
		return d.tell(ctx, north, policy.ForWithdraw)
	})
	if err != nil {
		return "", err
	}
	left, err := handedBy(twin)
	if err != nil {
		return "", err
	}
	if err := ready(ctx, twin.health); err != nil {
		return "", fmt.Errorf("the unit that was to go on: %w", err)
	}
	if _, err := d.groupTrust(ctx); !errors.Is(err, wire.NoQuorum) {
		return "", fmt.Errorf("a client that begins now: got %v, want a refusal [%s]", err, wire.NoQuorum)
	}
	pause(ctx, quietTime)
	if now, err := handedBy(twin); err != nil || now != left || left == 0 {
		return "", fmt.Errorf("the unit that goes on handed records out %d times, then %d, %w; want some before the withdrawal and none after", left, now, err)
	}
	if err := d.tell(ctx, north, policy.ForApprove); err != nil {
		return "", err
	}
	took, err := d.goesOn(ctx)
	return fmt.Sprintf("north withdraws, and a bank unit goes on: the last response accepted, after the withdrawal: %s; then 0 records leave it; north approves again: the statistic is back after %v",
		last, took), err
}

// begin starts a unit and waits until it is ready.
func (d *dev) begin(ctx context.Context, n newcomer) (*soft.Process, error) {
	p, err := n.launch.start(ctx, d.cluster.TEE)
	if err != nil {
		return nil, err
	}
	if err := comesUp(ctx, n); err != nil {
		return nil, errors.Join(err, ended(p))
	}
	return p, nil
}

// asks is the use of a joiner by a client of the bank's company: for a statistic, which
// the joiner gets by calling a bank.
func (d *dev) asks(ctx context.Context, joins newcomer) (use, func(), error) {
	t, err := d.groupTrust(ctx)
	if err != nil {
		return use{}, nil, err
	}
	m, err := newMiddleman("https://" + joins.listen)
	if err != nil {
		return use{}, nil, err
	}
	ch, err := client.OpenGroup(ctx, client.OpenConfig{Trust: t, Role: jointMembers[joiner].role, Gateway: m.url})
	if err != nil {
		m.close()
		return use{}, nil, err
	}
	ask := func(ctx context.Context) error {
		r, err := http.NewRequestWithContext(ctx, http.MethodGet, "https://"+d.cluster.ServerName+"/statistic", nil)
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
	return use{"statistics", ask, func() {}}, func() {
		ending, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		ch.Close(ending)
		m.close()
	}, nil
}

// handedBy is how often records left one holder.
func handedBy(n newcomer) (int, error) {
	b, err := os.ReadFile(n.log.Name())
	return bytes.Count(b, []byte(handedOut)), err
}
