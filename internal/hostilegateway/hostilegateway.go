// Package hostilegateway is a gateway that manipulates what passes through it, one named
// manipulation for each base URL, for the tests of clients in any language: each must refuse every
// manipulation, with the reason in the table ([Table]).
//
// The table is printed in docs/reference/manipulations.md, which says how a client in another
// language runs over it.
//
// It stands between a client and a genuine gateway and authority. It has no key, so it can do what
// every gateway, proxy and network between can do. It is for tests only: no package of the product
// imports it.
//
// Files, each using those before it: hostilegateway.go, trust.go, session.go, request.go, table.go.
package hostilegateway

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"io"
	"net/http"
	"net/url"
	"strings"
	"sync"

	"github.com/cohort-tee/cohort/internal/api"
	"github.com/cohort-tee/cohort/internal/wire"
)

// Stage is the step of a client at which a manipulation shows at the latest.
type Stage string

// The stages, in the order in which a client reaches them.
const (
	Trust   Stage = "trust"   // fetching trust and the policy history
	Open    Stage = "open"    // opening a session, with fresh evidence
	Request Stage = "request" // a POST without Idempotency-Key, until its response begins
	Content Stage = "content" // reading the content of the response to its end
)

// Manipulation is one row of the table.
type Manipulation struct {
	Name   string      `json:"name"` // the first part of the path of its base URL
	Does   string      `json:"does"`
	Stage  Stage       `json:"stage"`
	Reason wire.Reason `json:"reason"` // with which a client refuses

	path   string // that it manipulates
	change func(*Gateway, *message)
}

// message is a request on its way and the response to it. A manipulation changes the request,
// then calls forward, then changes the response; or makes up a response.
type message struct {
	ctx     context.Context // of the client's request
	path    string          // of the genuine gateway
	query   url.Values
	request []byte
	header  http.Header // of the request

	status   int
	fields   http.Header // of the response
	response []byte
	isCut    bool // the connection breaks after the response

	forward func()
}

// Origin is a genuine cluster: the base URLs of its gateway and its authority.
type Origin struct{ Gateway, Authority string }

// Gateway is the hostile gateway. Its base URL for a manipulation is its own URL and the name of
// the manipulation; "honest" is one that changes nothing.
type Gateway struct {
	cluster, other Origin // other is another cluster, of other owners
	through        *http.Transport

	mu   sync.Mutex
	kept map[string][]byte // guarded by mu: what a manipulation saw before, by its name
}

// New makes a hostile gateway before a cluster. other is another cluster, of other owners, whose
// genuine messages it sends too. The caller closes it.
func New(cluster, other Origin) *Gateway {
	// Whatever it reaches, it believes: the certificates are for clients to check.
	return &Gateway{cluster: cluster, other: other, kept: map[string][]byte{}, through: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, DisableCompression: true}}
}

// Close closes the connections to the cluster.
func (g *Gateway) Close() { g.through.CloseIdleConnections() }

// ServeHTTP serves the table as JSON at /, and the cluster under the name of each manipulation, also
// to pages in browsers.
func (g *Gateway) ServeHTTP(w http.ResponseWriter, r *http.Request) { api.ForPages(g.manipulate)(w, r) }

func (g *Gateway) manipulate(w http.ResponseWriter, r *http.Request) {
	if r.URL.Path == "/" {
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(Table)
		return
	}
	name, path, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, "/"), "/")
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return
	}
	m := &message{ctx: r.Context(), path: "/" + path, query: r.URL.Query(), request: body, header: r.Header, fields: http.Header{}}
	m.forward = func() { g.send(g.cluster, m) }
	change := func(_ *Gateway, m *message) { m.forward() }
	for _, row := range Table {
		if row.Name == name && row.path == m.path {
			change = row.change
		}
	}
	change(g, m)
	for field, values := range m.fields {
		w.Header()[field] = values
	}
	w.Header().Del("Content-Length")
	w.WriteHeader(m.status)
	_, _ = w.Write(m.response) // the client may be gone
	if m.isCut {
		_ = http.NewResponseController(w).Flush()
		panic(http.ErrAbortHandler)
	}
}

// send sends the message to a cluster and reads the response.
func (g *Gateway) send(to Origin, m *message) {
	base, path, method := to.Gateway, m.path, http.MethodPost
	switch m.path {
	case wire.PathTrust:
		base, path, method = to.Authority, api.PathTrust, http.MethodGet
	case wire.PathHistory:
		base, path, method = to.Authority, api.PathHistory, http.MethodGet
	}
	m.status, m.fields, m.response = http.StatusBadGateway, http.Header{}, nil
	r, err := http.NewRequestWithContext(m.ctx, method, base+path+"?"+m.query.Encode(), bytes.NewReader(m.request))
	if err != nil {
		return
	}
	for _, name := range []string{"Content-Type", wire.FieldCookie, wire.FieldCredential, wire.FieldHead, wire.FieldTicket, wire.FieldUnit} {
		if values := m.header[name]; values != nil {
			r.Header[name] = values
		}
	}
	response, err := g.through.RoundTrip(r)
	if err != nil {
		return
	}
	defer response.Body.Close()
	m.status, m.fields = response.StatusCode, response.Header
	m.response, _ = io.ReadAll(response.Body)
}

// before returns what keep stored under a name last, or nil.
func (g *Gateway) before(name string) []byte {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.kept[name]
}

func (g *Gateway) keep(name string, b []byte) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.kept[name] = bytes.Clone(b)
}

// flip returns b with one bit changed at an index; from the end if it is negative.
func flip(b []byte, at int) []byte {
	b = bytes.Clone(b)
	if at < 0 {
		at += len(b)
	}
	b[at] ^= 1
	return b
}
