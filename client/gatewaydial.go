package client

import (
	"context"
	"crypto/tls"
	"net"
	"sync"
	"time"
)

// Bounds on making connections to a gateway.
const (
	maxGatewayDials = 4 // handshakes at once
	sharedDelay     = time.Second
)

// gatewayDialer makes connections to the gateway. net/http wants one for every request
// that finds none, and when one of HTTP/2 is made all of them share it. So while the
// gateway was away for a moment, requests would become as many handshakes, each of
// which makes all others later: here a few are made at a time, and those that wait
// when one of HTTP/2 is made are not.
type gatewayDialer struct {
	config *tls.Config

	mu     sync.Mutex
	routes map[string]*gatewayRoute // guarded by mu: by address
}

// route is the way to one address.
type gatewayRoute struct {
	slots  chan struct{}
	shared chan struct{} // guarded by gatewayDialer.mu: closed with the next connection of HTTP/2
}

// route gives the way to an address, and what tells of the next shared connection.
func (d *gatewayDialer) route(address string) (g *gatewayRoute, shared <-chan struct{}) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if g = d.routes[address]; g == nil {
		g = &gatewayRoute{make(chan struct{}, maxGatewayDials), make(chan struct{})}
		d.routes[address] = g
	}
	return g, g.shared
}

// dial is for [http.Transport.DialTLSContext].
func (d *gatewayDialer) dial(ctx context.Context, network, address string) (net.Conn, error) {
	g, shared := d.route(address)
	select {
	case g.slots <- struct{}{}:
		defer func() { <-g.slots }()
	case <-shared:
		select { // net/http hands it on within this time, and hears of no error after that
		case <-time.After(sharedDelay):
		case <-ctx.Done():
		}
		return nil, &net.OpError{Op: "dial", Net: network, Err: net.ErrClosed}
	case <-ctx.Done():
		return nil, &net.OpError{Op: "dial", Net: network, Err: context.Cause(ctx)}
	}
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	made, err := (&tls.Dialer{Config: d.config}).DialContext(ctx, network, address)
	if err != nil {
		return nil, err
	}
	conn := made.(*tls.Conn)
	if conn.ConnectionState().NegotiatedProtocol == "h2" {
		d.mu.Lock()
		defer d.mu.Unlock()
		close(g.shared)
		g.shared = make(chan struct{})
	}
	return conn, nil
}
