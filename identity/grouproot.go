package identity

import (
	"crypto/ecdsa"
	"fmt"
	"io"
	"time"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/internal/wire"
	"github.com/cohort-tee/cohort/policy"
)

// GroupKeys are the keys that are derived from the secret of one roster. They cannot be
// derived from any other secret, in particular not from the authority root secret. They are
// immutable and safe for concurrent use, and print as "keys".
type GroupKeys struct {
	roster attest.Digest
	secret Secret
	root   *ecdsa.PrivateKey
	digest attest.Digest // of the root's SubjectPublicKeyInfo
}

// DeriveGroup derives the keys of a roster from its secret. It refuses the zero
// Secret and the zero digest with "store-foreign".
func DeriveGroup(s Secret, roster attest.Digest) (*GroupKeys, error) {
	if s.reveal == nil || roster.IsZero() {
		return nil, wire.Refuse(wire.StoreForeign, "group secret: size in bytes, and roster", fmt.Sprint(len(s.Expose()), ", ", roster), "32 bytes, and the roster's digest")
	}
	root, err := s.deriveSigningKey(wire.LabelGroupRootKey, roster[:])
	if err != nil {
		return nil, err
	}
	return &GroupKeys{roster: roster, secret: s, root: root, digest: wire.Sum(publicKeyInfo(&root.PublicKey))}, nil
}

// Roster returns the digest of the roster, which is the group's identity.
func (k *GroupKeys) Roster() attest.Digest { return k.roster }

// RootDigest returns the digest of the group root: the SHA-256 of its SubjectPublicKeyInfo. Parties
// name the root by it when they approve.
func (k *GroupKeys) RootDigest() attest.Digest { return k.digest }

// Format prints "keys", whatever the verb.
func (k GroupKeys) Format(f fmt.State, _ rune) { io.WriteString(f, "keys") }

// GroupRootData returns the report data of an authority's own evidence when it presents the
// root of a roster to a party that sent a nonce.
func GroupRootData(nonce []byte, roster, root attest.Digest) attest.ReportData {
	return attest.BindReportData(wire.LabelGroupRoot, nonce, roster[:], root[:])
}

// SealedGroup returns the plaintext that a TEE seals for a roster, framed under "cohort group
// secret v1": the secret and the roster's digest.
func SealedGroup(s Secret, roster attest.Digest) []byte {
	secret := s.Expose()
	defer clear(secret)
	return wire.Frame(wire.LabelGroupSecret, secret, roster[:])
}

// OpenGroup parses the output of [SealedGroup], and derives the keys. It refuses other bytes
// with "malformed", and the secret of another roster with "store-foreign".
func OpenGroup(plain []byte, roster attest.Digest) (*GroupKeys, error) {
	f, err := wire.Unframe(wire.LabelGroupSecret, plain, 2)
	if err != nil {
		return nil, err
	}
	if string(f[1]) != string(roster[:]) {
		return nil, wire.Refuse(wire.StoreForeign, "group secret: roster", fmt.Sprintf("sha256:%x", f[1]), roster)
	}
	secret, err := OpenSecret(f[0])
	if err != nil {
		return nil, err
	}
	return DeriveGroup(secret, roster)
}

// deriveGroups derives the keys and CA certificates of groups, and of those they continue, from
// the group keys at hand.
func (i *Issuer) deriveGroups(all []*GroupKeys) error {
	for _, name := range i.doc.GroupNames() {
		for p := i.policy.GroupByName(name); p != nil; p = p.Predecessor {
			k := issuedIdentity{Identity: Identity{ID: p.ID()}}
			for _, keys := range all {
				if keys.roster != p.ID() {
					continue
				}
				var err error
				if k, err = i.issueRoots(keys.root, extension{kind: kindGroupRoot, id: p.ID(), task: name}, kindGroupBus); err != nil {
					return err
				}
				k.secret, k.root = keys.secret, keys.digest
			}
			k.Group = name
			i.groups[p] = k
		}
	}
	return nil
}

// findGroup finds the identity of a group. It refuses with "not-found" a group that is not of this
// policy, and with "group-authority" a group without keys.
func (i *Issuer) findGroup(p *policy.GroupState) (issuedIdentity, error) {
	k, ours := i.groups[p]
	switch {
	case !ours:
		return issuedIdentity{}, wire.Refuse(wire.NotFound, "identity: group", "of another policy", "a group of the policy in force")
	case k.ca.key == nil:
		return issuedIdentity{}, wire.Refuse(wire.GroupElsewhere, "identity: root of group "+k.Group, "roster "+k.ID.String()+", whose keys this authority does not have", "an authority that the roster names")
	}
	return k, nil
}

// GroupIdentity returns the identity of a group. It refuses with "not-found" a group that is not of
// this policy, and with "group-authority" a group without keys.
func (i *Issuer) GroupIdentity(p *policy.GroupState) (Identity, error) {
	k, err := i.findGroup(p)
	return k.Identity, err
}

// GroupAuthorityLeaf returns the kind-authority leaf of a group for the window that contains at.
// It signs reports for the group's units and does not serve TLS; its identity is the roster's.
// It refuses as Group does.
func (i *Issuer) GroupAuthorityLeaf(p *policy.GroupState, at time.Time) (Leaf, error) {
	k, err := i.findGroup(p)
	if err != nil {
		return Leaf{}, err
	}
	w, err := windowAt(AuthorityLeafLifetime, at)
	if err != nil {
		return Leaf{}, err
	}
	key, err := k.secret.deriveSigningKey(wire.LabelSignerKey, wire.Uint64(w.index))
	if err != nil {
		return Leaf{}, err
	}
	return i.signLeaf(k.ca, w, certificateContent{
		name: subject("authority of "+k.Group, k.ID, i.doc.TrustDomain), private: key, spki: publicKeyInfo(&key.PublicKey), path: wire.AuthorityPath,
		extension: extension{kind: KindAuthority, head: i.policy.PolicyHead(), id: k.ID, task: k.Group},
	})
}
