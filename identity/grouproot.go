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

// GroupKeys contains the keys derived from the secret of one roster. They cannot be derived
// from any other secret, in particular not from the authority root secret. GroupKeys is
// immutable and safe for concurrent use, and prints as "keys".
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

// RootDigest returns the digest of the group root: the SHA-256 of its SubjectPublicKeyInfo. The
// approvals of the parties name the root by this digest.
func (k *GroupKeys) RootDigest() attest.Digest { return k.digest }

// Format prints "keys" for every verb.
func (k GroupKeys) Format(f fmt.State, _ rune) { io.WriteString(f, "keys") }

// GroupRootData returns the report data of the evidence with which an authority shows the root
// of a roster to a party; the party sent the nonce.
func GroupRootData(nonce []byte, roster, root attest.Digest) attest.ReportData {
	return attest.BindReportData(wire.LabelGroupRoot, nonce, roster[:], root[:])
}

// SealedGroup returns the plaintext that a TEE seals for a roster: the secret and the roster's
// digest, framed under "cohort group secret v1".
func SealedGroup(s Secret, roster attest.Digest) []byte {
	secret := s.Expose()
	defer clear(secret)
	return wire.Frame(wire.LabelGroupSecret, secret, roster[:])
}

// OpenGroup parses the output of [SealedGroup] and derives the keys. It refuses any other bytes
// with "malformed", and the secret of a different roster with "store-foreign".
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

// deriveGroups issues the CA certificates of the policy's groups and of their predecessors, as
// far as all contains their keys.
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

// findGroup returns the identity of a group with its CA. It refuses with "not-found" a group that
// is not in this policy, and with "group-authority" a group whose keys the issuer does not have.
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

// GroupIdentity returns the identity of a group. It refuses with "not-found" a group that is not in
// this policy, and with "group-authority" a group whose keys the issuer does not have.
func (i *Issuer) GroupIdentity(p *policy.GroupState) (Identity, error) {
	k, err := i.findGroup(p)
	return k.Identity, err
}

// GroupAuthorityLeaf returns the kind-authority leaf of a group for the window that contains at.
// The leaf signs reports for the group's units and cannot serve TLS; its identity is the digest
// of the roster. GroupAuthorityLeaf refuses as GroupIdentity does.
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
