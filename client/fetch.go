package client

import (
	"context"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/identity"
	"github.com/cohort-tee/cohort/internal/api"
	"github.com/cohort-tee/cohort/internal/history"
	"github.com/cohort-tee/cohort/internal/wire"
	"github.com/cohort-tee/cohort/policy"
)

// authorityTimeout limits the time for one replica of the authority, so that the client continues
// with the next replica if one hangs.
const authorityTimeout = 10 * time.Second

// trustFetch fetches trust from one replica of the authority. It is used once.
type trustFetch struct {
	config *TrustConfig
	state  State // the newest history, replayed
	peer   *history.Peer
	// challenge is the credential challenge for an authority whose evidence needs one: a TPM.
	challenge attest.Challenge
}

// fetchTrust tries the replicas of the authority in order, until one returns trust
// that is not older than state.
func fetchTrust(ctx context.Context, config *TrustConfig, state State) (*Trust, error) {
	var faults []error
	for _, address := range config.Authorities {
		t, err := fetchFrom(ctx, config, state, address)
		if err == nil {
			return t, nil
		}
		faults = append(faults, fmt.Errorf("authority %s: %w", address, err))
	}
	return nil, errors.Join(faults...)
}

// fetchFrom fetches trust from one replica. If the replica is behind, fetchFrom pushes
// the known history to it and tries once more.
func fetchFrom(ctx context.Context, config *TrustConfig, state State, address string) (*Trust, error) {
	ctx, cancel := context.WithTimeout(ctx, authorityTimeout)
	defer cancel()
	f := &trustFetch{config: config, state: state}
	var err error
	if f.peer, err = history.NewPeer(history.Config{Address: address, LeafPolicy: f.currentPolicy, Clock: config.Clock}); err != nil {
		return nil, err
	}
	defer f.peer.Close()
	t, err := f.trust(ctx)
	if !errors.Is(err, wire.Behind) {
		return t, err
	}
	if err := f.pushHistory(ctx, err); err != nil {
		return nil, err
	}
	return f.trust(ctx)
}

// currentPolicy returns the policy and the time for checking the authority's certificate.
func (f *trustFetch) currentPolicy(*x509.Certificate) (policy.Approved, time.Time, error) {
	return f.state.Policy(), f.config.Clock(), nil
}

// trust fetches the history and then trust, which it verifies under the newest policy.
func (f *trustFetch) trust(ctx context.Context) (*Trust, error) {
	query, pinned, err := f.prepare(ctx)
	if err != nil {
		return nil, err
	}
	unverified, err := f.requestTrust(ctx, &query)
	if err != nil {
		return nil, err
	}
	in, introduced, err := f.config.Verifier.UnverifiedKeys(unverified.Evidence)
	if err != nil {
		return nil, fmt.Errorf("reading the authority's evidence: %w", err)
	}
	if introduced {
		if f.challenge, err = f.config.Verifier.Challenge(unverified.Evidence.Platform, in); err != nil {
			return nil, fmt.Errorf("challenging the authority: %w", err)
		}
		query.Credential = f.challenge.Credential
		if unverified, err = f.requestTrust(ctx, &query); err != nil {
			return nil, err
		}
	}
	return f.verifyTrust(query, unverified, pinned)
}

// prepare fetches the history, and returns the query for the pinned identities of its policy.
func (f *trustFetch) prepare(ctx context.Context) (query api.TrustQuery, pinned []Identity, err error) {
	if err = f.followHistory(ctx); err != nil {
		return query, nil, err
	}
	if got := f.state.Policy().Document().Sequence; got < f.config.MinSequence {
		return query, nil, wire.Refuse(wire.Behind, "policy: sequence", got, fmt.Sprint("at least ", f.config.MinSequence))
	}
	if pinned, err = f.config.pinned(f.state.Policy()); err != nil {
		return query, nil, err
	}
	query.Task, query.Group = f.config.Task, f.config.Group
	if query.Task+query.Group == "" {
		query.ID = pinned[0].ID
	}
	return query, pinned, nil
}

// requestTrust sends one request for trust with a new nonce, which it stores in query.
func (f *trustFetch) requestTrust(ctx context.Context, query *api.TrustQuery) (unverified trustResponse, err error) {
	rand.Read(query.Nonce[:])
	if unverified.TrustResponse, err = f.peer.Authority.Trust(ctx, *query); err != nil {
		return unverified, fmt.Errorf("requesting trust: %w", err)
	}
	if err = json.Unmarshal(unverified.TrustResponse.Evidence, &unverified.Evidence); err != nil && !isRefusal(err) {
		err = wire.Refuse(wire.Malformed, "evidence: wrapper", err, "RFC 9999")
	}
	return unverified, err
}

