package client

import (
	"context"
	"crypto/rand"
	"crypto/x509"
	"errors"
	"fmt"
	"net/url"
	"time"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/internal/api"
	"github.com/cohort-tee/cohort/internal/history"
	"github.com/cohort-tee/cohort/internal/trustresponse"
	"github.com/cohort-tee/cohort/internal/wire"
	"github.com/cohort-tee/cohort/policy"
)

// sourceTimeout limits the time for one replica of the authority or one gateway, so that the
// client continues with the next one if one hangs.
const sourceTimeout = 10 * time.Second

// trustFetch fetches trust from one source. It is used once.
type trustFetch struct {
	config *TrustConfig
	state  State // the newest history, replayed
	source trustServer
}

// trustServer is where trust is fetched: the authority itself, or a relay.
type trustServer interface {
	// followHistory returns h with the newest steps. It is proved in force by verifyTrust at the latest.
	followHistory(ctx context.Context, h history.History, pin attest.Digest) (history.History, error)
	requestTrust(ctx context.Context, q api.TrustQuery) (api.TrustResponse, error)
	// verifyTrust verifies a response, and returns the history with its proof.
	verifyTrust(c trustresponse.Check, unverified api.TrustResponse, h history.History) (trustresponse.Verified, history.History, error)
}

// fetchTrust tries the replicas of the authority in order, then the gateways, until one returns
// trust that is not older than state.
func fetchTrust(ctx context.Context, config *TrustConfig, state State) (*Trust, error) {
	var faults []error
	for _, address := range config.Authorities {
		t, err := fetchFrom(ctx, config, state, address)
		if err == nil {
			return t, nil
		}
		faults = append(faults, fmt.Errorf("authority %s: %w", address, err))
	}
	for _, address := range config.Gateways {
		t, err := fetchThrough(ctx, config, state, address)
		if err == nil {
			return t, nil
		}
		faults = append(faults, fmt.Errorf("gateway %s: %w", address, err))
	}
	return nil, errors.Join(faults...)
}

// fetchFrom fetches trust from one replica. If the replica is behind, fetchFrom pushes
// the known history to it and tries once more.
func fetchFrom(ctx context.Context, config *TrustConfig, state State, address string) (*Trust, error) {
	ctx, cancel := context.WithTimeout(ctx, sourceTimeout)
	defer cancel()
	f := &trustFetch{config: config, state: state}
	peer, err := history.NewPeer(history.Config{Address: address, LeafPolicy: f.currentPolicy, Clock: config.Clock})
	if err != nil {
		return nil, err
	}
	defer peer.Close()
	f.source = connected{peer}
	t, err := f.trust(ctx, f.requestNew)
	if !errors.Is(err, wire.Behind) {
		return t, err
	}
	if !f.state.Policy().Genuine() {
		return nil, err
	}
	if failed := peer.PushHistory(ctx, f.state.history); failed != nil {
		return nil, errors.Join(err, failed)
	}
	return f.trust(ctx, f.requestNew)
}

// fetchThrough fetches trust through one gateway. It asks for evidence that many clients share
// and, if that is refused for what a copy in a cache may be, once more for its own.
func fetchThrough(ctx context.Context, config *TrustConfig, state State, address string) (*Trust, error) {
	ctx, cancel := context.WithTimeout(ctx, sourceTimeout)
	defer cancel()
	at, err := url.Parse(address)
	if err != nil {
		return nil, err
	}
	inner := newGateway(config.GatewayCA)
	defer inner.CloseIdleConnections()
	f := &trustFetch{config: config, state: state, source: &relayed{gateway: newGatewayReader(at, inner)}}
	if config.Fresh {
		return f.trust(ctx, f.requestNew)
	}
	t, err := f.trust(ctx, f.requestShared)
	if !errors.Is(err, wire.Behind) && !errors.Is(err, wire.Expired) && !errors.Is(err, wire.WrongChip) {
		return t, err
	}
	t, failed := f.trust(ctx, f.requestNew)
	if failed != nil {
		return nil, errors.Join(err, failed)
	}
	return t, nil
}

// currentPolicy returns the policy and the time for checking the authority's certificate.
func (f *trustFetch) currentPolicy(*x509.Certificate) (policy.Approved, time.Time, error) {
	return f.state.Policy(), f.config.Clock(), nil
}

// trust fetches the history and then trust by request, and verifies it under the newest policy.
func (f *trustFetch) trust(ctx context.Context, request trustRequest) (*Trust, error) {
	query, check, err := f.prepare(ctx)
	if err != nil {
		return nil, err
	}
	unverified, err := request(ctx, query, &check)
	if err != nil {
		return nil, fmt.Errorf("requesting trust: %w", err)
	}
	return f.makeTrust(check, unverified)
}

