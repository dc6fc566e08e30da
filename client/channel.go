package client

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"sync"
	"time"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/identity"
	"github.com/cohort-tee/cohort/internal/channel"
	"github.com/cohort-tee/cohort/internal/channelhttp"
	"github.com/cohort-tee/cohort/internal/chunk"
	"github.com/cohort-tee/cohort/internal/unitauth"
	"github.com/cohort-tee/cohort/internal/wire"
)

// Errors of requests through a [Channel], and of reading the bodies of their responses.
var (
	// ErrOutcomeUnknown is wrapped by the error of a request that may not be repeated
	// and was cut off. The request was executed once or not at all.
	ErrOutcomeUnknown = channelhttp.ErrOutcomeUnknown
	// ErrNotExecuted is wrapped by the error of a request that no unit has executed or
	// will execute. The units report this, each authenticated.
	ErrNotExecuted = channelhttp.ErrNotExecuted
	// ErrTruncated is wrapped by the read error of a response body that ends early.
	ErrTruncated = chunk.ErrTruncated
)

// maxGatewayIdle limits the idle connections to a gateway.
const maxGatewayIdle = 256

// The transport sends an HTTP/2 PING to a gateway that is silent for gatewayPingAfter, and
// closes the connection when no response arrives within gatewayPingTimeout. Otherwise
// requests would wait for a gateway that the network no longer reaches.
const (
	gatewayPingAfter   = time.Second
	gatewayPingTimeout = 2 * time.Second
)

// OpenConfig selects the cluster of a channel. Trust and Gateway are required.
type OpenConfig struct {
	// Trust comes from [FetchTrust] and includes the pin: all releases of a task, one
	// release, or a group. The channel renews it by itself.
	Trust *Trust
	// Role is required with the trust of a group, and empty otherwise: only units of
	// this role can read the session. With [Whole] every unit of the group can.
	Role string
	// Gateway is the URL of a gateway to the units, http or https, or several URLs separated by
	// commas. The channel uses one of them as long as it responds. Gateways are untrusted.
	Gateway string
	// CA contains the roots for the gateways' certificates. These certificates protect
	// availability only. Nil means the system's roots.
	CA *x509.CertPool
	// FreshEvidence requires new evidence from the unit that opens a session. The evidence proves
	// that the unit has the session's secret.
	FreshEvidence bool
	// Receipts requests a receipt for each response: see [WithRecord].
	Receipts bool
	// NotAfter limits the time from the sending of a request until a unit may begin to
	// execute it. It is at most 2 minutes; 0 means 30 seconds. The unit decides by its
	// own clock, which may differ from this machine's clock by 5 minutes.
	NotAfter time.Duration
}

// Channel is a trusted channel to a whole cluster: an [http.RoundTripper] whose
// requests any unit of the pinned identity can serve, encrypted end to end. It renews
// its session by itself. It is safe for concurrent use. The caller of [Open] closes it.
type Channel struct {
	transport *channelhttp.Transport
	gateways  gateways
	trust     trustRefresher
	evidence  bool

	stop  context.CancelFunc
	tasks sync.WaitGroup
}

// Open opens a session with one unit after it has checked that unit. It blocks until
// the session is open or ctx is done. The error is an [attest.Refusal] when a check
// fails, and [ErrUnreachable] when no unit responds.
func Open(ctx context.Context, config OpenConfig) (*Channel, error) {
	if config.Role != "" || config.Trust != nil && config.Trust.config.Group != "" {
		return nil, wire.Refuse(wire.WrongGroup, "channel: trust", "of a group", "OpenGroup")
	}
	return openChannel(ctx, config)
}

