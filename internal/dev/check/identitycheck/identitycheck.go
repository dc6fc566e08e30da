// Package identitycheck checks the identity of a development cluster: its certificates, that no
// other program receives one, and that clients refuse in time the units that owners cut off.
//
// Files, each using those before it: cluster.go, tee.go, twin.go, cut.go,
// identitycheck.go, load.go, rollback.go, root.go.
package identitycheck

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"

	"github.com/cohort-tee/cohort/internal/cli/frame"
	"github.com/cohort-tee/cohort/internal/dev"
	"github.com/cohort-tee/cohort/internal/dev/check"
	"github.com/cohort-tee/cohort/internal/manager/selfsigned"
	"github.com/cohort-tee/cohort/policy/policyfile"
)

// OneCertificate checks that in key mode shared all units present the same leaf, and that in key
// mode unit each presents its own leaf under one root.
func OneCertificate(ctx context.Context, c check.Checker) (string, error) {
	config, err := c.Plain()
	if err != nil {
		return "", err
	}
	leaves, roots := map[string]bool{}, map[string]bool{}
	for _, u := range c.Cluster.Units {
		state, err := dev.Handshake(ctx, u.Address, config)
		if err != nil {
			return "", err
		}
		chain := state.VerifiedChains[0]
		leaves[string(chain[0].Raw)] = true
		roots[string(chain[len(chain)-1].Raw)] = true
	}
	units, want := len(c.Cluster.Units), 1
	if c.Cluster.KeyMode == string(policyfile.PerUnit) {
		want = units
	}
	if len(leaves) != want || len(roots) != 1 {
		return "", fmt.Errorf("got %d leaves and %d roots on %d units, want %d leaves and 1 root", len(leaves), len(roots), units, want)
	}
	return fmt.Sprintf("%d units, %d leaf certificate(s), 1 root, key mode %s", units, len(leaves), c.Cluster.KeyMode), nil
}

// TLS13Only checks that units end the handshake of a client that supports at most TLS 1.2 with
// an alert.
func TLS13Only(ctx context.Context, c check.Checker) (string, error) {
	old := &tls.Config{InsecureSkipVerify: true, ServerName: c.Cluster.ServerName, MaxVersion: tls.VersionTLS12}
	for _, u := range c.Cluster.Units {
		state, err := dev.Handshake(ctx, u.Address, old)
		if err == nil {
			return "", fmt.Errorf("unit %s: got %s, want TLS 1.3 only", u.Address, tls.VersionName(state.Version))
		}
		if !frame.IsAlert(err) {
			return "", fmt.Errorf("trying TLS 1.2: %w, want a TLS alert", err)
		}
	}
	return "TLS 1.2 refused by an alert on each unit", nil
}

// ticketCount counts the session tickets that a server sends.
type ticketCount struct{ given int }

func (t *ticketCount) Get(string) (*tls.ClientSessionState, bool) { return nil, false }

func (t *ticketCount) Put(_ string, s *tls.ClientSessionState) {
	if s != nil {
		t.given++
	}
}

// NoTickets checks that units send no session tickets to a client that would store them.
func NoTickets(ctx context.Context, c check.Checker) (string, error) {
	for _, u := range c.Cluster.Units {
		config, err := c.Plain()
		if err != nil {
			return "", err
		}
		tickets := &ticketCount{}
		config.ClientSessionCache = tickets
		if _, err := check.GetStatus(ctx, u.Address, config); err != nil {
			return "", err
		}
		if tickets.given > 0 {
			return "", fmt.Errorf("unit %s: got %d session tickets, want none", u.Address, tickets.given)
		}
	}
	return "no session ticket from any unit", nil
}

// WrongRootRefused checks that a client that trusts a different root, that of the manager,
// completes no handshake.
func WrongRootRefused(ctx context.Context, c check.Checker) (string, error) {
	other, err := frame.ReadPool(selfsigned.CAFile(c.Cluster.Manager.Data))
	if err != nil {
		return "", err
	}
	config := &tls.Config{RootCAs: other, ServerName: c.Cluster.ServerName, MinVersion: tls.VersionTLS13}
	for _, u := range c.Cluster.Units {
		_, err := dev.Handshake(ctx, u.Address, config)
		var unknown x509.UnknownAuthorityError
		if err == nil || !errors.As(err, &unknown) {
			return "", fmt.Errorf("unit %s: got %v, want an unknown authority", u.Address, err)
		}
	}
	return "each unit refused under another root", nil
}
