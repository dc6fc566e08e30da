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
	"github.com/cohort-tee/cohort/internal/channelhttp"
	"github.com/cohort-tee/cohort/internal/retry"
	"github.com/cohort-tee/cohort/internal/unitauth"
	"github.com/cohort-tee/cohort/internal/wire"
)

// keysTimeout limits one request for a key configuration. While a unit that was cut off
// may have all keys, the client repeats the request after growing pauses.
const (
	keysTimeout   = 10 * time.Second
	maxKeyFetches = 6
	keysPause     = 100 * time.Millisecond
)

// OneOffConfig selects the units of one-off requests. Trust and Gateway are required.
type OneOffConfig struct {
	// Trust comes from [FetchTrust], for a task or one release.
	Trust *Trust
	// Gateway is one or several URLs as in [OpenConfig]. Gateways are untrusted.
	Gateway string
	// CA contains the roots for the gateways' certificates. These certificates protect
	// availability only. Nil means the system's roots.
	CA *x509.CertPool
	// Whole sends each request as one message of RFC 9458, without chunks. Responses are
	// then buffered whole too, at most 256 KiB each.
	Whole bool
}

// OneOff is an [http.RoundTripper] for one-off requests over Oblivious HTTP (RFC 9458). It encrypts
// each request by itself, and any unit of the pinned identity can serve it. There is no session,
// and so no fresh evidence and no receipt. A gateway can deliver a request to several units, so
// every request must be safe, or carry an Idempotency-Key where the policy allows that. Requests
// with one Cohort-Affinity field prefer one unit, and the gateway sees that they belong together.
// OneOff is safe for concurrent use. The caller of [NewOneOff] closes it.
type OneOff struct {
	config   OneOffConfig
	gateways gateways
	trust    trustRefresher
	blinder  channelhttp.Blinder

	mu   sync.Mutex // guards keys; held during a fetch of keys
	keys unitauth.OHTTPKeys
}

// NewOneOff fetches a key configuration that a unit signed, and verifies it. It blocks
// until that is done or ctx is done. The error is an [attest.Refusal] when a check fails,
// and [ErrUnreachable] when no unit responds.
func NewOneOff(ctx context.Context, config OneOffConfig) (*OneOff, error) {
	if config.Trust == nil {
		return nil, wire.Refuse(wire.BadRequest, "one-off: trust", "no trust", "a Trust of FetchTrust")
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
	if _, err := o.currentKeys(ctx, unitauth.OHTTPKeys{}); err != nil {
		o.Close()
		return nil, err
	}
	return o, nil
}

// SignedKeys returns, for other clients, the key configuration as application/ohttp-keys
// (RFC 9458, section 3), with the unit that signed it and the end of its validity.
func (o *OneOff) SignedKeys() (keys []byte, signer identity.Peer, expires time.Time) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.keys.Plain, o.keys.Unit, o.keys.Expires
}

// GatewayURL returns the URL for encapsulated requests under [OneOff.SignedKeys]. The
// gateway forwards these requests to units that have the keys.
func (o *OneOff) GatewayURL() *url.URL {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.requestURL(o.keys)
}

// Close closes the connections to the gateway and waits for all goroutines.
func (o *OneOff) Close() {
	o.trust.release()
	o.gateways.close()
}

// Trust returns the newest trust.
func (o *OneOff) Trust() *Trust { return o.trust.Load() }

func (o *OneOff) resourceURL(query url.Values) *url.URL {
	u := o.gateways.all[0].JoinPath("/").JoinPath(wire.PathOneOff)
	u.RawQuery = query.Encode()
	return u
}

// requestURL returns the URL for requests under keys. Its query names the release that
// signed the keys and, for a pinned task, the task, because a later release may serve it.
func (o *OneOff) requestURL(keys unitauth.OHTTPKeys) *url.URL {
	query := url.Values{"id": {keys.Unit.ID().Hex()}}
	if task := o.config.Trust.config.Task; task != "" {
		query.Set("task", task)
	}
	return o.resourceURL(query)
}

// currentKeys returns valid keys that differ from old, and fetches them if necessary.
func (o *OneOff) currentKeys(ctx context.Context, old unitauth.OHTTPKeys) (unitauth.OHTTPKeys, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	now := o.config.Trust.config.Clock()
	if o.keys.Plain != nil && now.Before(o.keys.Expires) && string(o.keys.Plain) != string(old.Plain) && o.checkNotCutOff(o.keys) == nil {
		return o.keys, nil
	}
	var keys unitauth.OHTTPKeys
	var err error
	for try := range maxKeyFetches {
		// A unit that was cut off has all keys until the first other unit renews its own.
		_ = retry.Sleep(ctx, time.Duration(try*try)*keysPause) // once ctx is done, fetchKeys fails
		if keys, err = o.fetchKeys(ctx); err == nil || !errors.Is(err, wire.Behind) && !errors.Is(err, wire.CutOff) {
			break
		}
	}
	if err == nil {
		o.keys = keys
	}
	return keys, err
}

