package bus

import (
	"bytes"
	"crypto/x509"
	"encoding/asn1"
	"fmt"
	"time"

	"github.com/cohort-tee/cohort/internal/wire"
)

// Unit is what a unit's certificate says of it. Only [UnitOf] makes one; the
// zero Unit is of no cluster that exists.
type Unit struct {
	ID       wire.UnitID
	Cluster  Cluster
	Identity wire.Digest
	Task     string // empty in a group
	Group    string // empty outside groups
	Role     string
	NotAfter time.Time

	// Leaf and Cross are DER. Cross is the certificate of the issuer's key under the
	// authority root: in a group that of kind group-bus.
	Leaf, Cross []byte
}

// Holder is what the unit serves: its task, or GROUP/ROLE.
func (u Unit) Holder() string {
	if u.Group != "" {
		return u.Group + "/" + u.Role
	}
	return u.Task
}

// Kinds of leaves that a unit presents, and of their cross-certificates, as the
// private extension names them (docs/spec/identity.md, section 5).
const (
	leafOfTask   = "unit"
	leafOfGroup  = "group"
	crossOfTask  = "cross"
	crossOfGroup = "group-bus"
)

// UnitOf reads a unit off the chain that it presents: its signing certificate
// and its identity's cross-certificate, under one of the authority roots. Of a unit in a
// group the group root may stand between them. It
// refuses with [wire.BadChain] what is no such chain, with [wire.WrongKind]
// leaves that serve TLS and those of other kinds, with [wire.NoExtension] ones
// without the private extension, and with [wire.WrongIdentity] a leaf that does
// not agree with its issuer or with its own key. It asks neither code nor
// policy: that is identity.Check, which a manager does not have. In a group it believes
// more than peers and clients do, who follow no group to the authority root: what
// a manager decides concerns availability alone.
func UnitOf(chain []*x509.Certificate, roots *x509.CertPool, at time.Time) (Unit, error) {
	cluster, err := CheckChain(chain, roots, at)
	if err != nil {
		return Unit{}, err
	}
	chain = throughBus(chain)
	if n := len(chain[0].ExtKeyUsage) + len(chain[0].UnknownExtKeyUsage); n != 0 {
		return Unit{}, wire.Refuse(wire.WrongKind, "bus: certificate", "one that serves TLS", "a unit's signing certificate")
	}
	leaf, err := fieldsOf(chain[0])
	if err != nil {
		return Unit{}, err
	}
	cross, err := fieldsOf(chain[1])
	if err != nil {
		return Unit{}, err
	}
	u := Unit{
		ID: wire.UnitIDOf(chain[0].RawSubjectPublicKeyInfo), Cluster: cluster, NotAfter: chain[0].NotAfter,
		Leaf: chain[0].Raw, Cross: chain[1].Raw,
	}
	return u.named(leaf, cross)
}

// named fills in what the private extensions of leaf and cross-certificate say.
func (u Unit) named(leaf, cross [][]byte) (Unit, error) {
	switch kind, issuer := string(leaf[fieldKind]), string(cross[fieldKind]); {
	case kind == leafOfTask && issuer == crossOfTask:
		u.Task = string(leaf[fieldTask])
	case kind == leafOfGroup && issuer == crossOfGroup && len(leaf) > fieldRole && wire.NameOK(string(leaf[fieldRole])):
		u.Group, u.Role = string(leaf[fieldTask]), string(leaf[fieldRole])
	default:
		return Unit{}, wire.Refuse(wire.WrongKind, "bus: kinds of leaf and issuer", kind+" under "+issuer, "a unit's or a group's, under its own")
	}
	id := leaf[fieldIdentity]
	if len(id) != len(u.Identity) || string(id) != string(cross[fieldIdentity]) || string(leaf[fieldTask]) != string(cross[fieldTask]) ||
		string(leaf[fieldUnit]) != string(u.ID[:]) || !wire.NameOK(string(leaf[fieldTask])) {
		return Unit{}, wire.Refuse(wire.WrongIdentity, "bus: identity, task and unit id of the leaf", "others", "those of its issuer and of its key")
	}
	u.Identity = wire.Digest(id)
	return u, nil
}

// Places of fields in the private extension; the role stands there in kind
// group alone.
const (
	fieldKind     = 0
	fieldIdentity = 1
	fieldTask     = 2
	fieldUnit     = 6
	fieldRole     = 9
)

// maxExtension bounds the private extension, in bytes.
const maxExtension = 32 << 10

// fieldsOf are the fields of a certificate's private extension. It is found by
// the label in it: the authority signs no other extension of that form.
func fieldsOf(c *x509.Certificate) ([][]byte, error) {
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
	return nil, wire.Refuse(wire.NoExtension, "bus: extension", "none", "the private one of the authority")
}

// throughBus is a chain without the group root that may stand before the group-bus
// certificate of the same key.
func throughBus(chain []*x509.Certificate) []*x509.Certificate {
	if len(chain) == 3 && bytes.Equal(chain[1].RawSubjectPublicKeyInfo, chain[2].RawSubjectPublicKeyInfo) {
		return []*x509.Certificate{chain[0], chain[2]}
	}
	return chain
}

// CheckChain verifies a leaf under an identity's cross-certificate under one of
// the authority roots, before which a group's root may stand, and returns the cluster that the leaf belongs to. It
// demands exactly that shape, so a leaf directly under the root belongs to no
// cluster. Its error has the reason [wire.BadChain].
func CheckChain(chain []*x509.Certificate, roots *x509.CertPool, at time.Time) (Cluster, error) {
	chain = throughBus(chain)
	if len(chain) != 2 || chain[0].IsCA || roots == nil {
		return Cluster{}, wire.Refuse(wire.BadChain, "chain: certificates", len(chain), "a leaf and its cross-certificate")
	}
	crosses := x509.NewCertPool()
	crosses.AddCert(chain[1])
	ways, err := chain[0].Verify(x509.VerifyOptions{
		Roots: roots, Intermediates: crosses, CurrentTime: at, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny},
	})
	if err != nil {
		return Cluster{}, fmt.Errorf("%w: %w", wire.Refuse(wire.BadChain, "chain", "one that does not hold", "one under the authority root"), err)
	}
	for _, way := range ways {
		if len(way) == 3 && way[1].Equal(chain[1]) {
			return ClusterOf(chain[1].RawSubjectPublicKeyInfo), nil
		}
	}
	return Cluster{}, wire.Refuse(wire.BadChain, "chain: issuer of the leaf", "the authority root", "an identity")
}
