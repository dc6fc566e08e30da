// Package identity derives keys and certificates from the root secret of an authority and an
// approved policy, and verifies the certificates of peers.
//
// Issuing is a pure function: every key is derived from the root secret, and every certificate
// is deterministic. So authorities that share a root secret and a policy issue the same bytes
// without communicating, and no private key is stored. [Derive] makes [Keys] from a root
// secret; [Keys.Issuer] makes the [Issuer] of one policy.
//
// An identity is one release of a task or one group. [ReleaseID], a digest over its
// measurements, identifies a release; the digest of its roster identifies a group. A release
// has a root of its own, and the authority root cross-signs the key of that root. A group has a
// root whose key is derived from a secret of its roster ([GroupKeys]). The parties that approve
// the roster also name that root, and its key cannot be derived from the authority root secret.
//
// [Check] is the only function that makes a verified [Peer]. It verifies a presented chain up
// to the authority root that the policy names, or to the group root that the parties'
// approvals name. It recomputes the identity of a release from the measurements in the
// cross-certificate, and requires a kind, a use and an identity that the caller accepts; the
// zero [Expect] refuses every peer. [ServerTLS] and [ClientTLS] return TLS 1.3 configurations;
// a client with ClientTLS runs Check in every handshake.
//
// Ring keys are not derived. They are random, exist only in memory and inside certificate
// reports, and are erased after use ([RingKey], [Ring]).
//
// The package trusts approved policies, and certificates only after Check has accepted them. It
// refuses unknown algorithms, unknown critical extensions and certificates without its own
// extension. docs/spec/identity.md specifies every byte.
//
// Files, each using those before it: identity.go, extension.go, secret.go, keys.go, profile.go, peer.go, csr.go,
// ring.go, tls.go, check.go, head.go, group.go, grouproot.go, issuer.go.
package identity

import (
	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/internal/wire"
	"github.com/cohort-tee/cohort/policy"
	"github.com/cohort-tee/cohort/policy/policyfile"
)

// Kind is the purpose of a certificate. Every verifier accepts a fixed set of kinds.
type Kind string

// The kinds of leaf certificates.
const (
	KindAuthority Kind = "authority" // signs reports, serves the authority's API
	KindShared    Kind = "shared"    // TLS leaf that all units of an identity share
	KindUnit      Kind = "unit"      // one unit's signing key or, in key mode unit, its TLS key
	KindGroup     Kind = "group"     // in a group, instead of shared and unit; names the role
)

// The kinds of CA certificates. Callers never request them. They distinguish a CA's extension
// from a leaf's.
const (
	kindAuthorityRoot Kind = "authority-root"
	kindIdentityRoot  Kind = "identity-root"
	kindCross         Kind = "cross"
	kindGroupRoot     Kind = "group-root" // signs the leaves of a group directly
	kindGroupBus      Kind = "group-bus"  // the group root's key under the authority root; only for manager and gateway
)

// ReleaseID returns the identity id of a release: H("cohort identity v1", trust domain, authority
// root, genesis digest, task name, sorted measurements). It refuses, with "not-found", a release
// that the policy does not contain.
func ReleaseID(p policy.Approved, task, release string) (attest.Digest, error) {
	r, err := findRelease(p, task, release)
	if err != nil {
		return attest.Digest{}, err
	}
	return p.Document().ReleaseID(p.Genesis(), task, r.References), nil
}

// LiveIDs returns the identity ids of all releases of a task in the policy, in the order of the
// release names. A caller that pins a task by name puts them into [Expect]. LiveIDs refuses an
// unknown task with "not-found".
func LiveIDs(p policy.Approved, task string) ([]attest.Digest, error) {
	t, err := findTask(p, task)
	if err != nil {
		return nil, err
	}
	var ids []attest.Digest
	for _, name := range t.ReleaseNames() {
		ids = append(ids, p.Document().ReleaseID(p.Genesis(), task, t.Releases[name].References))
	}
	return ids, nil
}

func findTask(p policy.Approved, task string) (*policyfile.Task, error) {
	if !p.Genuine() {
		return nil, wire.Refuse(wire.BadPolicy, "identity: policy", "an unapproved one", "an approved policy")
	}
	t, ok := p.Document().Tasks[task]
	if !ok {
		return nil, wire.Refuse(wire.NotFound, "identity: task", task, "a task of the policy")
	}
	return t, nil
}

func findRelease(p policy.Approved, task, release string) (*policyfile.Release, error) {
	t, err := findTask(p, task)
	if err != nil {
		return nil, err
	}
	r, ok := t.Releases[release]
	if !ok {
		return nil, wire.Refuse(wire.NotFound, "identity: release of task "+task, release, "a release of the policy")
	}
	return r, nil
}
