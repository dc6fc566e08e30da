// Package client is the client that checks: it trusts one value, the genesis
// digest of a policy history, and reaches any replica of a cluster whose code
// the owners of that policy approved.
//
// [FetchTrust] makes [Trust] of a pin: it replays the owners' signatures,
// appraises the authority's own evidence, and gives the identity roots, as
// objects and as PEM for other TLS clients. [New] makes a [Client] of Trust and
// addresses. It is an [http.RoundTripper]: it spreads requests over the
// replicas, races connections, backs off from what fails, sends again what may
// be sent again, and hedges late answers within a budget. [Verify] tells what
// stands at an address. [Open] makes a [Channel]: a session with the whole
// cluster, encrypted end to end, through any gateway.
//
// Every handshake ends in [identity.Check] against the newest policy, before a
// byte of a request leaves. Addresses, resolvers, proxies and the authority's
// operator are trusted with nothing. It refuses code that policy does not name,
// roots that policy does not name, and policy older than any it has seen. No
// option turns a check off.
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

// ErrClosed is in the error of requests to a closed client.
var ErrClosed = errors.New("client closed")

const (
	maintainInterval = 10 * time.Second // addresses are looked up, and connections swept
	minRefresh       = time.Second      // refused handshakes make trust be fetched at most this often
	defaultRefresh   = time.Minute
)

// Resolver looks up the addresses of a name. [net.Resolver] is one.
type Resolver interface {
	LookupHost(ctx context.Context, host string) (addresses []string, err error)
}

// Config says which cluster a client speaks to. Trust is required; the rest
// bears on reaching it only.
type Config struct {
	// Trust is what [FetchTrust] gave. The client fetches it anew by itself.
	Trust *Trust
	// ServerName is a DNS name that policy gives the task, and the host of
	// every request's URL. Empty is the task's first.
	ServerName string
	// Addresses are "host:port". A name stands for all its addresses. None
	// is the server name with port 443.
	Addresses []string
	// Resolver looks up names in Addresses. Nil is the system's.
	Resolver Resolver
	// Dial opens connections. Nil is the system's TCP.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
	// Refresh is how old trust may become before it is fetched anew with fresh
	// evidence of the authority. 0 is one minute. What owners withdraw is refused as
	// soon as the authority has it: trust is watched, and waits for no refresh.
	Refresh time.Duration
}

// Client sends requests to the replicas of one cluster. It is safe for
// concurrent use and is closed by its owner.
type Client struct {
	config Config
	pool   *pool
	trust  trustRefresher

	hedges    *budget
	retries   *budget
	latencies latencies
	counters  counters

	locating sync.Mutex // one look-up at a time

	lifetime context.Context // ends with Close
	stop     context.CancelFunc
	tasks    sync.WaitGroup // calls under way, and every goroutine started
	closing  sync.Mutex     // guards closed, and tasks against starting while Close waits
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
	c.pool = newPool(config.Trust.Policy().Head(), config.Trust.config.Clock, c.newTransport)
	c.lifetime, c.stop = context.WithCancel(context.Background())
	c.trust.attach(config.Trust, min(minRefresh, config.Refresh), &gateways{})
	c.tasks.Go(c.maintain)
	return c, nil
}

// fetchMissing fills in what has a default and tells every fault of the rest.
func (c *Config) complete() error {
	if c.Trust == nil {
		return wire.Refuse(wire.BadRequest, "client: trust", "none", "that of FetchTrust")
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

func (c *Client) now() time.Time { return c.config.Trust.config.Clock() }

// Trust is the newest trust. Its [Trust.State] is worth keeping.
func (c *Client) Trust() *Trust { return c.trust.Load() }

// Close ends all connections and waits for what the client started. Requests
// under way fail with [ErrClosed].
func (c *Client) Close() {
	c.closing.Lock()
	c.closed = true
	c.closing.Unlock()
	c.stop()
	c.pool.close()
	c.tasks.Wait()
	c.trust.release()
}

// beginTask makes Close wait for one more task, or fails once the client is closed.
func (c *Client) beginTask() error {
	c.closing.Lock()
	defer c.closing.Unlock()
	if c.closed {
		return ErrClosed
	}
	c.tasks.Add(1)
	return nil
}

// maintain keeps trust, addresses and connections fresh until Close.
func (c *Client) maintain() {
	ticker := time.NewTicker(min(maintainInterval, c.config.Refresh))
	defer ticker.Stop()
	head := c.config.Trust.Policy().Head()
	for {
		moved := c.trust.changed()
		if newest := c.trust.Load(); newest.Policy().Head() != head {
			head = newest.Policy().Head()
			c.enforce(newest)
		}
		select {
		case <-c.lifetime.Done():
			return
		case <-moved:
			continue
		case <-ticker.C:
		}
		if held := c.trust.Load(); c.now().Sub(held.fetchedAt) >= c.config.Refresh {
			c.renewTrust(c.lifetime, held)
		}
		// What is known stays when a look-up fails.
		_ = c.resolve(c.lifetime)
		c.pool.sweep(c.now())
	}
}

// renewTrust gives trust newer than old, if there is any, and puts connections
// under it.
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

// enforce checks every connection under trust: one that it refuses ends at once, whatever
// is under way on it, and the others go on under its policy.
func (c *Client) enforce(t *Trust) {
	c.pool.enforce(t.Policy().Head(), c.now(), func(opened *conn) error {
		_, err := identity.Check(opened.peer.PeerCertificates, t.root, t.expect(c.now()))
		return err
	})
}

// ensureAddresses makes sure that some address is known.
func (c *Client) ensureAddresses(ctx context.Context) error {
	if c.pool.size() > 0 {
		return nil
	}
	c.locating.Lock()
	defer c.locating.Unlock()
	if c.pool.size() > 0 {
		return nil
	}
	if err := c.resolve(ctx); err != nil {
		return fmt.Errorf("%w: %w", ErrUnreachable, err)
	}
	return nil
}

// resolve looks up all addresses. On an error those known before stay.
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

// lookUpAddress gives the addresses that a "host:port" stands for.
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