// fetchKeys fetches keys and verifies them. If that fails, it renews trust and verifies
// them once more.
func (o *OneOff) fetchKeys(ctx context.Context) (unitauth.OHTTPKeys, error) {
	signed, err := o.fetchSigned(ctx)
	if err != nil {
		return unitauth.OHTTPKeys{}, fmt.Errorf("fetching one-off keys: %w: %w", ErrUnreachable, err)
	}
	trust := o.trust.Load()
	keys, err := o.verifyKeys(signed, trust)
	if err != nil { // the keys may be of a release that the known policy does not name yet
		trust, _ = o.trust.renew(ctx, trust)
		keys, err = o.verifyKeys(signed, trust)
	}
	if err != nil {
		return unitauth.OHTTPKeys{}, fmt.Errorf("verifying one-off keys: %w", err)
	}
	return keys, nil
}

func (o *OneOff) verifyKeys(signed []byte, t *Trust) (unitauth.OHTTPKeys, error) {
	return unitauth.VerifyOHTTPKeys(signed, t.basePin(), t.channelTrust(), t.config.Clock())
}

// checkNotCutOff refuses keys if the newest policy cuts off a unit that may have them.
func (o *OneOff) checkNotCutOff(keys unitauth.OHTTPKeys) error {
	return keys.CutOff(o.trust.Load().Policy(), o.config.Trust.config.Clock())
}

// fetchSigned fetches the signed keys of a unit of the pinned identity through the gateway.
func (o *OneOff) fetchSigned(ctx context.Context) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, keysTimeout)
	defer cancel()
	query := url.Values{}
	if pin := o.trust.Load().basePin(); pin.Task != "" {
		query.Set("task", pin.Task)
	} else {
		query.Set("id", pin.ID.Hex())
	}
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, o.resourceURL(query).String(), nil)
	if err != nil {
		return nil, err
	}
	response, err := o.gateways.RoundTrip(r)
	if err != nil {
		return nil, err
	}
	defer response.Body.Close()
	switch response.StatusCode {
	case http.StatusOK:
	case http.StatusPreconditionFailed:
		return nil, wire.Refuse(wire.Behind, "one-off keys: status", response.StatusCode, http.StatusOK)
	default:
		return nil, wire.Refuse(wire.Unavailable, "one-off keys: status", response.StatusCode, http.StatusOK)
	}
	return io.ReadAll(io.LimitReader(response.Body, unitauth.MaxSignedKeys+1))
}

// RoundTrip sends a request and returns the response of a unit. No intermediary can read or change
// either. RoundTrip refuses, without sending it, a request that is not safe and carries no
// Idempotency-Key ("not-allowed"), and one for another host ("name"), as [Channel.RoundTrip] does.
// When no unit has the key any more, or a unit that was cut off may have it, RoundTrip fetches the
// key configuration again, and repeats the request once if the body can be read again.
func (o *OneOff) RoundTrip(r *http.Request) (*http.Response, error) {
	err := o.trust.newest.Load().checkTarget(r)
	if !isSafe(r) && !hasIdempotencyKey(r) {
		err = wire.Refuse(wire.NotAllowed, "one-off: method", r.Method, "a safe one, or an Idempotency-Key")
	}
	if err != nil {
		closeBody(r)
		return nil, err
	}
	keys, err := o.currentKeys(r.Context(), unitauth.OHTTPKeys{})
	if err != nil {
		return nil, err
	}
	response, err := o.sealAndSend(r, keys)
	again := r.Body == nil || r.Body == http.NoBody || r.GetBody != nil
	if !errors.Is(err, wire.OneOffKey) && !errors.Is(err, wire.CutOff) || !again {
		return response, err
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
	return o.sealAndSend(r, keys)
}

func (o *OneOff) sealAndSend(r *http.Request, keys unitauth.OHTTPKeys) (*http.Response, error) {
	through, err := channelhttp.NewOHTTPTransport(channelhttp.OHTTPConfig{URL: o.requestURL(keys), Inner: &o.gateways, Keys: keys, Blinder: &o.blinder, Whole: o.config.Whole, Valid: func() error { return o.checkNotCutOff(keys) }})
	if err != nil {
		return nil, err
	}
	return through.RoundTrip(r)
}
