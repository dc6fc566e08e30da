package client

import (
	"bytes"
	"cmp"
	"context"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"net/http"
	"net/url"
	"slices"
	"time"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/identity"
	"github.com/cohort-tee/cohort/internal/trustresponse"
	"github.com/cohort-tee/cohort/internal/unitauth"
	"github.com/cohort-tee/cohort/internal/wire"
	"github.com/cohort-tee/cohort/policy"
)

// TrustConfig contains the pin of a client and its sources of trust. Authorities or Gateways,
// Genesis and Verifier are required, and exactly one of Task, Group, ID and Measurements; only
// Group and ID may be combined.
type TrustConfig struct {
	// Authorities are https URLs of the authority's replicas, tried in order. The
	// addresses are untrusted.
	Authorities []string
	// Gateways are http or https URLs of gateways that pass on trust and the policy history.
	// They are tried in order after Authorities. The addresses are untrusted, and nothing that a
	// gateway sends counts without the authority's or the owners' signatures.
	Gateways []string
	// GatewayCA contains the roots for the gateways' certificates. These certificates protect
	// availability only. Nil means the system's roots.
	GatewayCA *x509.CertPool
	// Fresh requires evidence of the authority that was made for this client, from a gateway
	// too. Otherwise evidence from a gateway may be 10 minutes old, and many clients share it.
	Fresh bool
	// Genesis is the digest of the first policy. It determines the first owners; their
	// signatures determine everything else.
	Genesis attest.Digest

	// Task pins a task by name: all releases of it that the owners approve.
	Task string
	// Group pins a group by name: the rosters that its parties approve.
	Group string
	// ID pins one release, or with Group one roster, by its identity.
	ID attest.Digest
	// PartyKeys are digests (sshsig.KeyDigest) of the SSH keys of the trusted party, for
	// example of its old and its new key. If set, a roster of the group is accepted only
	// if at least one of the keys belongs to a party, and every such party approves the
	// roster. Otherwise the owners of the policy determine whose approvals are required.
	PartyKeys []attest.Digest
	// Measurements pin one release by all of its reference values.
	Measurements []attest.Measurement

	// MinSequence is the least policy sequence that is accepted.
	MinSequence uint64
	// State is the newest history seen before; an older history is refused.
	State State
	// Verifier appraises the evidence of the accepted platforms.
	Verifier *attest.Verifier
	// Clock returns the time. Nil means time.Now.
	Clock func() time.Time
}

// Identity is the identity of one release, or of a group, with its root: Task and Release, or
// Group, name it; Root is self-signed; Cross is the root's key, certified by the authority root,
// and nil for a group.
type Identity = trustresponse.Identity

// Trust contains everything a client needs to verify units: the policy that the owners
// signed, the authority root that the policy names, and the identity roots. Only
// [FetchTrust] makes Trust. It is immutable.
type Trust struct {
	config     *TrustConfig
	state      State
	root       *x509.Certificate
	evidence   attest.Result
	evidenceAt time.Time
	identities []Identity // pinned identities; Root is nil until it is fetched
	fetchedAt  time.Time
	pinError   error        // set when the newest policy has no pinned identity; then all peers are refused
	shared     *sharedTrust // keeps the trust current while it is used
}

// FetchTrust fetches trust from the authority, or through a gateway, and verifies all of it. The
// policy history must start at the pinned genesis and must not be older than State. The authority
// must have the root that the newest policy names, and prove by evidence that it runs code that
// this policy names: by fresh evidence on a direct connection, and through a gateway by evidence
// under its signature, which may be 10 minutes old (docs/spec/trust.md, section 7). The identity
// roots must belong to the pinned releases or group.
//
// If an authority is behind State, FetchTrust pushes the newer history to it and tries
// once more. The error of a failed check is an [attest.Refusal].
//
// On js/wasm FetchTrust fails with [ErrNoTLS]. Through gateways alone no check would need TLS, so
// there it needs only a transport that sends by fetch, in place of connections of its own.
func FetchTrust(ctx context.Context, config TrustConfig) (*Trust, error) {
	if !tlsVerifies {
		return nil, ErrNoTLS
	}
	if err := config.validate(); err != nil {
		return nil, err
	}
	if config.Clock == nil {
		config.Clock = time.Now
	}
	t, err := fetchTrust(ctx, &config, config.State)
	if err != nil {
		return nil, err
	}
	t.shared = newSharedTrust(t)
	return t, nil
}

// validate returns all faults of the configuration, joined.
func (c *TrustConfig) validate() error {
	var faults []error
	fault := func(field string, got, want any) {
		faults = append(faults, wire.Refuse(wire.BadRequest, "trust: "+field, got, want))
	}
	if len(c.Authorities)+len(c.Gateways) == 0 {
		fault("authorities and gateways", 0, "at least one URL")
	}
	for _, address := range c.Authorities {
		if u, err := url.Parse(address); err != nil || u.Scheme != "https" || u.Host == "" {
			fault("authority", address, "an https URL")
		}
	}
	for _, address := range c.Gateways {
		if all, err := parseGateways(address); err != nil || len(all) != 1 {
			fault("gateway", address, "an http or https URL")
		}
	}
	if c.Genesis.IsZero() {
		fault("genesis", c.Genesis, "the digest of the first policy")
	}
	if seen := c.State.Policy(); seen.Genuine() && seen.Genesis() != c.Genesis {
		faults = append(faults, wire.Refuse(wire.WrongGenesis, "trust: genesis of the client state", seen.Genesis(), c.Genesis))
	}
	if pins := c.pinCount(); pins != 1 {
		fault("pins", pins, "exactly one of task, group, identity, measurements")
	}
	if c.Group == "" && len(c.PartyKeys) > 0 || slices.Contains(c.PartyKeys, attest.Digest{}) {
		fault("party keys", c.PartyKeys, "digests of keys, with a group only")
	}
	if c.Verifier == nil {
		fault("verifier", "", "one for the authority's platform")
	}
	return errors.Join(faults...)
}

