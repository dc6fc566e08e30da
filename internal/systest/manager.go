package systest

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"net"
	"net/http/httptest"
	"os"
	"sync"

	"github.com/cohort-tee/cohort/client"
	proxied "github.com/cohort-tee/cohort/internal/forwarded"
	"github.com/cohort-tee/cohort/internal/loopback"
	"github.com/cohort-tee/cohort/internal/manager"
	"github.com/cohort-tee/cohort/policy"
	"github.com/cohort-tee/cohort/unit"
)

// gateway is the cluster's manager. Its addresses, data and certificate stay the same after
// a restart.
type gateway struct {
	listen, bus string
	dir         string
	certificate tls.Certificate
	ca          *x509.CertPool
	roots       []*x509.Certificate
	plain       bool // the certificate is for the bus alone
	proxies     proxied.Proxies
	limits      manager.Limits

	stop func() // of the running manager; nil when it is down
}

// StartManager starts the cluster's manager. Units that start later connect to it.
func (c *Cluster) StartManager() {
	c.t.Helper()
	if c.manager == nil {
		c.manager = c.newGateway()
		c.t.Cleanup(c.StopManager)
	}
	g := c.manager
	m, err := manager.New(manager.Config{
		DataDir: g.dir, Roots: g.roots, BusAddress: g.bus, Log: c.Log, Authorities: []string{c.URL()},
		Certificate: func() (*tls.Certificate, error) { return &g.certificate, nil },
		Plain:       g.plain, Proxies: g.proxies, Limits: g.limits,
	})
	if err != nil {
		c.t.Fatalf("making the manager: %v", err)
	}
	l, err := net.Listen("tcp", g.listen)
	if err != nil {
		c.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- m.Serve(ctx, l) }()
	g.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			c.t.Errorf("manager ended: %v", err)
		}
	})
}

// newGateway returns a manager with addresses, an operator's certificate and the root of
// the authority, which must be running.
func (c *Cluster) newGateway() *gateway {
	c.t.Helper()
	trust, err := client.FetchTrust(c.t.Context(), c.TrustConfig(c.anyTask()))
	if err != nil {
		c.t.Fatalf("fetching the authority root: %v", err)
	}
	operator := httptest.NewUnstartedServer(nil)
	operator.StartTLS()
	defer operator.Close()
	g := &gateway{
		listen: loopback.FreeAddress(c.t), bus: loopback.FreeAddress(c.t), dir: c.t.TempDir(), ca: x509.NewCertPool(),
		certificate: operator.TLS.Certificates[0], roots: []*x509.Certificate{trust.AuthorityRoot()},
	}
	g.ca.AddCert(operator.Certificate())
	return g
}

// anyTask returns some task of the genesis policy.
func (c *Cluster) anyTask() string {
	c.t.Helper()
	approved, err := policy.Replay(c.Genesis, c.Steps)
	if err != nil {
		c.t.Fatal(err)
	}
	return approved.Document().TaskNames()[0]
}

// StopManager stops the manager if it is running.
func (c *Cluster) StopManager() {
	if c.manager != nil && c.manager.stop != nil {
		c.manager.stop()
		c.manager.stop = nil
	}
}

// WipeManager deletes all data of a manager that is down.
func (c *Cluster) WipeManager() {
	c.t.Helper()
	if err := os.RemoveAll(c.manager.dir); err != nil {
		c.t.Fatal(err)
	}
}

// managerConfig returns a unit's configuration of the manager, empty without a manager.
func (c *Cluster) managerConfig() unit.Manager {
	if c.manager == nil {
		return unit.Manager{}
	}
	return unit.Manager{URL: "tls://" + c.manager.bus, CA: c.manager.ca}
}

// OpenConfig returns the configuration of a channel to a task through the manager's
// gateway.
func (c *Cluster) OpenConfig(task string) client.OpenConfig {
	c.t.Helper()
	trust, err := client.FetchTrust(c.t.Context(), c.TrustConfig(task))
	if err != nil {
		c.t.Fatalf("trusting %s: %v", task, err)
	}
	return client.OpenConfig{Trust: trust, Gateway: "https://" + c.manager.listen, CA: c.manager.ca}
}

// OpenChannel opens a channel, closed with the test.
func (c *Cluster) OpenChannel(config client.OpenConfig) *client.Channel {
	c.t.Helper()
	ch, err := client.Open(c.t.Context(), config)
	if err != nil {
		c.t.Fatalf("opening a channel: %v", err)
	}
	c.t.Cleanup(func() { ch.Close(context.Background()) })
	return ch
}
