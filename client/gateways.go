package client

import (
	"math/rand/v2"
	"net/http"
	"net/url"
	"strings"
	"sync/atomic"
	"time"

	"github.com/cohort-tee/cohort/internal/wire"
)

// gateways carry the outer requests of a channel, one of them as long as it
// does. They are trusted with nothing: which one it is changes nothing but
// whether an answer comes. The zero gateways are none.
type gateways struct {
	inner   *http.Transport
	all     []*url.URL // that differ in scheme and host alone
	current atomic.Uint32
}

// parseGateways reads the URLs of gateways, with commas between.
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

// startRandom begins with any of them, so that clients share them out.
func (g *gateways) startRandom() { g.current.Store(rand.Uint32N(uint32(len(g.all)))) }

// close ends the connections. One of HTTP/2 becomes idle only a moment after the last
// request on it was given up, as a poll of the history is, so that they are closed again.
func (g *gateways) close() {
	g.inner.CloseIdleConnections()
	time.AfterFunc(time.Second, g.inner.CloseIdleConnections)
}

// RoundTrip sends a request to the gateway in use. When that brings no answer,
// or one that says that no unit is reached, later requests go to the next.
func (g *gateways) RoundTrip(r *http.Request) (*http.Response, error) {
	n := g.current.Load()
	at := g.all[int(n)%len(g.all)]
	if r.URL.Scheme != at.Scheme || r.URL.Host != at.Host {
		out, to := *r, *r.URL // a RoundTripper leaves both as they are
		to.Scheme, to.Host = at.Scheme, at.Host
		out.URL, out.Host = &to, at.Host
		r = &out
	}
	answer, err := g.inner.RoundTrip(r)
	if err != nil || answer.StatusCode == http.StatusServiceUnavailable || answer.StatusCode == http.StatusBadGateway {
		g.current.CompareAndSwap(n, n+1)
	}
	return answer, err
}
