package identitycheck

import (
	"context"
	"errors"
	"net/http"
	"strings"
	"time"

	"github.com/cohort-tee/cohort/attest/soft"
	"github.com/cohort-tee/cohort/client"
	"github.com/cohort-tee/cohort/internal/dev"
	"github.com/cohort-tee/cohort/internal/dev/check"
	"github.com/cohort-tee/cohort/internal/wire"
)

// twin is a unit that continues under any policy: once its cable to the authority is cut it
// receives no later policy, and its certificates are valid for an hour.
type twin struct {
	check.Newcomer
	id      wire.UnitID
	process *soft.Process
	cable   *check.Cable
	gateway *check.TamperingProxy // forwards all requests to this unit
}

// newTwin starts a twin with a program in a TEE. The caller closes it.
func newTwin(ctx context.Context, c check.Checker, dir, socket string, program []string) (_ *twin, err error) {
	t := &twin{}
	defer func() {
		if err != nil {
			err = errors.Join(err, t.close())
		}
	}()
	if t.cable, err = check.NewCable(strings.TrimPrefix(c.Cluster.Authority, "https://")); err != nil {
		return nil, err
	}
	if t.Newcomer, err = c.NewUnit(dir, "https://"+t.cable.Listener.Addr().String(), program); err != nil {
		return nil, err
	}
	if t.process, err = t.Launch.Start(ctx, socket); err != nil {
		return nil, err
	}
	if err := check.ComesUp(ctx, t.Newcomer); err != nil {
		return nil, err
	}
	if t.id, err = check.UnitAt(ctx, dev.Unit{Address: t.Listen, Health: t.Health}); err != nil {
		return nil, err
	}
	t.gateway, err = check.NewTamperingProxy("https://" + t.Listen)
	return t, err
}

func (t *twin) close() error {
	var faults []error
	if t.gateway != nil {
		t.gateway.Close()
	}
	if t.process != nil {
		faults = append(faults, check.Ended(t.process))
	}
	if t.cable != nil {
		t.cable.Close()
	}
	if t.Log != nil {
		faults = append(faults, t.Log.Close())
	}
	return errors.Join(faults...)
}

// allUses returns all ways in which clients use a unit of the task: a session, a receipt, a
// one-off request, and TLS.
func allUses(ctx context.Context, c check.Checker, t *twin) (all []check.Use, err error) {
	ctx, cancel := context.WithTimeout(ctx, check.StepTime)
	defer cancel()
	trust, err := c.Trust(ctx)
	if err != nil {
		return nil, err
	}
	url := "https://" + c.Cluster.ServerName + "/"
	ch, err := client.Open(ctx, client.OpenConfig{Trust: trust, Gateway: t.gateway.URL, Receipts: true})
	if err != nil {
		return nil, err
	}
	all = append(all, check.Use{Name: "sessions", Ask: func(ctx context.Context) error { return check.RequestOnce(ctx, ch, url) }, End: func() {
		ending, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		ch.Close(ending)
	}})
	s := &check.Session{Channel: ch, URL: url}
	all = append(all, check.Use{Name: "receipts", Ask: func(ctx context.Context) error { _, _, err := s.RequestWithReceipt(ctx); return err }, End: func() {}})
	o, err := client.NewOneOff(ctx, client.OneOffConfig{Trust: trust, Gateway: t.gateway.URL})
	if err != nil {
		return all, err
	}
	all = append(all, check.Use{Name: "one-offs", Ask: func(ctx context.Context) error { _, err := c.SendOneOff(ctx, o, http.MethodGet); return err }, End: o.Close})
	direct, err := client.New(client.Config{Trust: trust, ServerName: c.Cluster.ServerName, Addresses: []string{t.Listen}})
	if err != nil {
		return all, err
	}
	return append(all, check.Use{Name: "TLS", Ask: func(ctx context.Context) error { return check.RequestOnce(ctx, direct, url) }, End: direct.Close}), nil
}
