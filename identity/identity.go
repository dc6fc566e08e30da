// Package identity derives keys and certificates from the root secret of an authority and the
// policy that its owners approved, and verifies the certificates of others.
//
// Issuing is a pure function: every key is derived from the root secret, every certificate is
// deterministic, so authorities that share a root secret and a policy issue the same bytes
// without communicating, and no private key is stored. [Derive] makes [Keys], [Keys.Issuer] an
// [Issuer] of one policy.
//
// An identity is one release of a task, named by [ReleaseID], a digest of its measurements, or
// one group, named by the digest of its roster. A release has a root of its own, whose key is
// cross-signed under the authority root. A group has a root whose key is derived from a secret
// of its roster ([GroupKeys]): the parties that approve the roster name that root, and it
// cannot be derived from the authority root secret.
//
// [Check] is the only function that makes a [Peer] that is OK. It verifies a presented chain
// step by step up to the authority root that the owners' policy names, or to the group root
// that the parties' approvals name, recomputes the identity of a release from the measurements
// in the cross-certificate, and requires one kind, one use, and one of the identities that the
// caller names; the zero [Expect] refuses everything. [ServerTLS] and [ClientTLS] are TLS 1.3
// configurations that do the same in a handshake.
//
// Ring keys are not derived: they are random, exist in memory and inside certificate reports
// only, and are erased ([RingKey], [Ring]).
//
// The package trusts approved policy, and a certificate only after Check has accepted it. It
// refuses unknown algorithms, unknown critical extensions and certificates without its own
// extension. docs/spec/identity.md specifies every byte.
//
// Files, each using those before it: identity.go, extension.go, secret.go, keys.go, profile.go, peer.go, csr.go,
// head.go, ring.go, tls.go, check.go, group.go, grouproot.go, issuer.go.
package identity

import (
	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/internal/wire"
	"github.com/cohort-tee/cohort/policy"
	"github.com/cohort-tee/cohort/policy/policyfile"
)

// Kind is the purpose of a certificate. Every verifier requires a fixed set of kinds.
type Kind string

// The kinds of leaf certificates.
const (
	KindAuthority Kind = "authority" // signs reports, serves the authority's API
	KindShared    Kind = "shared"    // TLS leaf that all units of an identity share
	KindUnit      Kind = "unit"      // of one unit: its signing key, or in key mode unit its TLS key
	KindGroup     Kind = "group"     // of one role in a group, in place of shared and unit
)

// The kinds of CA certificates. Callers never request them: they keep a CA's extension from
// being taken for a leaf's.
const (
	kindAuthorityRoot Kind = "authority-root"
	kindIdentityRoot  Kind = "identity-root"
	kindCross         Kind = "cross"
	kindGroupRoot     Kind = "group-root" // signs the leaves of a group directly
	kindGroupBus      Kind = "group-bus"  // the group root's key under the authority root, for manager and gateway alone
)

// ReleaseID returns the identity id of a release: H("cohort identity v1", trust domain,
// authority root, genesis digest, task name, sorted measurements). It refuses with "not-found"
// a release that policy does not contain.
func ReleaseID(p policy.Approved, task, release string) (attest.Digest, error) {
	r, err := findRelease(p, task, release)
	if err != nil {
		return attest.Digest{}, err
	}
	return p.Document().ReleaseID(p.Genesis(), task, r.References), nil
}

// LiveIDs returns the identity ids of all releases of a task in the current policy, in the
// order of the release names. A caller that follows the task by name puts them into [Expect].
// It refuses with "not-found" an unknown task.
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
