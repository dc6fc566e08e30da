// Package client sends requests to the attested replicas of a cluster. It trusts
// one value, the genesis digest of a policy history, and reaches any replica
// whose code the owners of that policy approved.
//
// [FetchTrust] turns a pin into [Trust]: it verifies the owners' signatures on every step of the
// policy history, appraises the authority's own evidence, and returns the identity roots, as
// objects and as PEM for other TLS clients. [New] makes a [Client] from Trust and addresses. A
// Client is an [http.RoundTripper]: it spreads requests over the replicas, races connections, backs
// off from replicas that fail, repeats requests that may be sent again, and hedges late responses
// within a budget. [Verify] reports which code serves an address. [Open] opens a [Channel]: a
// session with the whole cluster, encrypted end to end, through any gateway.
//
// Every handshake ends with [identity.Check] against the newest policy, before the client
// writes a byte of a request. Addresses, resolvers, proxies and the authority's operator
// are untrusted. The package refuses code and roots that the policy does not name, and any
// policy older than the newest it has seen. No option turns a check off.
//
// Files, each using those before it: pace.go, gateways.go, body.go, state.go,
// tls_other.go, gatewaydial.go, dynamic.go, tls.go, pool.go, refresh.go, trust.go,
// group.go, client.go, channel.go, stats.go, call.go, fetch.go, conn.go, oneoff.go,
// attempt.go, verify.go.
package client

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/cohort-tee/cohort/identity"
	"github.com/cohort-tee/cohort/internal/wire"
)

// ErrClosed is wrapped by the error of a request on a closed [Client] or [Channel].
var ErrClosed = errors.New("client closed")

const (
	maintainInterval = 10 * time.Second // between two rounds of address lookup and connection sweep
	minRefresh       = time.Second      // least time between two fetches of trust after refused handshakes
	defaultRefresh   = time.Minute
)

// Resolver looks up the addresses of a host name. [net.Resolver] implements it.
type Resolver interface {
	LookupHost(ctx context.Context, host string) (addresses []string, err error)
}

// Config selects the cluster of a client. Trust is required; the other fields
// affect only how the client reaches the cluster.
type Config struct {
	// Trust comes from [FetchTrust]. The client renews it by itself.
	Trust *Trust
	// ServerName is one of the task's DNS names in the policy, and the host of every
	// request's URL. Empty means the first of these names.
	ServerName string
	// Addresses are the replicas, each as "host:port". A host name means all the
	// addresses it resolves to. Empty means the server name with port 443.
	Addresses []string
	// Resolver looks up the host names in Addresses. Nil means [net.DefaultResolver].
	Resolver Resolver
	// Dial opens connections. Nil means TCP by a zero [net.Dialer].
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
	// Refresh is the maximum age of trust; older trust is fetched again, with fresh
	// evidence of the authority. 0 means one minute. Code that the owners withdraw is
	// refused earlier, because the client also watches the policy history.
	Refresh time.Duration
}

// Client sends requests to the replicas of one cluster. It is safe for concurrent
// use. The caller of [New] closes it.
type Client struct {
	config Config
	pool   *pool
	trust  trustRefresher

	hedges    *budget
	retries   *budget
	latencies latencies
	counters  counters

	locating sync.Mutex // held during a lookup

	lifetime context.Context // canceled by Close
	stop     context.CancelFunc
	tasks    sync.WaitGroup // calls and goroutines in progress
	closing  sync.Mutex     // guards closed, and keeps tasks from starting while Close waits
	closed   bool
}

// New makes a client. It opens no connection. On js/wasm it fails with [ErrNoTLS].
func New(config Config) (*Client, error) {
	if !tlsVerifies {
		return nil, ErrNoTLS
	}
	if err := config.complete(); err != nil {
		return nil, err
	}
	c := &Client{
		config:  config,
		hedges:  newBudget(hedgeShare, hedgeBurst),
		retries: newBudget(retryShare, retryBurst),
	}
	c.pool = newPool(config.Trust.Policy().PolicyHead(), config.Trust.config.Clock, c.newTransport)
	c.lifetime, c.stop = context.WithCancel(context.Background())
	c.trust.attach(config.Trust, min(minRefresh, config.Refresh), &gateways{})
	c.tasks.Go(c.maintain)
	return c, nil
}

