package agent

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cohort-tee/cohort/internal/wire"
	"github.com/cohort-tee/cohort/unit"
)

// RoleField is the header field that contains the role of the unit that sent a request. The
// agent sets it from the sender's certificate, and removes any value that the sender set.
const RoleField = "Cohort-Role"

// Peer is a role that an agent's program calls. The program sends plain HTTP requests to a
// loopback address, and the agent forwards them to units of the role over mutual TLS. The
// program receives the URL in the variable PEER_ROLE, with the role in capitals and "_" for "-",
// and in place of {peer.role} in its arguments.
type Peer struct {
	Role string
	// Addresses are "host:port" of units of the role. They are untrusted. The agent skips an
	// address that it cannot connect to.
	Addresses []string
}

// peerIdleTime is the time after which an idle connection to a peer, or from the program, is
// closed.
const peerIdleTime = 2 * time.Minute

// peers are the open loopback addresses of an agent, by role.
type peers map[string]*peerProxy

// peerProxy forwards requests to the units of one role.
type peerProxy struct {
	url       string
	addresses []string
	turn      atomic.Uint64
	server    *http.Server
	transport *http.Transport
	done      sync.WaitGroup
}

// openPeers starts a proxy on a loopback address for each peer.
func (c Config) openPeers() (peers, error) {
	all := peers{}
	for _, peer := range c.Peers {
		if all[peer.Role] != nil || len(peer.Addresses) == 0 {
			all.close()
			return nil, wire.Refuse(wire.BadRequest, "agent configuration: peer", peer.Role, "each role once, with an address")
		}
		p, err := c.openPeer(peer)
		if err != nil {
			all.close()
			return nil, fmt.Errorf("peer %s: %w", peer.Role, err)
		}
		all[peer.Role] = p
	}
	return all, nil
}

func (c Config) openPeer(peer Peer) (*peerProxy, error) {
	group := c.Unit.Identity().Group
	config, err := c.Unit.PeerTLS(group, peer.Role)
	if err != nil {
		return nil, err
	}
	config.NextProtos = []string{"h2", "http/1.1"}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	p := &peerProxy{url: "http://" + l.Addr().String(), addresses: peer.Addresses}
	p.transport = &http.Transport{
		DialTLSContext:    func(ctx context.Context, _, _ string) (net.Conn, error) { return p.dialPeer(ctx, c.Unit, config) },
		ForceAttemptHTTP2: true,
		IdleConnTimeout:   peerIdleTime, DisableCompression: true,
	}
	target := &url.URL{Scheme: "https", Host: peer.Role + "." + group}
	proxy := &httputil.ReverseProxy{
		Transport:     p.transport,
		Rewrite:       func(r *httputil.ProxyRequest) { r.SetURL(target) },
		FlushInterval: -1,
		BufferPool:    buffers{},
		ErrorHandler: func(w http.ResponseWriter, _ *http.Request, err error) {
			c.Log.Warn("peer did not answer", "role", peer.Role, "reason", wire.ReasonOf(err), "cause", err)
			w.WriteHeader(http.StatusBadGateway)
		},
	}
	p.server = &http.Server{
		Handler: proxy, ReadHeaderTimeout: handshakeTime, IdleTimeout: peerIdleTime,
		ErrorLog: slog.NewLogLogger(c.Log.Handler(), slog.LevelDebug),
	}
	p.done.Go(func() { _ = p.server.Serve(l) }) // ends when close closes the server
	return p, nil
}

// dialPeer connects to a unit that the newest policy accepts. It tries the addresses in turn,
// each call from the next one on.
func (p *peerProxy) dialPeer(ctx context.Context, u *unit.Unit, config *tls.Config) (net.Conn, error) {
	var faults []error
	first := p.turn.Add(1)
	for i := range p.addresses {
		conn, err := u.Dial(ctx, config, p.addresses[(first+uint64(i))%uint64(len(p.addresses))])
		if err == nil {
			return conn, nil
		}
		faults = append(faults, err)
	}
	return nil, errors.Join(faults...)
}

func (all peers) close() {
	for _, p := range all {
		_ = p.server.Close()
		p.done.Wait()
		p.transport.CloseIdleConnections()
	}
}

// environment returns the variables with the URLs of the program's peers.
func (all peers) environment() []string {
	var env []string
	for role, p := range all {
		env = append(env, "PEER_"+strings.ToUpper(strings.ReplaceAll(role, "-", "_"))+"="+p.url)
	}
	return env
}

// expandURLs replaces each {peer.ROLE} in an argument with that peer's URL.
func (all peers) expandURLs(arg string) string {
	for role, p := range all {
		arg = strings.ReplaceAll(arg, "{peer."+role+"}", p.url)
	}
	return arg
}