// trustResponse is a response of the authority with decoded evidence.
type trustResponse struct {
	api.TrustResponse
	Evidence attest.Evidence
}

// followHistory extends the state to the authority's newest policy.
func (f *trustFetch) followHistory(ctx context.Context) error {
	newer, err := f.peer.Follow(ctx, f.state.history, f.config.Genesis)
	if err == nil {
		f.state = State{newer}
	}
	return err
}

// pushHistory sends the known history to an authority that is behind. It returns cause
// if no history is known.
func (f *trustFetch) pushHistory(ctx context.Context, cause error) error {
	if !f.state.Policy().Genuine() {
		return cause
	}
	if err := f.peer.PushHistory(ctx, f.state.history); err != nil {
		return errors.Join(cause, err)
	}
	return nil
}

// verifyTrust verifies a response of the authority and makes Trust of it.
func (f *trustFetch) verifyTrust(query api.TrustQuery, unverified trustResponse, pinned []Identity) (*Trust, error) {
	t := &Trust{config: f.config, state: f.state, fetchedAt: f.config.Clock()}
	var err error
	if t.root, err = parseCertificate(unverified.Authority); err != nil {
		return nil, fmt.Errorf("reading the authority root: %w", err)
	}
	// The authority's policy may have changed since the history was fetched.
	if got, want := unverified.History.Head, f.state.Policy().PolicyHead(); got != want {
		return nil, wire.Refuse(wire.Behind, "trust: policy head", got, want)
	}
	if t.evidence, err = f.appraise(query, unverified.Evidence); err != nil {
		return nil, fmt.Errorf("appraising the authority: %w", err)
	}
	for _, want := range pinned {
		found, err := f.findIdentity(unverified.Identities, want, t.root)
		if err != nil {
			return nil, fmt.Errorf("checking identity of %s: %w", want, err)
		}
		t.identities = append(t.identities, found)
	}
	return t, nil
}

// appraise appraises the authority's evidence: the policy names the authority's code and
// accepts its TEE, and the evidence is for this query's nonce.
func (f *trustFetch) appraise(query api.TrustQuery, evidence attest.Evidence) (attest.Result, error) {
	root, head := f.state.Policy().Document().Authority.Root, f.state.Policy().PolicyHead()
	result, err := f.config.Verifier.Appraise(attest.Question{
		Evidence:   evidence,
		ReportData: attest.BindReportData(wire.LabelTrust, query.Nonce[:], root[:], head[:]),
		Secret:     f.challenge.SecretFor,
		Rules:      f.state.Policy().Rules(),
		At:         f.config.Clock(),
	})
	if err != nil {
		return attest.Result{}, err
	}
	return result, f.state.Policy().AdmitAuthority(result)
}

// findIdentity returns an identity with its roots from a response, after checking them.
func (f *trustFetch) findIdentity(unverified []api.TrustIdentity, want Identity, authority *x509.Certificate) (Identity, error) {
	for _, u := range unverified {
		if u.ID != want.ID {
			continue
		}
		var err error
		if want.Root, err = parseCertificate(u.Root); err != nil {
			return Identity{}, fmt.Errorf("reading identity root: %w", err)
		}
		if want.Group != "" {
			return want, identity.CheckGroupRoot(want.Root, identity.Expect{Policy: f.state.Policy(), Group: want.Group, IDs: []attest.Digest{want.ID}, At: f.config.Clock(), Approvers: f.config.PartyKeys})
		}
		if want.Cross, err = parseCertificate(u.Cross); err != nil {
			return Identity{}, fmt.Errorf("reading cross-certificate: %w", err)
		}
		expect := identity.Expect{
			Policy: f.state.Policy(),
			Kinds:  []identity.Kind{identity.KindShared, identity.KindUnit},
			Use:    identity.UseTLS,
			IDs:    []attest.Digest{want.ID},
			At:     f.config.Clock(),
		}
		return want, identity.CheckRoot(want.Root, want.Cross, authority, expect)
	}
	return Identity{}, wire.Refuse(wire.WrongIdentity, "trust: identity", "not in the response", want.ID)
}

func parseCertificate(der []byte) (*x509.Certificate, error) {
	c, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, wire.Refuse(wire.Malformed, "certificate", err, "X.509 DER")
	}
	return c, nil
}
