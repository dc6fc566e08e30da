package channelcheck

import (
	"context"
	"errors"
	"fmt"
	"net/http"

	"github.com/cohort-tee/cohort/client"
	"github.com/cohort-tee/cohort/internal/dev/check"
)

// OneOff checks that a safe one-off request receives a response, whole and in chunks, that the
// unit refuses one that is not safe, and that one with a changed bit is not served.
func OneOff(ctx context.Context, c check.Checker) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, check.StepTime)
	defer cancel()
	m, err := check.NewTamperingProxy(c.Cluster.Gateway)
	if err != nil {
		return "", err
	}
	defer m.Close()
	t, err := c.Trust(ctx)
	if err != nil {
		return "", err
	}
	var signer string
	for _, whole := range []bool{true, false} {
		o, err := client.NewOneOff(ctx, client.OneOffConfig{Trust: t, Gateway: m.URL, Whole: whole})
		if err != nil {
			return "", err
		}
		defer o.Close()
		_, unit, _ := o.SignedKeys()
		signer = unit.UnitID().String()[:8]
		if status, err := c.SendOneOff(ctx, o, http.MethodGet); err != nil || status == http.StatusForbidden {
			return "", fmt.Errorf("GET: status %d, %w", status, err)
		}
		if status, err := c.SendOneOff(ctx, o, http.MethodDelete); err != nil || status != http.StatusForbidden {
			return "", fmt.Errorf("DELETE, marked: got status %d, %v, want %d", status, err, http.StatusForbidden)
		}
		m.Way.Store(&check.Change{Request: check.FlipBit(1, 2)})
		_, err = c.SendOneOff(ctx, o, http.MethodGet)
		m.Way.Store(&check.Change{})
		if err == nil {
			return "", errors.New("a changed request was served")
		}
	}
	return fmt.Sprintf("keys signed by unit %s; GET served, whole and in chunks; DELETE and changed requests refused", signer), nil
}
