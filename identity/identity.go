// Package identity turns the root secret of an authority, and the policy its
// owners approved, into keys and certificates, and judges the certificates of
// others.
//
// Issuing is a pure function: every key is derived from the root secret, every
// certificate is deterministic, so authorities that share a root secret and a
// policy issue the same bytes without talking to each other, and nothing that
// is stored holds a private key. [Derive] makes [Keys], [Keys.Issuer] an
// [Issuer] of one policy.
//
// An identity is one release of a task, named by [ReleaseID], a digest of its
// measurements, or one group, named by the digest of its roster. That of a release has
// a root of its own, whose key is cross-signed under the authority root. A group has a
// root whose key follows from a secret of its roster ([GroupKeys]): the parties that
// approve the roster name it, and the authority root secret does not give it.
//
// [Check] is the only maker of a [Peer] that is OK. It walks a
// presented chain by explicit steps up to the authority root that the owners'
// policy names, or to the group root that the parties' approvals name, recomputes the
// identity of a release from the measurements in the
// cross-certificate, and demands one kind, one use, and one of the identities
// that the caller names; the zero [Expect] refuses everything. [ServerTLS] and
// [ClientTLS] are TLS 1.3 configurations that do the same in a handshake.
//
// Ring keys are the exception: random, held in memory only, handed over inside
// certificate reports, and erased ([RingKey], [Ring]).
//
// The package trusts policy that was approved, and a certificate no further
// than Check does. It refuses unknown algorithms, unknown critical extensions
// and certificates without its own extension. docs/spec/identity.md has every
// byte.
package identity

import (
	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/internal/wire"
	"github.com/cohort-tee/cohort/policy"
)

// Kind says what a certificate is for. Every verifier demands exactly one.
type Kind string

// The kinds of leaf certificates.
const (
	KindAuthority Kind = "authority" // signs reports, serves the authority's API
	KindShared    Kind = "shared"    // TLS leaf that all units of an identity hold
	KindUnit      Kind = "unit"      // of one unit: its signing key, or in key mode unit its TLS key
	KindGroup     Kind = "group"     // of one role in a group: what shared and unit are to a task
)

// The kinds of CA certificates. They are never asked for: they keep a CA's
// extension from being taken for a leaf's.
const (
	kindAuthorityRoot Kind = "authority-root"
	kindIdentityRoot  Kind = "identity-root"
	kindCross         Kind = "cross"
	kindGroupRoot     Kind = "group-root" // signs the leaves of a group directly
	kindGroupBus      Kind = "group-bus"  // the group root's key under the authority root, for manager and gateway alone
)

// ReleaseID is the identity id of a release: H("cohort identity v1", trust
// domain, authority root, genesis digest, task name, sorted measurements). It
// refuses with "not-found" when policy has no such release.
func ReleaseID(p policy.Approved, task, release string) (attest.Digest, error) {
	r, err := findRelease(p, task, release)
	if err != nil {
		return attest.Digest{}, err
	}
	return identityID(p, task, r.References), nil
}

// LiveIDs are the identity ids of all releases of a task that policy names now,
// in the order of the release names: what a caller that follows the task by
// name puts into [Expect]. It refuses with "not-found" for an unknown task.
func LiveIDs(p policy.Approved, task string) ([]attest.Digest, error) {
	t, err := findTask(p, task)
	if err != nil {
		return nil, err
	}
	var ids []attest.Digest
	for _, name := range t.ReleaseNames() {
		ids = append(ids, identityID(p, task, t.Releases[name].References))
	}
	return ids, nil
}

func findTask(p policy.Approved, task string) (*policy.Task, error) {
	if !p.OK() {
		return nil, wire.Refuse(wire.BadPolicy, "identity: policy", "none", "an approved policy")
	}
	t, ok := p.Document().Tasks[task]
	if !ok {
		return nil, wire.Refuse(wire.NotFound, "identity: task", task, "a task of the policy")
	}
	return t, nil
}

func findRelease(p policy.Approved, task, release string) (*policy.Release, error) {
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

// identityID is the id of the code that list names, as a task of this policy's
// trust domain. The order of the list does not matter.
func identityID(p policy.Approved, task string, list []attest.Measurement) attest.Digest {
	return p.Document().ReleaseID(p.Genesis(), task, list)
}

// sorted is a copy of list in the one order in which it is encoded, each
// measurement once.
func sorted(list []attest.Measurement) []attest.Measurement { return policy.SortedMeasurements(list) }
