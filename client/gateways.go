package client

import (
	"math/rand/v2"
	"net/http"
	"net/url"
	"strings"
	"sync/atomic"
	"time"

	"github.com/cohort-tee/cohort/internal/api"
	"github.com/cohort-tee/cohort/internal/wire"
)

// gateways forward the outer requests of a channel. All requests use one gateway as long
// as it responds. Gateways are untrusted: the choice affects only availability. The zero
// value has no gateway.
type gateways struct {
	inner   *http.Transport
	all     []*url.URL // differ in scheme and host only
	current atomic.Uint32
}

// parseGateways parses URLs separated by commas.
func parseGateways(list string) (all []*url.URL, err error) {
	for text := range strings.SplitSeq(list, ",") {
		u, err := url.Parse(text)
		if err != nil || u.Scheme != "https" && u.Scheme != "http" || u.Host == "" || u.User != nil {
			return nil, wire.Refuse(wire.BadRequest, "channel: gateway", text, "an http or https URL")
		}
		if all = append(all, u); u.Path != all[0].Path {
			return nil, wire.Refuse(wire.BadRequest, "channel: path of a further gateway", u.Path, all[0].Path)
		}
	}
	return all, nil
}

// newGatewayReader makes a reader of the history and of trust at a gateway. It follows no
// redirection, which would let the gateway choose other addresses for requests of this machine.
func newGatewayReader(at *url.URL, inner *http.Transport) *api.Gateway {
	return api.NewGateway(at, &http.Client{Transport: inner, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }})
}

// startRandom selects the first gateway at random, to spread the clients over the gateways.
func (g *gateways) startRandom() { g.current.Store(rand.Uint32N(uint32(len(g.all)))) }

// close closes the connections. The poll of the history was canceled just before, and its HTTP/2
// connection becomes idle shortly after that; so close tries again a second later.
func (g *gateways) close() {
	g.inner.CloseIdleConnections()
	time.AfterFunc(time.Second, g.inner.CloseIdleConnections)
}

// RoundTrip sends a request to the gateway in use. When the gateway does not respond or
// reaches no unit (status 502 or 503), later requests go to the next gateway.
func (g *gateways) RoundTrip(r *http.Request) (*http.Response, error) {
	n := g.current.Load()
	at := g.all[int(n)%len(g.all)]
	if r.URL.Scheme != at.Scheme || r.URL.Host != at.Host {
		out, to := *r, *r.URL // copies: a RoundTripper must not modify the request
		to.Scheme, to.Host = at.Scheme, at.Host
		out.URL, out.Host = &to, at.Host
		r = &out
	}
	response, err := g.inner.RoundTrip(r)
	if err != nil || response.StatusCode == http.StatusServiceUnavailable || response.StatusCode == http.StatusBadGateway {
		g.current.CompareAndSwap(n, n+1)
	}
	return response, err
}