func openChannel(ctx context.Context, config OpenConfig) (*Channel, error) {
	all, err := config.validate()
	if err != nil {
		return nil, err
	}
	c := &Channel{gateways: gateways{inner: newGateway(config.CA), all: all}, evidence: config.FreshEvidence}
	c.trust.waits = true // several heads may arrive within a second, while parties approve
	c.gateways.startRandom()
	c.trust.attach(config.Trust, minRefresh, &c.gateways)
	c.transport, err = channelhttp.NewTransport(channelhttp.TransportConfig{
		Gateway: all[0], Inner: &c.gateways, Pin: config.sessionPin(), Options: config.sessionOptions(), Trust: trustSource{c}, Heads: channelhttp.Heads{Newest: c.trust.provedHead, Received: c.trust.hintHead},
		Clock: config.Trust.config.Clock, NotAfter: config.NotAfter,
	})
	if err != nil {
		c.trust.release()
		return nil, err
	}
	lifetime, stop := context.WithCancel(context.WithoutCancel(ctx))
	c.stop = stop
	c.tasks.Go(func() { c.maintain(lifetime) })
	if _, err := c.Session(ctx); err != nil {
		c.Close(ctx)
		return nil, err
	}
	return c, nil
}

// validate returns the gateways' URLs, or all faults of the configuration, joined.
func (o OpenConfig) validate() ([]*url.URL, error) {
	var faults []error
	if o.Trust == nil {
		faults = append(faults, wire.Refuse(wire.BadRequest, "channel: trust", "no trust", "a Trust of FetchTrust"))
	}
	all, err := parseGateways(o.Gateway)
	return all, errors.Join(append(faults, err)...)
}

func (o OpenConfig) sessionOptions() (w channel.SessionOptions) {
	if o.FreshEvidence {
		w |= channel.WantEvidence
	}
	if o.Receipts {
		w |= channel.WantReceipts
	}
	return w
}

// basePin returns the pin of sessions under t, without a role.
func (t *Trust) basePin() unitauth.Pin {
	p := unitauth.Pin{Genesis: t.config.Genesis, ID: t.config.ID, Task: t.config.Task, Group: t.config.Group}
	if p.Task+p.Group == "" {
		p.ID = t.identities[0].ID
	}
	return p
}

// newGateway makes the transport to the gateways. Over HTTP/2 all requests of a channel
// share one connection, or two when very many requests are in progress.
func newGateway(ca *x509.CertPool) *http.Transport {
	var protocols http.Protocols
	protocols.SetHTTP1(true)
	protocols.SetHTTP2(true)
	secure := &tls.Config{MinVersion: tls.VersionTLS13, RootCAs: ca, NextProtos: []string{"h2", "http/1.1"}}
	return &http.Transport{
		DialContext:         (&net.Dialer{Timeout: dialTimeout}).DialContext,
		DialTLSContext:      (&gatewayDialer{config: secure, routes: map[string]*gatewayRoute{}}).dialGateway,
		MaxIdleConnsPerHost: maxGatewayIdle, IdleConnTimeout: idleTimeout,
		DisableCompression: true, Protocols: &protocols,
		HTTP2: &http.HTTP2Config{SendPingTimeout: gatewayPingAfter, PingTimeout: gatewayPingTimeout},
	}
}

// maintain renews trust every minute until ctx is done. Without a response, the old one stays.
func (c *Channel) maintain(ctx context.Context) {
	ticker := time.NewTicker(defaultRefresh)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
			_, _ = c.trust.renew(ctx, c.trust.Load())
		}
	}
}

// trustSource provides a channel's newest trust to its sessions.
type trustSource struct{ c *Channel }

// Trust returns the newest trust.
func (t trustSource) Trust() unitauth.Trust { return t.c.channelTrust(t.c.trust.Load()) }

// Renew fetches trust again, at most once a second; it blocks until the next fetch is due.
func (t trustSource) Renew(ctx context.Context) unitauth.Trust {
	newer, _ := t.c.trust.renew(ctx, t.c.trust.Load())
	return t.c.channelTrust(newer)
}

