package bus

import (
	"bytes"
	"crypto/x509"
	"encoding/asn1"
	"fmt"
	"time"

	"github.com/cohort-tee/cohort/internal/wire"
)

// Unit describes a unit, with fields from its verified certificate. Only [UnitOf] makes one; the
// zero Unit belongs to no existing cluster.
type Unit struct {
	ID       wire.UnitID
	Cluster  Cluster
	Identity wire.Digest
	Task     string // empty in a group
	Group    string // empty outside groups
	Role     string
	NotAfter time.Time

	// Leaf and Cross are certificates in DER. Cross is the certificate of the leaf's issuer
	// under the authority root; in a group its kind is group-bus.
	Leaf, Cross []byte
}

// Holder returns the unit's task, or GROUP/ROLE in a group.
func (u Unit) Holder() string {
	if u.Group != "" {
		return u.Group + "/" + u.Role
	}
	return u.Task
}

// Kinds of leaves that a unit presents, and of their cross-certificates, as the private
// extension names them (docs/spec/identity.md, section 5).
const (
	leafOfTask   = "unit"
	leafOfGroup  = "group"
	crossOfTask  = "cross"
	crossOfGroup = "group-bus"
)

// UnitOf verifies the chain that a unit presents: its signing certificate and its identity's
// cross-certificate, under one of the authority roots. In a group the group root may be between
// them. It refuses any other chain with [wire.BadChain], a leaf that serves TLS or has a wrong
// kind with [wire.WrongKind], certificates without the private extension with
// [wire.NoExtension], and a leaf that does not match its issuer or its own key with
// [wire.WrongIdentity]. It checks neither code nor policy: identity.Check does, which a manager
// cannot import. In a group, peers and clients are stricter: they accept no group under the
// authority root. UnitOf accepts it, because a manager's decisions affect only availability.
func UnitOf(chain []*x509.Certificate, roots *x509.CertPool, at time.Time) (Unit, error) {
	cluster, err := VerifyChain(chain, roots, at)
	if err != nil {
		return Unit{}, err
	}
	chain = withoutGroupRoot(chain)
	if n := len(chain[0].ExtKeyUsage) + len(chain[0].UnknownExtKeyUsage); n != 0 {
		return Unit{}, wire.Refuse(wire.WrongKind, "bus: extended key usages of the certificate", n, "0, as in a unit's signing certificate")
	}
	leaf, err := extensionFields(chain[0])
	if err != nil {
		return Unit{}, err
	}
	cross, err := extensionFields(chain[1])
	if err != nil {
		return Unit{}, err
	}
	u := Unit{
		ID: wire.UnitIDOf(chain[0].RawSubjectPublicKeyInfo), Cluster: cluster, NotAfter: chain[0].NotAfter,
		Leaf: chain[0].Raw, Cross: chain[1].Raw,
	}
	return u.withNames(leaf, cross)
}

// withNames sets the fields that come from the private extensions of leaf and cross-certificate.
func (u Unit) withNames(leaf, cross [][]byte) (Unit, error) {
	switch kind, issuer := string(leaf[fieldKind]), string(cross[fieldKind]); {
	case kind == leafOfTask && issuer == crossOfTask:
		u.Task = string(leaf[fieldTask])
	case kind == leafOfGroup && issuer == crossOfGroup && len(leaf) > fieldRole && wire.ValidName(string(leaf[fieldRole])):
		u.Group, u.Role = string(leaf[fieldTask]), string(leaf[fieldRole])
	default:
		return Unit{}, wire.Refuse(wire.WrongKind, "bus: kinds of leaf and issuer", kind+" under "+issuer, "a unit's or a group's, under its own")
	}
	id := leaf[fieldIdentity]
	if len(id) != len(u.Identity) || string(id) != string(cross[fieldIdentity]) || string(leaf[fieldTask]) != string(cross[fieldTask]) ||
		string(leaf[fieldUnit]) != string(u.ID[:]) || !wire.ValidName(string(leaf[fieldTask])) {
		return Unit{}, wire.Refuse(wire.WrongIdentity, "bus: identity, task and unit id of the leaf", fmt.Sprintf("%.32x, %.64q, %.32x", id, leaf[fieldTask], leaf[fieldUnit]), "those of its issuer and of its key")
	}
	u.Identity = wire.Digest(id)
	return u, nil
}

// Indices of fields in the private extension. Only kind group has a role.
const (
	fieldKind     = 0
	fieldIdentity = 1
	fieldTask     = 2
	fieldUnit     = 6
	fieldRole     = 9
)

// maxExtension is the maximum size of the private extension in bytes.
const maxExtension = 32 << 10

// extensionFields returns the fields of a certificate's private extension. It finds the
// extension by its label: the authority signs only one extension of that form.
func extensionFields(c *x509.Certificate) ([][]byte, error) {
	for _, x := range c.Extensions {
		var framed []byte
		if len(x.Value) > maxExtension {
			continue
		}
		if rest, err := asn1.Unmarshal(x.Value, &framed); err != nil || len(rest) > 0 {
			continue
		}
		if fields, err := wire.Unframe(wire.LabelExtension, framed, -1); err == nil && len(fields) >= fieldRole {
			return fields, nil
		}
	}
	return nil, wire.Refuse(wire.NoExtension, "bus: private extension of", c.Subject, "a certificate with the authority's private extension")
}

// withoutGroupRoot removes the group root from a chain in which it precedes the group-bus
// certificate of the same key.
func withoutGroupRoot(chain []*x509.Certificate) []*x509.Certificate {
	if len(chain) == 3 && bytes.Equal(chain[1].RawSubjectPublicKeyInfo, chain[2].RawSubjectPublicKeyInfo) {
		return []*x509.Certificate{chain[0], chain[2]}
	}
	return chain
}

// VerifyChain verifies a chain of a leaf and an identity's cross-certificate under one of the
// authority roots, and returns the cluster of the leaf. A group's root may precede the
// cross-certificate. It accepts no other chain: a leaf directly under the root belongs to no
// cluster. The error has the reason [wire.BadChain].
func VerifyChain(chain []*x509.Certificate, roots *x509.CertPool, at time.Time) (Cluster, error) {
	chain = withoutGroupRoot(chain)
	if len(chain) != 2 || chain[0].IsCA || roots == nil {
		return Cluster{}, wire.Refuse(wire.BadChain, "chain: certificates", len(chain), "a leaf and its cross-certificate")
	}
	crosses := x509.NewCertPool()
	crosses.AddCert(chain[1])
	ways, err := chain[0].Verify(x509.VerifyOptions{
		Roots: roots, Intermediates: crosses, CurrentTime: at, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny},
	})
	if err != nil {
		return Cluster{}, fmt.Errorf("%w: %w", wire.Refuse(wire.BadChain, "chain of", chain[0].Subject.String()+", which does not verify", "a chain under the authority root"), err)
	}
	for _, way := range ways {
		if len(way) == 3 && way[1].Equal(chain[1]) {
			return ClusterOf(chain[1].RawSubjectPublicKeyInfo), nil
		}
	}
	return Cluster{}, wire.Refuse(wire.BadChain, "chain: issuer of the leaf", "the authority root", "an identity")
}