// complete fills in defaults and returns all faults of the configuration, joined.
func (c *Config) complete() error {
	if c.Trust == nil {
		return wire.Refuse(wire.BadRequest, "client: trust", "no trust", "a Trust of FetchTrust")
	}
	var faults []error
	names := c.Trust.serverNames()
	if c.ServerName == "" && len(names) > 0 {
		c.ServerName = names[0]
	}
	if !slices.Contains(names, c.ServerName) {
		faults = append(faults, wire.Refuse(wire.WrongName, "client: server name", c.ServerName, names))
	}
	if len(c.Addresses) == 0 {
		c.Addresses = []string{net.JoinHostPort(c.ServerName, "443")}
	}
	for _, address := range c.Addresses {
		if host, port, err := net.SplitHostPort(address); err != nil || host == "" || port == "" {
			faults = append(faults, wire.Refuse(wire.BadRequest, "client: address", address, "HOST:PORT"))
		}
	}
	if c.Resolver == nil {
		c.Resolver = net.DefaultResolver
	}
	if c.Dial == nil {
		c.Dial = new(net.Dialer).DialContext
	}
	if c.Refresh <= 0 {
		c.Refresh = defaultRefresh
	}
	return errors.Join(faults...)
}

func (c *Client) currentTime() time.Time { return c.config.Trust.config.Clock() }

// Trust returns the newest trust. Store its [Trust.State] for [TrustConfig.State].
func (c *Client) Trust() *Trust { return c.trust.Load() }

// Close ends all connections and waits for the client's goroutines. Requests in
// progress fail with [ErrClosed].
func (c *Client) Close() {
	c.closing.Lock()
	c.closed = true
	c.closing.Unlock()
	c.stop()
	c.pool.close()
	c.tasks.Wait()
	c.trust.release()
}

// beginTask makes Close wait for one more task; the caller then calls c.tasks.Done.
// It fails after Close.
func (c *Client) beginTask() error {
	c.closing.Lock()
	defer c.closing.Unlock()
	if c.closed {
		return ErrClosed
	}
	c.tasks.Add(1)
	return nil
}

// maintain renews trust and addresses, and closes stale connections, until Close.
func (c *Client) maintain() {
	ticker := time.NewTicker(min(maintainInterval, c.config.Refresh))
	defer ticker.Stop()
	head := c.config.Trust.Policy().PolicyHead()
	for {
		moved := c.trust.changed()
		if newest := c.trust.Load(); newest.Policy().PolicyHead() != head {
			head = newest.Policy().PolicyHead()
			c.enforce(newest)
		}
		select {
		case <-c.lifetime.Done():
			return
		case <-moved:
			continue
		case <-ticker.C:
		}
		if known := c.trust.Load(); c.currentTime().Sub(known.fetchedAt) >= c.config.Refresh {
			c.renewTrust(c.lifetime, known)
		}
		// When a lookup fails, the client keeps the known addresses.
		_ = c.resolve(c.lifetime)
		c.pool.sweep(c.currentTime())
	}
}

// renewTrust fetches trust newer than old and checks the open connections under it. It
// returns the newest known trust, which is old if there is no newer.
func (c *Client) renewTrust(ctx context.Context, old *Trust) *Trust {
	newer, err := c.trust.renew(ctx, old)
	if err != nil {
		c.counters.refreshFailed.Add(1)
	}
	if !newer.sameAs(old) {
		c.enforce(newer)
	}
	return newer
}

// enforce checks every connection under t. A connection that fails the check ends at
// once, with the request on it; the others stay open.
func (c *Client) enforce(t *Trust) {
	c.pool.enforce(t.Policy().PolicyHead(), c.currentTime(), func(opened *conn) error {
		_, err := identity.Check(opened.peer.PeerCertificates, t.root, t.expect(c.currentTime()))
		return err
	})
}

// ensureAddresses looks up the addresses unless the pool has replicas already.
func (c *Client) ensureAddresses(ctx context.Context) error {
	if c.pool.replicaCount() > 0 {
		return nil
	}
	c.locating.Lock()
	defer c.locating.Unlock()
	if c.pool.replicaCount() > 0 {
		return nil
	}
	if err := c.resolve(ctx); err != nil {
		return fmt.Errorf("%w: %w", ErrUnreachable, err)
	}
	return nil
}

// resolve looks up all addresses and replaces the known ones. On an error the known addresses stay.
func (c *Client) resolve(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	var all []string
	for _, address := range c.config.Addresses {
		found, err := c.lookUpAddress(ctx, address)
		if err != nil {
			return fmt.Errorf("looking up %s: %w", address, err)
		}
		all = append(all, found...)
	}
	slices.Sort(all)
	c.pool.setAddresses(slices.Compact(all))
	return nil
}

// lookUpAddress resolves the host of a "host:port".
func (c *Client) lookUpAddress(ctx context.Context, address string) ([]string, error) {
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return nil, err
	}
	if _, err := netip.ParseAddr(host); err == nil {
		return []string{address}, nil
	}
	hosts, err := c.config.Resolver.LookupHost(ctx, host)
	if err != nil {
		return nil, err
	}
	var found []string
	for _, h := range hosts {
		found = append(found, net.JoinHostPort(h, port))
	}
	return found, nil
}
