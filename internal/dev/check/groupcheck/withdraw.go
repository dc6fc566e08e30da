package groupcheck

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/cohort-tee/cohort/attest/soft"
	"github.com/cohort-tee/cohort/client"
	"github.com/cohort-tee/cohort/internal/cli/sshkey"
	"github.com/cohort-tee/cohort/internal/dev"
	"github.com/cohort-tee/cohort/internal/dev/check"
	"github.com/cohort-tee/cohort/internal/retry"
	"github.com/cohort-tee/cohort/internal/wire"
	"github.com/cohort-tee/cohort/policy/sshsig"
)

// unitIgnoresWithdrawal checks a unit of a holder that continues after its party's withdrawal,
// because it no longer reaches the authority. A unit that calls it, and the client of that unit,
// must refuse it in time, and it must return no further records.
func (d cluster) unitIgnoresWithdrawal(ctx context.Context) (_ string, err error) {
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
	twin, err := d.memberOf(dir, d.holder(), "https://"+line.Listener.Addr().String(), d.Bin.Members[d.holder()], nil, d.PartyKey(d.party(d.holder())))
	if err != nil {
		return "", err
	}
	caller, err := d.memberOf(dir, d.asked(), d.Doc.Authority, d.Bin.Members[d.asked()], map[string]string{d.roleName(d.holder()): twin.Listen}, d.PartyKey(d.party(d.asked())))
	if err != nil {
		return "", errors.Join(err, twin.Log.Close())
	}
	for _, n := range []check.Newcomer{twin, caller} {
		defer n.Log.Close()
		p, err := d.begin(ctx, n)
		if err != nil {
			return "", err
		}
		defer func() { _ = check.Ended(p) }() // the result does not matter
	}
	asking, end, err := d.useAsked(ctx, caller)
	if err != nil {
		return "", err
	}
	defer end()
	parties, err := d.Parties()
	if err != nil {
		return "", err
	}
	withdrawing := parties[slices.IndexFunc(parties, func(p sshkey.Pair) bool { return p.Name == d.party(d.holder()) })]
	last, err := check.LastAccepted(ctx, []check.Use{asking}, func(ctx context.Context) error {
		close(line.Cut)
		return d.SubmitStatement(ctx, withdrawing, sshsig.ForWithdraw)
	})
	if err != nil {
		return "", err
	}
	left, err := d.handedBy(twin)
	if err != nil {
		return "", err
	}
	if err := dev.Ready(ctx, twin.Health); err != nil {
		return "", fmt.Errorf("the unit that was to go on: %w", err)
	}
	if _, err := d.GroupTrust(ctx); !errors.Is(err, wire.NoQuorum) {
		return "", fmt.Errorf("a client that begins now: got %v, want a refusal [%s]", err, wire.NoQuorum)
	}
	_ = retry.Sleep(ctx, check.QuietTime)
	if now, err := d.handedBy(twin); err != nil || now != left || left == 0 {
		return "", fmt.Errorf("the unit that goes on handed records out %d times, then %d, %w; want some before the withdrawal and none after", left, now, err)
	}
	if err := d.SubmitStatement(ctx, withdrawing, sshsig.ForApprove); err != nil {
		return "", err
	}
	took, err := d.goesOn(ctx)
	return fmt.Sprintf("%[1]s withdraws, and a %[2]s unit goes on: the last response accepted, after the withdrawal: %[3]s; then 0 records leave it; %[1]s approves again: the statistic is back after %[4]v",
		withdrawing.Name, d.roleName(d.holder()), last, took), err
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

// useAsked returns the use of a unit of the asked role by a client of the first party: the
// example's request, for which the unit calls a holder.
func (d cluster) useAsked(ctx context.Context, joins check.Newcomer) (check.Use, func(), error) {
	t, err := d.GroupTrust(ctx)
	if err != nil {
		return check.Use{}, nil, err
	}
	m, err := check.NewTamperingProxy("https://" + joins.Listen)
	if err != nil {
		return check.Use{}, nil, err
	}
	ch, err := client.OpenGroup(ctx, client.OpenConfig{Trust: t, Role: d.roleName(d.asked()), Gateway: m.URL})
	if err != nil {
		m.Close()
		return check.Use{}, nil, err
	}
	ask := func(ctx context.Context) error {
		r, err := http.NewRequestWithContext(ctx, http.MethodGet, "https://"+d.Doc.ServerName+d.Bin.Example.Request.Path, nil)
		if err != nil {
			return err
		}
		response, err := ch.RoundTrip(r)
		if err != nil {
			return err
		}
		defer response.Body.Close()
		if response.StatusCode != http.StatusOK {
			return fmt.Errorf("asking the %s: got %s", d.roleName(d.asked()), response.Status)
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

// handedBy returns the number of times that one holder has returned records.
func (d cluster) handedBy(n check.Newcomer) (int, error) {
	b, err := os.ReadFile(n.Log.Name())
	return bytes.Count(b, d.handedOut()), err
}
