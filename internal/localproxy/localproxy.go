// Package localproxy is an HTTP proxy on the machine of its user. Programs in any language send
// plain HTTP requests to it, and it sends them to a cluster over a transport that verifies every
// unit: a session, one-offs, or TLS with fail-over (package client).
//
// It trusts the programs that its listener admits: any program that can send requests to it uses the
// cluster in the name of its user. So it forwards only requests that are addressed to the listener
// itself (DNS rebinding), and none of a page in a browser but of the allowed origins. A listener
// that other machines reach demands a token. It trusts nothing of the network behind it; that is
// the matter of the transport, whose refusals it turns into problem bodies (RFC 9457). A response
// that is not complete ends with a broken connection, never as a complete one.
//
// Files, each using those before it: problem.go, listen_unix.go, listen_other.go, listen.go,
// metrics.go, problemlog.go, sender.go, forward.go, localproxy.go.
package localproxy

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"time"

	"github.com/cohort-tee/cohort/client"
	"github.com/cohort-tee/cohort/internal/limit"
	"github.com/cohort-tee/cohort/internal/wire"
)

// DefaultRequests is the number of requests in progress that suits a desk and a small server: each
// takes up to 200 KiB of memory.
const DefaultRequests = 256

// Times and limits of connections. A program may accept no byte of its response, or send none of
// its request while the proxy waits for it, for stallTime. The proxy has more connections than
// requests, because programs keep idle ones.
const (
	headerTime   = 10 * time.Second
	idleTime     = 2 * time.Minute
	maxHeader    = 64 << 10
	connsPerSlot = 4
	stallTime    = 2 * time.Minute
	restTime     = time.Second
)

// minToken is the least length of a token in bytes: shorter ones can be guessed.
const minToken = 16

// Config configures a proxy. Through, Host and Log are required.
type Config struct {
	// Through sends requests to the cluster. It verifies the cluster.
	Through http.RoundTripper
	// Host returns the host of requests inside, a name of the task or group in the newest policy.
	Host func() string
	// Name is the name of the listener, besides the address at which a request arrives and
	// "localhost" on this machine; empty if it has none.
	Name string
	// Origins are the origins of pages that may use the proxy, as browsers send them.
	Origins []string
	// Token is demanded from every program if it is not empty.
	Token string
	// Requests limits the requests in progress; 0 means DefaultRequests.
	Requests int
	// Keep, if set, keeps the receipt of each response before the response ends. Its error aborts
	// the response.
	Keep func(client.Record) error
	Log  *slog.Logger
}

// validate returns all faults of the configuration, joined.
func (c *Config) validate() error {
	var faults []error
	if c.Through == nil || c.Host == nil || c.Log == nil {
		faults = append(faults, wire.Refuse(wire.BadRequest, "proxy: configuration", "a required field is not set", "Through, Host and Log"))
	}
	if n := len(c.Token); n > 0 && n < minToken {
		faults = append(faults, wire.Refuse(wire.BadRequest, "proxy: length of the token in bytes", n, minToken))
	}
	for _, origin := range c.Origins {
		if u, err := url.Parse(origin); err != nil || u.Scheme == "" || u.Host == "" || u.Scheme+"://"+u.Host != origin {
			faults = append(faults, wire.Refuse(wire.BadRequest, "proxy: origin", origin, "SCHEME://HOST or SCHEME://HOST:PORT"))
		}
	}
	if c.Requests < 0 {
		faults = append(faults, wire.Refuse(wire.BadRequest, "proxy: requests in progress", c.Requests, "at least 1"))
	}
	return errors.Join(faults...)
}

// Proxy is the handler of the proxy. It is safe for concurrent use.
type Proxy struct {
	config   Config
	slots    chan struct{} // a value for each request in progress
	metrics  *metrics
	problems *problemLog
}

// NewProxy makes a proxy. It refuses a faulty configuration with "request".
func NewProxy(c Config) (*Proxy, error) {
	if err := c.validate(); err != nil {
		return nil, err
	}
	if c.Requests == 0 {
		c.Requests = DefaultRequests
	}
	p := &Proxy{config: c, slots: make(chan struct{}, c.Requests), problems: newProblemLog(c.Log)}
	p.metrics = newMetrics(func() int { return len(p.slots) })
	return p, nil
}

// ServeHTTP forwards a request, or responds with a problem.
func (p *Proxy) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	begin := time.Now()
	ended := p.serveProgram(w, r)
	p.metrics.requests.WithLabelValues(string(ended)).Inc()
	// The path alone: a query or a field may be secret.
	p.config.Log.Debug("request", "method", r.Method, "path", r.URL.Path, "outcome", string(ended), "took", time.Since(begin))
	if ended == outcomeCanceled || ended == outcomeAborted {
		panic(http.ErrAbortHandler) // closes the connection
	}
}

func (p *Proxy) serveProgram(w http.ResponseWriter, r *http.Request) outcome {
	if refused := p.checkSender(r); refused != nil {
		return p.respond(w, refused)
	}
	if origin := r.Header.Get("Origin"); origin != "" {
		openToPage(w.Header(), origin)
	}
	if isPreflight(r) {
		servePreflight(w, r)
		return outcomePreflight
	}
	select {
	case p.slots <- struct{}{}:
		defer func() { <-p.slots }()
	default:
		refused := refusal(http.StatusServiceUnavailable, wire.Overload, "proxy: requests in progress", len(p.slots), "fewer: wait, or raise --max-requests")
		refused.again = true
		return p.respond(w, refused)
	}
	return p.forward(w, r)
}

// respond sends a problem and logs it.
func (p *Proxy) respond(w http.ResponseWriter, refused *problem) outcome {
	p.problems.logProblem("request failed", refused, time.Now(), "status", refused.Status, "retry", refused.Retry)
	refused.writeTo(w)
	return outcome(refused.Reason)
}

// Pages returns the handler of the probes and metrics, for a listener of their own: every path of
// the proxy's own listener is the service's. ready reports why a request would fail now, or nil.
func (p *Proxy) Pages(ready func() error) http.Handler { return p.metrics.pages(ready) }

// ServePrograms serves programs on a listener until ctx is done. Then it closes the listener and waits for
// the requests in progress, at most for drain; it cuts off those that take longer, and returns nil.
func (p *Proxy) ServePrograms(ctx context.Context, l net.Listener, drain time.Duration) error {
	server := &http.Server{
		Handler: limit.Pace{Read: stallTime, Write: stallTime, Rest: restTime}.Handler(p), ReadHeaderTimeout: headerTime, IdleTimeout: idleTime, MaxHeaderBytes: maxHeader,
		ConnState:                    limit.NewConnections(connsPerSlot * cap(p.slots)).Track,
		DisableGeneralOptionsHandler: true,
		ErrorLog:                     slog.NewLogLogger(p.config.Log.Handler(), slog.LevelDebug),
	}
	failed := make(chan error, 1)
	go func() { failed <- server.Serve(l) }()
	select {
	case err := <-failed:
		return err
	case <-ctx.Done():
	}
	left, cancel := context.WithTimeout(context.WithoutCancel(ctx), drain)
	defer cancel()
	if server.Shutdown(left) != nil {
		p.config.Log.Warn("requests cut off", "after", drain, "requests", len(p.slots))
		_ = server.Close() // reports the listener, which Shutdown has closed
	}
	<-failed
	return nil
}
