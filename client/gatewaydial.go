package client

import (
	"context"
	"crypto/tls"
	"net"
	"sync"
	"time"
)

// Limits of the connections to a gateway.
const (
	maxGatewayDials = 4 // concurrent handshakes
	sharedDelay     = time.Second
)

// gatewayDialer opens connections to the gateways. net/http dials for every request
// that finds no connection, although all requests share the first HTTP/2 connection.
// After a short outage of the gateway every waiting request would do a handshake, and
// the handshakes would delay each other. So the dialer runs a few handshakes at a time,
// and drops the dials that still wait when an HTTP/2 connection opens.
type gatewayDialer struct {
	config *tls.Config

	mu     sync.Mutex
	routes map[string]*gatewayRoute // guarded by mu: key is the address
}

// gatewayRoute limits the dials to one address.
type gatewayRoute struct {
	slots  chan struct{}
	shared chan struct{} // guarded by gatewayDialer.mu: closed when the next HTTP/2 connection opens
}

// route returns the limits of an address, and a channel that is closed when the next
// HTTP/2 connection to it opens.
func (d *gatewayDialer) route(address string) (g *gatewayRoute, shared <-chan struct{}) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if g = d.routes[address]; g == nil {
		g = &gatewayRoute{make(chan struct{}, maxGatewayDials), make(chan struct{})}
		d.routes[address] = g
	}
	return g, g.shared
}

// dialGateway implements [http.Transport.DialTLSContext].
func (d *gatewayDialer) dialGateway(ctx context.Context, network, address string) (net.Conn, error) {
	g, shared := d.route(address)
	select {
	case g.slots <- struct{}{}:
		defer func() { <-g.slots }()
	case <-shared:
		select { // net/http needs a moment to put the request on the shared connection; then it ignores the error
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
