package client

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"sync"
	"time"

	"github.com/cohort-tee/cohort/identity"
	"github.com/cohort-tee/cohort/internal/channel"
	"github.com/cohort-tee/cohort/internal/channelhttp"
	"github.com/cohort-tee/cohort/internal/retry"
	"github.com/cohort-tee/cohort/internal/wire"
)

// keysTimeout bounds asking for a key configuration once. While all there are might be
// held by a unit that was cut off, it is asked for again, after pauses that grow.
const (
	keysTimeout   = 10 * time.Second
	maxKeyFetches = 6
	keysPause     = 100 * time.Millisecond
)

// maxSignedKeys bounds a signed key configuration in bytes.
const maxSignedKeys = 32 << 10

// OneOffConfig says where one-off requests go. Trust and Gateway are required.
type OneOffConfig struct {
	// Trust is what [FetchTrust] gave, of a task or an identity.
	Trust *Trust
	// Gateway is as in [OpenConfig], and trusted with nothing.
	Gateway string
	// CA is what the gateways' certificates chain to, for availability's sake
	// only. Nil is the system's.
	CA *x509.CertPool
	// Whole sends requests in one piece, by RFC 9458 alone: then answers are
	// held whole too, and at most 256 KiB each.
	Whole bool
}

// OneOff is an [http.RoundTripper] whose requests any unit of the pinned identity
// answers, each encrypted for itself, over Oblivious HTTP: without a session,
// and so without fresh evidence or receipts. Whoever carries a request may
// deliver it to many units, so that it must be safe, or marked with an
// Idempotency-Key where policy lets it be. It is safe for concurrent use and is
// closed by its owner.
type OneOff struct {
	config   OneOffConfig
	gateways gateways
	trust    trustRefresher

	mu   sync.Mutex // guards keys; held while they are fetched
	keys channel.OneOffKeys
}

// NewOneOff fetches the key configuration that a unit signed, and checks it. It
// blocks until then, or until ctx is done. The error is an [attest.Refusal] when
// a check does not hold, and [ErrUnreachable] when no unit answers.
func NewOneOff(ctx context.Context, config OneOffConfig) (*OneOff, error) {
	if config.Trust == nil {
		return nil, wire.Refuse(wire.BadRequest, "one-off: trust", "none", "that of FetchTrust")
	}
	if config.Trust.config.Group != "" {
		return nil, wire.Refuse(wire.WrongGroup, "one-off: trust", "of a group", "of a task")
	}
	all, err := parseGateways(config.Gateway)
	if err != nil {
		return nil, err
	}
	o := &OneOff{config: config, gateways: gateways{inner: newGateway(config.CA), all: all}}
	o.gateways.startRandom()
	o.trust.attach(config.Trust, minRefresh, &o.gateways)
	if _, err := o.currentKeys(ctx, channel.OneOffKeys{}); err != nil {
		o.Close()
		return nil, err
	}
	return o, nil
}

// Keys are the key configuration as application/ohttp-keys (RFC 9458, section 3),
// for other clients; the unit that signed it; and until when it counts.
func (o *OneOff) Keys() (keys []byte, signer identity.Peer, expires time.Time) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.keys.Plain, o.keys.Unit, o.keys.Expires
}

// URL is where encapsulated requests under [OneOff.Keys] are posted: the
// gateway takes them to units that hold the keys.
func (o *OneOff) URL() *url.URL {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.requestURL(o.keys)
}

// Close ends the connections to the gateway, and waits for what was started.
func (o *OneOff) Close() {
	o.trust.release()
	o.gateways.close()
}

// Trust is the newest trust.
func (o *OneOff) Trust() *Trust { return o.trust.Load() }

func (o *OneOff) resourceURL(query url.Values) *url.URL {
	u := o.gateways.all[0].JoinPath("/").JoinPath(wire.PathOneOff)
	u.RawQuery = query.Encode()
	return u
}

// requestURL names the release that signed the keys and, where it is followed, the
// task that another may continue.
func (o *OneOff) requestURL(keys channel.OneOffKeys) *url.URL {
	query := url.Values{"id": {keys.Unit.ID().Hex()}}
	if task := o.config.Trust.config.Task; task != "" {
		query.Set("task", task)
	}
	return o.resourceURL(query)
}

