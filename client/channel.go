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

// Errors of requests through a [Channel], and of the bodies of their responses.
var (
	// ErrOutcomeUnknown is in the error of a request that may not be repeated
	// and was cut off: it was executed once or not at all.
	ErrOutcomeUnknown = channelhttp.ErrOutcomeUnknown
	// ErrNotExecuted is in the error of a request that no unit has executed or
	// will execute, as the units report, each authenticated.
	ErrNotExecuted = channelhttp.ErrNotExecuted
	// ErrTruncated is in the error of a response body that was cut short.
	ErrTruncated = chunk.ErrTruncated
)

// maxGatewayIdle limits the idle connections to a gateway.
const maxGatewayIdle = 256

// A gateway that is silent for gatewayPingAfter is pinged, and its connection is
// closed when no response comes within gatewayPingTimeout. Otherwise requests would
// wait for a gateway that is cut off.
const (
	gatewayPingAfter   = time.Second
	gatewayPingTimeout = 2 * time.Second
)

// OpenConfig selects the cluster of a channel. Trust and Gateway are required.
type OpenConfig struct {
	// Trust is that of [FetchTrust], and with it the pin: a task that is
	// followed, or one release. The channel renews it by itself.
	Trust *Trust
	// Role is the role of the group for the session, where Trust is of a group:
	// only units of that role can read it. [Whole] opens a session with the whole
	// group.
	Role string
	// Gateway is the URL of a gateway to the units, http or https, or several
	// URLs separated by commas. One is used as long as it responds. Gateways are
	// untrusted.
	Gateway string
	// CA has the roots of the gateways' certificates, which serve availability
	// only. Nil means the system's.
	CA *x509.CertPool
	// FreshEvidence makes the unit that opens a session prove, by new evidence,
	// that it holds the session's secret.
	FreshEvidence bool
	// Receipts requests a receipt for each response: see [WithRecord].
	Receipts bool
	// NotAfter is how long after its sending a unit may begin to execute a
	// request, 2 minutes at most. 0 means 30 seconds. The unit's clock decides,
	// which may differ from this machine's by 5 minutes.
	NotAfter time.Duration
}

// Channel is a trusted channel to a whole cluster: an [http.RoundTripper] whose
// requests are served by any unit of the pinned identity, encrypted end to end.
// It renews its session by itself. It is safe for concurrent use and is closed by
// its owner.
type Channel struct {
	transport *channelhttp.Transport
	gateways  gateways
	trust     trustRefresher
	evidence  bool

	stop  context.CancelFunc
	tasks sync.WaitGroup
}

// Open opens a session with one unit, which it checks. It blocks until then, or
// until ctx is done. The error is an [attest.Refusal] when a check fails,
// and [ErrUnreachable] when no unit responds.
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
	c.trust.waits = true // heads may follow one another within a second, as parties approve
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

// validate returns every fault of the configuration, or the gateways' URLs.
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

// basePin returns the pin of sessions under t.
func (t *Trust) basePin() unitauth.Pin {
	p := unitauth.Pin{Genesis: t.config.Genesis, ID: t.config.ID, Task: t.config.Task, Group: t.config.Group}
	if p.Task+p.Group == "" {
		p.ID = t.identities[0].ID
	}
	return p
}

// newGateway makes the transport to the gateways. Over HTTP/2 all requests of a
// channel share one connection, or two when very many are under way.
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

// maintain renews trust until ctx is done. The known trust stays when the
// authority does not respond.
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

// Renew fetches trust again, at most once a second; it waits until it may.
func (t trustSource) Renew(ctx context.Context) unitauth.Trust {
	newer, _ := t.c.trust.renew(ctx, t.c.trust.Load())
	return t.c.channelTrust(newer)
}

// channelTrust returns t as the channel checks responses under it.
func (c *Channel) channelTrust(t *Trust) unitauth.Trust {
	verified := t.channelTrust()
	if c.evidence {
		verified.Verifier = t.config.Verifier
	}
	return verified
}

// RoundTrip sends a request through the channel and returns the response of a
// unit of this cluster, unchanged and for this request. The host in its URL is
// for the unit's handler only.
//
// A request that is safe or carries an Idempotency-Key is sent again when an
// attempt has no response. Units do not share the keys they have seen, so their
// handler must. Any other request is executed at most once; when it is cut off the
// error is [ErrOutcomeUnknown]. A response that ends early is an [ErrTruncated] of
// its body.
func (c *Channel) RoundTrip(r *http.Request) (*http.Response, error) {
	response, err := c.transport.RoundTrip(r)
	return response, wrapChannelError(err)
}

// wrapChannelError adds the errors of this package to those of package channel.
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
	Unit     identity.Peer // the one that opened it
	Expires  time.Time
	Evidence attest.Result // appraised; with FreshEvidence only
}

// Session returns the session that requests use now. It opens one if there is
// none, and blocks until then, or until ctx is done.
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

// Closed reports at which units a session was closed, each authenticated, and
// until when other units may hold it.
type Closed = channelhttp.Closed

// Close ends the session at all known units, as far as ctx allows, erases its
// secret, and waits for the goroutines of the channel. Later requests fail with
// [ErrClosed].
func (c *Channel) Close(ctx context.Context) Closed {
	closed := c.transport.Close(ctx)
	c.stop()
	c.tasks.Wait()
	c.trust.release()
	c.gateways.close()
	return closed
}

// Record is the offline proof of which unit sent a response.
type Record = unitauth.Record

// Receipt is the content of a verified receipt. Only [VerifyReceipt] makes one.
type Receipt = unitauth.Receipt

// WithRecord requests a receipt for a request through a [Channel]. The record is
// filled in when the response body was read to its end; a body without the receipt
// of the unit that sent it ends in an error.
func WithRecord(ctx context.Context, r *Record) context.Context {
	return channelhttp.WithRecord(ctx, r)
}

// VerifyReceipt verifies a record, without a network, for the time of the
// response. It refuses a changed request, response or unit, and a unit outside the
// pin of t.
func VerifyReceipt(r Record, t *Trust, at time.Time) (Receipt, error) {
	return unitauth.VerifyReceipt(r, t.channelTrust(), unitauth.ReceiptExpect{Pin: t.basePin(), At: at})
}