// channelTrust returns the trust under which the channel's sessions check units: that of
// t, and the verifier if fresh evidence is required.
func (c *Channel) channelTrust(t *Trust) unitauth.Trust {
	verified := t.channelTrust()
	if c.evidence {
		verified.Verifier = t.config.Verifier
	}
	return verified
}

// RoundTrip sends a request through the channel. It returns the response of a unit of this cluster
// to exactly this request, unchanged. The host of the request is the task's or group's name or a
// DNS name of it; RoundTrip refuses any other with "name", and another scheme than https with
// "request", and sends nothing. Requests with one Cohort-Affinity field, any text, go to one unit
// while it is not loaded. Units do not receive the field, and gateways receive a digest of it.
//
// A request that is safe or carries an Idempotency-Key is sent again when an attempt ends without
// a response; units' handlers have to share idempotency keys. Any other request is executed at
// most once; when it is cut off, the error is [ErrOutcomeUnknown]. Reading the body of a response
// that ends early returns [ErrTruncated].
func (c *Channel) RoundTrip(r *http.Request) (*http.Response, error) {
	if err := c.trust.newest.Load().checkTarget(r); err != nil {
		closeBody(r)
		return nil, err
	}
	response, err := c.transport.RoundTrip(r)
	return response, wrapChannelError(err)
}

// wrapChannelError wraps errors of the internal channel packages in those of this package.
func wrapChannelError(err error) error {
	switch {
	case errors.Is(err, channel.ErrClosed):
		return fmt.Errorf("%w: %w", ErrClosed, err)
	case errors.Is(err, channelhttp.ErrUnreachable):
		return fmt.Errorf("%w: %w", ErrUnreachable, err)
	}
	return err
}

// Session describes a channel's session.
type Session struct {
	ID       wire.SessionID
	Unit     identity.Peer // the unit that opened the session
	Expires  time.Time
	Evidence attest.Result // of Unit; with FreshEvidence only
}

// Session returns the session that requests use now. If none is open, it opens one, and
// blocks until the session is open or ctx is done.
func (c *Channel) Session(ctx context.Context) (Session, error) {
	s, err := c.transport.Session(ctx)
	if err != nil {
		return Session{}, wrapChannelError(err)
	}
	return Session{ID: s.ID(), Unit: s.OpenedBy(), Expires: s.Expires(), Evidence: s.Evidence()}, nil
}

// Opens returns the number of sessions opened so far.
func (c *Channel) Opens() uint64 { return c.transport.Opens() }

// Trust returns the newest trust. Store its [Trust.State] for [TrustConfig.State].
func (c *Channel) Trust() *Trust { return c.trust.Load() }

// Closed lists the units that confirmed, each authenticated, that a session is closed,
// and the time until which other units may have it.
type Closed = channelhttp.Closed

// Close closes the session at all known units, as far as ctx allows, erases its secret,
// and waits for the goroutines of the channel. Later requests fail with [ErrClosed].
func (c *Channel) Close(ctx context.Context) Closed {
	closed := c.transport.Close(ctx)
	c.stop()
	c.tasks.Wait()
	c.trust.release()
	c.gateways.close()
	return closed
}

// Record proves offline which unit sent a response.
type Record = unitauth.Record

// Receipt is the content of a verified receipt. Only [VerifyReceipt] makes one.
type Receipt = unitauth.Receipt

// WithRecord requests a receipt for a request through a [Channel]. r is complete once the response
// body was read to its end. A body that arrives without the receipt of its unit ends with an error.
func WithRecord(ctx context.Context, r *Record) context.Context {
	return channelhttp.WithRecord(ctx, r)
}

// VerifyReceipt verifies a record without network access, at the time of the response.
// It refuses a changed request, response or unit, and a unit outside the pin of t.
func VerifyReceipt(r Record, t *Trust, at time.Time) (Receipt, error) {
	return unitauth.VerifyReceipt(r, t.channelTrust(), unitauth.ReceiptExpect{Pin: t.basePin(), At: at})
}
