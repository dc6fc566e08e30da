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
	"github.com/cohort-tee/cohort/internal/wire"
)

// Errors of requests through a [Channel], and of the bodies of their answers.
var (
	// ErrOutcomeUnknown is in the error of a request that may not be repeated
	// and was cut off: it was executed once or not at all.
	ErrOutcomeUnknown = channel.ErrOutcomeUnknown
	// ErrNotExecuted is in the error of a request that units have, each
	// authenticated, not executed and will not.
	ErrNotExecuted = channel.ErrNotExecuted
	// ErrTruncated is in the error of an answer's body that ends before its
	// end.
	ErrTruncated = channel.ErrTruncated
)

// maxGatewayIdle is how many connections to the gateway wait for requests.
const maxGatewayIdle = 256

// A gateway that is silent for so long is asked whether it is there, and given up
// when it does not answer: else requests would wait for one that is cut off.
const (
	gatewayPingAfter   = time.Second
	gatewayPingTimeout = 2 * time.Second
)

// OpenConfig says which cluster a channel speaks to. Trust and Gateway are
// required.
type OpenConfig struct {
	// Trust is what [FetchTrust] gave, and with it the pin: a task that is
	// followed, or one release. The channel fetches it anew by itself.
	Trust *Trust
	// Role is the role of the group that the session is with, where Trust is
	// of a group: only units of that role can read it. [Whole] is a session
	// with the whole group.
	Role string
	// Gateway is the URL of whatever reaches the units, http or https, or several
	// such with commas between, of which one is used as long as it answers. It
	// is trusted with nothing.
	Gateway string
	// CA is what the gateways' certificates chain to, for availability's sake
	// only. Nil is the system's.
	CA *x509.CertPool
	// FreshEvidence makes the unit that opens a session prove, by evidence of
	// that moment, that it holds the session's secret.
	FreshEvidence bool
	// Receipts are wanted for requests: see [WithRecord].
	Receipts bool
	// NotAfter is how long after its sending a unit may begin to execute a
	// request, 2 minutes at most. 0 is 30 seconds. It is counted by the unit's
	// clock, from which this machine's may be 5 minutes off.
	NotAfter time.Duration
}

// Channel is a trusted channel to a whole cluster: an [http.RoundTripper] whose
// requests any unit of the pinned identity answers, encrypted end to end. It
// renews its session by itself. It is safe for concurrent use and is closed by
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
// until ctx is done. The error is an [attest.Refusal] when a check does not hold,
// and [ErrUnreachable] when no unit answers.
func Open(ctx context.Context, config OpenConfig) (*Channel, error) {
	if config.Role != "" || config.Trust != nil && config.Trust.config.Group != "" {
		return nil, wire.Refuse(wire.WrongGroup, "channel: trust", "of a group", "OpenGroup")
	}
	return open(ctx, config)
}

func open(ctx context.Context, config OpenConfig) (*Channel, error) {
	all, err := config.check()
	if err != nil {
		return nil, err
	}
	c := &Channel{gateways: gateways{inner: newGateway(config.CA), all: all}, evidence: config.FreshEvidence}
	c.trust.waits = true // heads may follow one another within a second, as parties approve
	c.gateways.startRandom()
	c.trust.attach(config.Trust, minRefresh, &c.gateways)
	c.transport, err = channelhttp.NewTransport(channelhttp.TransportConfig{
		Gateway: all[0], Inner: &c.gateways, Pin: config.sessionPin(), Wants: config.sessionOptions(), Trust: trustSource{c}, Heads: channelhttp.Heads{Newest: c.trust.provedHead, Heard: c.trust.hintHead},
		Clock: config.Trust.config.Clock, NotAfter: config.NotAfter,
	})
	if err != nil {
		c.trust.release()
		return nil, err
	}
	life, stop := context.WithCancel(context.WithoutCancel(ctx))
	c.stop = stop
	c.tasks.Go(func() { c.maintain(life) })
	if _, err := c.Session(ctx); err != nil {
		c.Close(ctx)
		return nil, err
	}
	return c, nil
}

// check tells every fault of the configuration, and reads the gateways' URLs.
func (o OpenConfig) check() ([]*url.URL, error) {
	var faults []error
	if o.Trust == nil {
		faults = append(faults, wire.Refuse(wire.BadRequest, "channel: trust", "none", "that of FetchTrust"))
	}
	all, err := parseGateways(o.Gateway)
	return all, errors.Join(append(faults, err)...)
}

func (o OpenConfig) sessionOptions() (w channel.Wants) {
	if o.FreshEvidence {
		w |= channel.WantEvidence
	}
	if o.Receipts {
		w |= channel.WantReceipts
	}
	return w
}

// sessionPin is what sessions stay with.
func (t *Trust) pin() channel.Pin {
	p := channel.Pin{Genesis: t.config.Genesis, ID: t.config.ID, Task: t.config.Task, Group: t.config.Group}
	if p.Task+p.Group == "" {
		p.ID = t.identities[0].ID
	}
	return p
}

