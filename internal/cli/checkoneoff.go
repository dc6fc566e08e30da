package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"

	"github.com/cohort-tee/cohort/client"
)

// oneOff: a request without a session, whole and in chunks, is answered; one
// that is not safe is refused inside; whoever changes a bit of one gets nothing.
func (c checker) oneOff(ctx context.Context) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, stepTime)
	defer cancel()
	m, err := newMiddleman(c.cluster.Gateway)
	if err != nil {
		return "", err
	}
	defer m.close()
	t, err := c.trust(ctx)
	if err != nil {
		return "", err
	}
	var signer string
	for _, whole := range []bool{true, false} {
		o, err := client.NewOneOff(ctx, client.OneOffConfig{Trust: t, Gateway: m.url, Whole: whole})
		if err != nil {
			return "", err
		}
		defer o.Close()
		_, unit, _ := o.Keys()
		signer = unit.UnitID().String()[:8]
		if status, err := c.once(ctx, o, http.MethodGet); err != nil || status == http.StatusForbidden {
			return "", fmt.Errorf("GET: status %d, %w", status, err)
		}
		if status, err := c.once(ctx, o, http.MethodDelete); err != nil || status != http.StatusForbidden {
			return "", fmt.Errorf("DELETE, marked: got status %d, %v, want %d", status, err, http.StatusForbidden)
		}
		m.way.Store(&change{request: flip(1, 2)})
		_, err = c.once(ctx, o, http.MethodGet)
		m.way.Store(&change{})
		if err == nil {
			return "", errors.New("a changed request was answered")
		}
	}
	return fmt.Sprintf("keys signed by unit %s; GET answered, whole and in chunks; DELETE and changed requests refused", signer), nil
}

// once sends a request that is marked, and gives the status of its answer.
func (c checker) once(ctx context.Context, o *client.OneOff, method string) (int, error) {
	r, err := http.NewRequestWithContext(ctx, method, "https://"+c.cluster.ServerName+"/", nil)
	if err != nil {
		return 0, err
	}
	r.Header.Set("Idempotency-Key", "check")
	answer, err := o.RoundTrip(r)
	if err != nil {
		return 0, err
	}
	defer answer.Body.Close()
	_, err = io.Copy(io.Discard, answer.Body)
	return answer.StatusCode, err
}
