package client

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"net/url"
	"slices"
	"time"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/identity"
	"github.com/cohort-tee/cohort/internal/unitauth"
	"github.com/cohort-tee/cohort/internal/wire"
	"github.com/cohort-tee/cohort/policy"
)

// TrustConfig is the pin of a client and its sources of trust. Every field but
// PartyKeys, State, MinSequence and Clock is required; of Task, Group, ID and
// Measurements exactly one.
type TrustConfig struct {
	// Authorities are https URLs of the authority's replicas, tried in order.
	// They are untrusted.
	Authorities []string
	// Genesis is the digest of the first policy. It determines the owners, and
	// their signatures everything else.
	Genesis attest.Digest

	// Task follows a task by name through the releases its owners approve.
	Task string
	// Group follows a group by name through the rosters its parties approve.
	Group string
	// ID pins one release, or with Group one roster, by its identity id.
	ID attest.Digest
	// PartyKeys are digests (sshsig.KeyDigest) of the SSH keys of the trusted
	// party, for example its old and its new key. With them a roster of the group
	// is accepted only if at least one of the keys is a party's, and each such
	// party approves it. Without them the owners of the policy determine whose
	// approvals are required.
	PartyKeys []attest.Digest
	// Measurements pin one release by all of its reference values.
	Measurements []attest.Measurement

	// MinSequence is the lowest policy sequence that is accepted.
	MinSequence uint64
	// State is the history seen before; an older one is refused.
	State State
	// Verifier appraises the evidence of the platforms that are accepted.
	Verifier *attest.Verifier
	// Clock returns the time. Nil means time.Now.
	Clock func() time.Time
}

// Identity is the identity of one release, or of a group, with its root.
type Identity struct {
	ID      attest.Digest
	Task    string
	Release string
	Group   string            // Task and Release are then empty
	Root    *x509.Certificate // self-signed
	Cross   *x509.Certificate // the same key under the authority root; nil of a group
}

// Trust is all a client needs to verify a task's units: policy that the pinned
// owners signed, the authority root it names, and the identity roots. Only
// [FetchTrust] makes one. It is immutable.
type Trust struct {
	config     *TrustConfig
	state      State
	root       *x509.Certificate
	evidence   attest.Result
	identities []Identity // the pinned ones; without Root until that is fetched
	fetchedAt  time.Time
	pinError   error        // the newest policy has no identity of the pin, so that all peers are refused
	shared     *sharedTrust // keeps it current while it is used
}

// FetchTrust fetches trust from the authority and verifies all of it. The policy
// history must lead from the pinned genesis to one that is not older than any
// seen before; the authority must hold the root which that policy names and
// prove, by fresh evidence, to be code which that policy names; and the identity
// roots must be those of the pinned releases.
//
// If an authority is behind State, FetchTrust pushes the newer history to it and
// tries once more. A failed check is an [attest.Refusal]. FetchTrust never uses a
// gateway; gateways keep trust current later, when a [Channel] uses it. On js/wasm
// it fails with [ErrNoTLS].
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

// validate returns every fault of the configuration.
func (c *TrustConfig) validate() error {
	var faults []error
	fault := func(field string, got, want any) {
		faults = append(faults, wire.Refuse(wire.BadRequest, "trust: "+field, got, want))
	}
	if len(c.Authorities) == 0 {
		fault("authorities", 0, "at least one URL")
	}
	for _, address := range c.Authorities {
		if u, err := url.Parse(address); err != nil || u.Scheme != "https" || u.Host == "" {
			fault("authority", address, "an https URL")
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

// pinned returns the pinned releases under a policy. It refuses a pin without any.
func (c *TrustConfig) pinned(p policy.Approved) ([]Identity, error) {
	if c.Group != "" {
		return c.pinnedGroup(p)
	}
	var found []Identity
	doc := p.Document()
	for _, task := range doc.TaskNames() {
		for _, release := range doc.Tasks[task].ReleaseNames() {
			id, err := identity.ReleaseID(p, task, release)
			if err != nil {
				return nil, err
			}
			if task == c.Task || id == c.ID || c.hasMeasurements(doc.Tasks[task].Releases[release].References) {
				found = append(found, Identity{ID: id, Task: task, Release: release})
			}
		}
	}
	switch {
	case len(found) > 0:
		return found, nil
	case c.Task != "":
		return nil, wire.Refuse(wire.NotFound, "trust: task", c.Task, doc.TaskNames())
	case !c.ID.IsZero():
		return nil, wire.Refuse(wire.WrongIdentity, "trust: identity", c.ID, "a release of the policy")
	}
	return nil, wire.Refuse(wire.NotMeasured, "trust: measurements", c.Measurements, "those of a release of the policy")
}

// hasMeasurements reports whether the pinned measurements are all of a release's.
func (c *TrustConfig) hasMeasurements(references []attest.ReferenceValue) bool {
	if len(c.Measurements) == 0 {
		return false
	}
	want := slices.SortedFunc(slices.Values(c.Measurements), attest.Measurement.Compare)
	got := slices.SortedFunc(slices.Values(references), attest.Measurement.Compare)
	return slices.EqualFunc(got, want, func(a, b attest.Measurement) bool { return a.Compare(b) == 0 })
}

// Policy returns the policy in force.
func (t *Trust) Policy() policy.Approved { return t.state.Policy() }

// State returns the history seen so far, to be stored for the next start.
func (t *Trust) State() State { return t.state }

// AuthorityRoot returns the certificate of the root that policy names.
func (t *Trust) AuthorityRoot() *x509.Certificate { return t.root }

// Evidence returns the appraisal result of the authority's own evidence.
func (t *Trust) Evidence() attest.Result { return t.evidence }

// Identities returns the live releases of the task, or exactly the pinned one. One
// that the newest step added is among them once its root was fetched.
func (t *Trust) Identities() []Identity {
	return slices.DeleteFunc(slices.Clone(t.identities), func(i Identity) bool { return i.Root == nil })
}

// FetchedAt returns when trust was fetched.
func (t *Trust) FetchedAt() time.Time { return t.fetchedAt }

// RootPEM returns the identity roots, for any TLS client that reads a file of roots.
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
	return nil // a group, whose units serve members and sessions only
}

// expect returns the requirements on a unit.
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

// channelTrust returns the trust of sessions.
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

// retireBefore returns how long before its certificate's end a connection takes no
// further request: an eighth of the certificate's lifetime, at most a minute. A
// unit's newest certificate is always valid for at least a quarter more.
func retireBefore(leaf *x509.Certificate) time.Duration {
	lifetime := leaf.NotAfter.Sub(leaf.NotBefore) - wire.WindowLead
	return min(max(lifetime/8, 0), time.Minute)
}