// newGateway makes the connections to the gateway. Over HTTP/2 all requests of a
// channel share one, or a second when very many are under way.
func newGateway(ca *x509.CertPool) *http.Transport {
	var protocols http.Protocols
	protocols.SetHTTP1(true)
	protocols.SetHTTP2(true)
	secure := &tls.Config{MinVersion: tls.VersionTLS13, RootCAs: ca, NextProtos: []string{"h2", "http/1.1"}}
	return &http.Transport{
		DialContext:         (&net.Dialer{Timeout: dialTimeout}).DialContext,
		DialTLSContext:      (&gatewayDialer{config: secure, routes: map[string]*gatewayRoute{}}).dial,
		MaxIdleConnsPerHost: maxGatewayIdle, IdleConnTimeout: idleTimeout,
		DisableCompression: true, Protocols: &protocols,
		HTTP2: &http.HTTP2Config{SendPingTimeout: gatewayPingAfter, PingTimeout: gatewayPingTimeout},
	}
}

// maintain keeps trust fresh until ctx is done. What is known stays when the
// authority does not answer.
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

// trustSource gives a channel's newest trust to its sessions.
type trustSource struct{ c *Channel }

// Trust is the newest trust.
func (t trustSource) Trust() channel.Trust { return t.c.channelTrust(t.c.trust.Load()) }

// Renew fetches trust anew, at most once a second, for which it waits.
func (t trustSource) Renew(ctx context.Context) channel.Trust {
	newer, _ := t.c.trust.renew(ctx, t.c.trust.Load())
	return t.c.channelTrust(newer)
}

// channelTrust is trust as answers are judged by it.
func (c *Channel) channelTrust(t *Trust) channel.Trust {
	judged := t.channelTrust()
	if c.evidence {
		judged.Verifier = t.config.Verifier
	}
	return judged
}

// RoundTrip sends a request through the channel and gives its answer, which is a
// unit's of this cluster, unchanged and for this request. The host in its URL is
// for the unit's handler only.
//
// A request that is safe or carries an Idempotency-Key is sent again when an
// attempt brings no answer; units do not tell one another of keys, so their
// handler has to. Any other is executed at most once, and when it is cut off the
// error is [ErrOutcomeUnknown]. An answer that ends early is an [ErrTruncated] of
// its body.
func (c *Channel) RoundTrip(r *http.Request) (*http.Response, error) {
	answer, err := c.transport.RoundTrip(r)
	return answer, wrapChannelError(err)
}

// wrapChannelError puts the errors of this package to those of the channel.
func wrapChannelError(err error) error {
	switch {
	case errors.Is(err, channel.ErrClosed):
		return fmt.Errorf("%w: %w", ErrClosed, err)
	case errors.Is(err, channel.ErrUnreachable):
		return fmt.Errorf("%w: %w", ErrUnreachable, err)
	}
	return err
}

// Session tells of a channel's session.
type Session struct {
	ID       wire.SessionID
	Unit     identity.Peer // that opened it
	Expires  time.Time
	Evidence attest.Result // appraised, where fresh evidence was wanted
}

// Session is the session that requests use now. It opens one if there is none,
// and blocks until then, or until ctx is done.
func (c *Channel) Session(ctx context.Context) (Session, error) {
	s, err := c.transport.Session(ctx)
	if err != nil {
		return Session{}, wrapChannelError(err)
	}
	return Session{ID: s.ID(), Unit: s.Peer(), Expires: s.Expires(), Evidence: s.Evidence()}, nil
}

// Opens is how many sessions were opened so far.
func (c *Channel) Opens() uint64 { return c.transport.Opens() }

// Trust is the newest trust. Its [Trust.State] is worth keeping.
func (c *Channel) Trust() *Trust { return c.trust.Load() }

// Closed says how far a session was closed: at which units, each
// authenticated, and until when others may hold it.
type Closed = channelhttp.Closed

// Close ends the session at all units that are known, as far as ctx lets it,
// erases its secret, and waits for what the channel started. Later requests fail
// with [ErrClosed].
func (c *Channel) Close(ctx context.Context) Closed {
	closed := c.transport.Close(ctx)
	c.stop()
	c.tasks.Wait()
	c.trust.release()
	c.gateways.close()
	return closed
}

// Record is what proves offline which unit gave an answer.
type Record = channel.Record

// Receipt is what a receipt says. Only [VerifyReceipt] makes one.
type Receipt = channel.Receipt

// WithRecord makes a request through a [Channel] want a receipt. The record is
// filled in once the answer's body was read to its end; a body without the
// receipt of the unit that answered ends in an error.
func WithRecord(ctx context.Context, r *Record) context.Context {
	return channelhttp.WithRecord(ctx, r)
}

// VerifyReceipt judges a record, without a network, for the time of the answer.
// It refuses a changed request, answer or unit, and a unit that is not what t
// is pinned to.
func VerifyReceipt(r Record, t *Trust, at time.Time) (Receipt, error) {
	return channel.VerifyReceipt(r, t.channelTrust(), channel.ReceiptExpect{Pin: t.pin(), At: at})
}