// prepare fetches the history, and returns the query for the pinned identities of its policy and
// what a response is checked against.
func (f *trustFetch) prepare(ctx context.Context) (query api.TrustQuery, check trustresponse.Check, err error) {
	newer, err := f.source.followHistory(ctx, f.state.history, f.config.Genesis)
	if err != nil {
		return query, check, err
	}
	f.state = State{newer}
	check = trustresponse.Check{Policy: newer.Policy(), Parties: f.config.PartyKeys, Verifier: f.config.Verifier}
	if got := newer.Policy().Document().Sequence; got < f.config.MinSequence {
		return query, check, wire.Refuse(wire.Behind, "policy: sequence", got, fmt.Sprint("at least ", f.config.MinSequence))
	}
	if check.Pinned, err = f.config.pinned(newer.Policy()); err != nil {
		return query, check, err
	}
	query.Task, query.Group = f.config.Task, f.config.Group
	if query.Task+query.Group == "" {
		query.ID = check.Pinned[0].ID
	}
	return query, check, nil
}

// trustRequest requests trust, and notes in the check what the response must match.
type trustRequest func(context.Context, api.TrustQuery, *trustresponse.Check) (api.TrustResponse, error)

// requestShared requests evidence that many clients share.
func (f *trustFetch) requestShared(ctx context.Context, query api.TrustQuery, _ *trustresponse.Check) (api.TrustResponse, error) {
	return f.source.requestTrust(ctx, query)
}

// requestNew requests evidence for a new nonce. Where the evidence names a device and key that a
// credential must bind, a TPM's, it requests once more with one.
func (f *trustFetch) requestNew(ctx context.Context, query api.TrustQuery, check *trustresponse.Check) (api.TrustResponse, error) {
	check.Nonce = newTrustNonce()
	query.Nonce = check.Nonce
	unverified, err := f.source.requestTrust(ctx, query)
	if err != nil {
		return unverified, err
	}
	platform, in, named := check.UnverifiedKeys(unverified)
	if !named {
		return unverified, nil
	}
	challenge, err := f.config.Verifier.Challenge(platform, in)
	if err != nil {
		return unverified, fmt.Errorf("challenging the authority: %w", err)
	}
	check.Nonce, check.Secret = newTrustNonce(), challenge.SecretFor
	query.Nonce, query.Credential = check.Nonce, challenge.Credential
	return f.source.requestTrust(ctx, query)
}

func newTrustNonce() []byte {
	nonce := make([]byte, api.TrustNonce)
	rand.Read(nonce)
	return nonce
}

// makeTrust verifies a response and makes Trust of it.
func (f *trustFetch) makeTrust(check trustresponse.Check, unverified api.TrustResponse) (*Trust, error) {
	check.At = f.config.Clock()
	verified, proved, err := f.source.verifyTrust(check, unverified, f.state.history)
	if err != nil {
		return nil, err
	}
	f.state = State{proved}
	t := &Trust{config: f.config, state: f.state, fetchedAt: check.At, root: verified.Root, evidence: verified.Evidence, evidenceAt: check.At, identities: verified.Identities}
	if check.Nonce == nil {
		t.evidenceAt = verified.StatedAt
	}
	return t, nil
}

// connected is an authority, on a connection whose certificate was verified.
type connected struct{ peer *history.Peer }

func (s connected) followHistory(ctx context.Context, h history.History, pin attest.Digest) (history.History, error) {
	return s.peer.Follow(ctx, h, pin)
}

func (s connected) requestTrust(ctx context.Context, q api.TrustQuery) (api.TrustResponse, error) {
	return s.peer.Authority.Trust(ctx, q)
}

func (s connected) verifyTrust(c trustresponse.Check, unverified api.TrustResponse, h history.History) (trustresponse.Verified, history.History, error) {
	v, err := c.Verify(unverified)
	return v, h, err
}

// relayed is a gateway, or any other relay. Its history is proved by the root in its trust
// response, and that by policy.
type relayed struct {
	gateway *api.Gateway
	proof   []byte // of the head of the newest history, unverified
}

func (s *relayed) followHistory(ctx context.Context, h history.History, pin attest.Digest) (next history.History, err error) {
	next, s.proof, err = (&history.Gateway{Reader: s.gateway}).FollowUnproved(ctx, h, pin)
	return next, err
}

func (s *relayed) requestTrust(ctx context.Context, q api.TrustQuery) (api.TrustResponse, error) {
	return s.gateway.Trust(ctx, q)
}

func (s *relayed) verifyTrust(c trustresponse.Check, unverified api.TrustResponse, h history.History) (trustresponse.Verified, history.History, error) {
	root, err := trustresponse.ParseRoot(unverified)
	if err != nil {
		return trustresponse.Verified{}, h, err
	}
	if h, err = h.Prove(s.proof, root, c.At); err != nil {
		return trustresponse.Verified{}, h, err
	}
	v, err := c.VerifyRelayed(unverified)
	return v, h, err
}
