package client

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http"
	"sync/atomic"
	"time"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/identity"
)

// errCut is read where a connection ends without the TLS notice that says so:
// the peer died, or somebody cut its answer short.
var errCut = errors.New("connection cut without a TLS close")

// link is the connection below TLS. It knows whether anything was handed to the
// network, and it makes an end that the peer did not authenticate an error, so
// that an answer is never silently short.
type link struct {
	net.Conn
	writes atomic.Int64
	closed atomic.Bool
}

func (l *link) Write(b []byte) (int, error) {
	l.writes.Add(1)
	if l.closed.Load() {
		return 0, net.ErrClosed
	}
	return l.Conn.Write(b)
}

func (l *link) Read(b []byte) (int, error) {
	n, err := l.Conn.Read(b)
	if errors.Is(err, io.EOF) {
		err = errCut
	}
	return n, err
}

// wroteSince stops all further writes and reports whether there was one since
// the count was mark. The order of the two makes "no" final.
func (l *link) wroteSince(mark int64) bool {
	l.closed.Store(true)
	return l.writes.Load() != mark
}

// conn is one connection to a replica whose identity was checked. It carries
// one request at a time.
type conn struct {
	http    *http.ClientConn
	link    *link
	state   tls.ConnectionState
	replica *replica
	retire  time.Time // no request is put on it again after this

	head attest.Digest // guarded by pool.mu: of the policy under which the peer was checked
	busy bool          // guarded by pool.mu
	used time.Time     // guarded by pool.mu
}

// dial connects to a replica and checks who answers. A refusal makes the client
// fetch trust again, because policy may have moved on; if it has, the replica
// is asked once more.
func (c *Client) dial(r *replica) (*conn, error) {
	ctx, cancel := context.WithTimeout(c.life, dialTime)
	defer cancel()
	overdue := time.AfterFunc(stagger, func() { c.pool.late(r, 1) })
	defer func() {
		if !overdue.Stop() {
			c.pool.late(r, -1)
		}
	}()
	began := c.now()
	trust := c.trust.Load()
	opened, err := c.dialUnder(ctx, trust, r)
	if refused(err) {
		if newer := c.renewAfter(ctx, trust); !newer.is(trust) {
			trust = newer
			opened, err = c.dialUnder(ctx, newer, r)
		}
	}
	if newest := c.trust.Load(); err == nil && !newest.is(trust) { // a step came under way
		c.enforce(newest)
	}
	c.counters.dials.Add(1)
	if err != nil {
		c.pool.failed(r, began, c.now())
		return nil, err
	}
	return opened, nil
}

func (c *Client) dialUnder(ctx context.Context, trust *Trust, r *replica) (*conn, error) {
	below, err := c.config.Dial(ctx, "tcp", r.address)
	if err != nil {
		return nil, err
	}
	opened := &conn{link: &link{Conn: below}, replica: r, head: trust.Policy().Head()}
	secured := tls.Client(opened.link, c.tlsConfig(trust))
	if err := secured.HandshakeContext(ctx); err != nil {
		below.Close()
		return nil, err
	}
	opened.state = secured.ConnectionState()
	leaf := opened.state.PeerCertificates[0]
	opened.retire = leaf.NotAfter.Add(-retireBefore(leaf))
	opened.http, err = c.http.NewClientConn(context.WithValue(ctx, dialed{}, secured), "https", r.address)
	if err != nil {
		below.Close()
		return nil, err
	}
	c.pool.opened(opened, c.now())
	return opened, nil
}

// tlsConfig completes a handshake only with a replica that trust names.
func (c *Client) tlsConfig(trust *Trust) *tls.Config {
	expect := func() identity.Expect { return trust.expect(c.now()) }
	config := identity.ClientTLS(c.config.ServerName, trust.AuthorityRoot, expect)
	config.NextProtos = []string{"http/1.1"}
	return config
}

// dialed is the context key under which a connection that is already checked
// is handed to the HTTP transport.
type dialed struct{}

// newTransport makes the HTTP side of connections. It opens none by itself.
func newTransport() *http.Transport {
	return &http.Transport{
		DialTLSContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			secured, ok := ctx.Value(dialed{}).(*tls.Conn)
			if !ok {
				return nil, net.ErrClosed
			}
			return secured, nil
		},
		// Asking for gzip would hide the length of an answer.
		DisableCompression: true,
	}
}