func (c *TrustConfig) pinCount() (n int) {
	for _, given := range []bool{c.Task != "", c.Group != "", !c.ID.IsZero() && c.Group == "", len(c.Measurements) > 0} {
		if given {
			n++
		}
	}
	return n
}

// pinned returns the pinned identities under a policy. It refuses if there is none.
func (c *TrustConfig) pinned(p policy.Approved) ([]Identity, error) {
	return trustresponse.Pin{Task: c.Task, Group: c.Group, ID: c.ID, Measurements: c.Measurements, PartyKeys: c.PartyKeys}.Identities(p, c.Clock())
}

// Policy returns the policy in force.
func (t *Trust) Policy() policy.Approved { return t.state.Policy() }

// State returns the newest history seen, to be stored for the next start.
func (t *Trust) State() State { return t.state }

// AuthorityRoot returns the certificate of the authority root that the policy names.
func (t *Trust) AuthorityRoot() *x509.Certificate { return t.root }

// Evidence returns the appraisal result of the authority's own evidence.
func (t *Trust) Evidence() attest.Result { return t.evidence }

// EvidenceAt returns when the authority made its evidence: when trust was fetched, or the time in
// the authority's statement where evidence came through a gateway for many clients.
func (t *Trust) EvidenceAt() time.Time { return t.evidenceAt }

// Identities returns the pinned identities: all releases of a task, one release, or those of a
// group. An identity that the newest policy step added is included once its root was fetched.
func (t *Trust) Identities() []Identity {
	return slices.DeleteFunc(slices.Clone(t.identities), func(i Identity) bool { return i.Root == nil })
}

// FetchedAt returns when trust was fetched.
func (t *Trust) FetchedAt() time.Time { return t.fetchedAt }

// RootPEM returns the identity roots as PEM, for any TLS client that reads roots from a file.
func (t *Trust) RootPEM() []byte {
	var b bytes.Buffer
	for _, i := range t.Identities() {
		// Writing to a Buffer does not fail.
		_ = pem.Encode(&b, &pem.Block{Type: "CERTIFICATE", Bytes: i.Root.Raw})
	}
	return b.Bytes()
}

// serverNames returns the DNS names of the pinned releases' task.
func (t *Trust) serverNames() []string {
	if task := t.state.Policy().Document().Tasks[t.identities[0].Task]; task != nil {
		return task.Names
	}
	return nil // a group: its units serve only members and sessions, never TLS clients by name
}

// checkTarget refuses a request that no unit of the pin serves: with "request" a scheme other than
// https, with "name" a host that is not the task's or group's.
func (t *Trust) checkTarget(r *http.Request) error {
	if err := checkHTTPS(r); err != nil {
		return err
	}
	var task string
	if len(t.identities) > 0 {
		task = t.identities[0].Task
	}
	doc, authority := t.state.Policy().Document(), cmp.Or(r.Host, r.URL.Host)
	if hosts := doc.Hosts(task, t.config.Group); !doc.Serves(task, t.config.Group, authority) && len(hosts) > 0 {
		return wire.Refuse(wire.WrongName, "request in the channel: host", authority, hosts)
	}
	return nil
}

// expect returns the requirements on a unit at a time. Without a pinned identity they
// refuse every unit.
func (t *Trust) expect(at time.Time) identity.Expect {
	if t.pinError != nil {
		return identity.Expect{}
	}
	e := identity.Expect{
		Policy:       t.state.Policy(),
		Kinds:        []identity.Kind{identity.KindShared, identity.KindUnit},
		Use:          identity.UseTLS,
		Measurements: t.config.Measurements,
		At:           at,
	}
	for _, i := range t.identities {
		e.IDs = append(e.IDs, i.ID)
	}
	return e
}

// channelTrust returns the trust under which sessions and receipts are checked.
func (t *Trust) channelTrust() unitauth.Trust {
	return unitauth.Trust{Policy: t.Policy(), Root: t.root, Approvers: t.config.PartyKeys}
}

// refetch fetches trust again, starting from the state of t.
func (t *Trust) refetch(ctx context.Context) (*Trust, error) {
	newer, err := fetchTrust(ctx, t.config, t.state)
	if err == nil {
		newer.shared = t.shared
	}
	return newer, err
}

// retireBefore returns how long before the end of the peer's certificate a connection
// accepts no further request: an eighth of the certificate's lifetime, at most a minute.
// The newest certificate of a unit always has at least a quarter of its lifetime left.
func retireBefore(leaf *x509.Certificate) time.Duration {
	lifetime := leaf.NotAfter.Sub(leaf.NotBefore) - wire.WindowLead
	return min(max(lifetime/8, 0), time.Minute)
}