// currentKeys gives keys that count now and are not old, fetching them if need be.
func (o *OneOff) currentKeys(ctx context.Context, old channel.OneOffKeys) (channel.OneOffKeys, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	now := o.config.Trust.config.Clock()
	if o.keys.Plain != nil && now.Before(o.keys.Expires) && string(o.keys.Plain) != string(old.Plain) && o.checkNotCutOff(o.keys) == nil {
		return o.keys, nil
	}
	var keys channel.OneOffKeys
	var err error
	for try := range maxKeyFetches {
		// Until a unit has renewed after a cut there are no keys that no cut unit holds.
		_ = retry.Sleep(ctx, time.Duration(try*try)*keysPause) // where ctx ends it, fetching fails
		if keys, err = o.fetchKeys(ctx); err == nil || !errors.Is(err, wire.Behind) && !errors.Is(err, wire.CutOff) {
			break
		}
	}
	if err == nil {
		o.keys = keys
	}
	return keys, err
}

// fetchKeys fetches keys and checks them.
func (o *OneOff) fetchKeys(ctx context.Context) (channel.OneOffKeys, error) {
	signed, err := o.fetchSigned(ctx)
	if err != nil {
		return channel.OneOffKeys{}, fmt.Errorf("fetching one-off keys: %w: %w", ErrUnreachable, err)
	}
	trust := o.trust.Load()
	keys, err := o.verifyKeys(signed, trust)
	if err != nil { // perhaps of a release that is newer than what is known
		trust, _ = o.trust.renew(ctx, trust)
		keys, err = o.verifyKeys(signed, trust)
	}
	if err != nil {
		return channel.OneOffKeys{}, fmt.Errorf("judging one-off keys: %w", err)
	}
	return keys, nil
}

func (o *OneOff) verifyKeys(signed []byte, t *Trust) (channel.OneOffKeys, error) {
	return channel.VerifyOneOffKeys(signed, t.pin(), t.channelTrust(), t.config.Clock())
}

// checkNotCutOff refuses keys that a unit may hold which the newest policy cuts off.
func (o *OneOff) checkNotCutOff(keys channel.OneOffKeys) error {
	return keys.CutOff(o.trust.Load().Policy(), o.config.Trust.config.Clock())
}

// trustFetch asks the gateway for what a unit of the pin has signed.
func (o *OneOff) fetchSigned(ctx context.Context) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, keysTimeout)
	defer cancel()
	query := url.Values{}
	if pin := o.trust.Load().pin(); pin.Task != "" {
		query.Set("task", pin.Task)
	} else {
		query.Set("id", pin.ID.Hex())
	}
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, o.resourceURL(query).String(), nil)
	if err != nil {
		return nil, err
	}
	answer, err := o.gateways.RoundTrip(r)
	if err != nil {
		return nil, err
	}
	defer answer.Body.Close()
	switch answer.StatusCode {
	case http.StatusOK:
	case http.StatusPreconditionFailed:
		return nil, wire.Refuse(wire.Behind, "one-off keys: status", answer.StatusCode, http.StatusOK)
	default:
		return nil, wire.Refuse(wire.Unavailable, "one-off keys: status", answer.StatusCode, http.StatusOK)
	}
	return io.ReadAll(io.LimitReader(answer.Body, maxSignedKeys+1))
}

// RoundTrip sends a request and gives the answer of a unit, which nobody on the
// way can read or change. It refuses, with "not-allowed" and without sending it,
// a request that is neither safe nor marked. When no unit holds the key any
// more, or one that was cut off may hold it, it fetches the key configuration again,
// and sends the request once more if its body can be had again.
func (o *OneOff) RoundTrip(r *http.Request) (*http.Response, error) {
	if !isSafe(r) && !hasIdempotencyKey(r) {
		if r.Body != nil {
			r.Body.Close()
		}
		return nil, wire.Refuse(wire.NotAllowed, "one-off: method", r.Method, "a safe one, or an Idempotency-Key")
	}
	keys, err := o.currentKeys(r.Context(), channel.OneOffKeys{})
	if err != nil {
		return nil, err
	}
	answer, err := o.send(r, keys)
	again := r.Body == nil || r.Body == http.NoBody || r.GetBody != nil
	if !errors.Is(err, wire.OneOffKey) && !errors.Is(err, wire.CutOff) || !again {
		return answer, err
	}
	if keys, err = o.currentKeys(r.Context(), keys); err != nil {
		return nil, err
	}
	if r.GetBody != nil {
		r = r.Clone(r.Context())
		if r.Body, err = r.GetBody(); err != nil {
			return nil, err
		}
	}
	return o.send(r, keys)
}

func (o *OneOff) send(r *http.Request, keys channel.OneOffKeys) (*http.Response, error) {
	through, err := channelhttp.NewOHTTPTransport(channelhttp.OHTTPConfig{URL: o.requestURL(keys), Inner: &o.gateways, Keys: keys, Whole: o.config.Whole, Valid: func() error { return o.checkNotCutOff(keys) }})
	if err != nil {
		return nil, err
	}
	return through.RoundTrip(r)
}
