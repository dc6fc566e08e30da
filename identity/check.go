package identity

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/x509"
	"fmt"
	"slices"
	"time"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/internal/wire"
	"github.com/cohort-tee/cohort/policy"
)

// Use says what a leaf is checked for.
type Use int

// The uses; the zero Use refuses.
const (
	UseTLS     Use = iota + 1 // serves or dials TLS
	UseSigning                // signs reports, sessions, receipts
)

// Expect is what the other side must be. The zero Expect refuses everything,
// as does one with any required field left out.
type Expect struct {
	Policy policy.Approved // required: trust domain, genesis and authority root come from it
	Kinds  []Kind          // required: the leaf is of one of these (shared, unit for TLS of either key mode)
	Use    Use             // required
	At     time.Time       // required

	// IDs and Measurements pin the identity. For kinds shared and unit at least
	// one of them is required; those that are given must hold.
	IDs          []attest.Digest      // the leaf's identity is one of these
	Measurements []attest.Measurement // all code of the leaf's identity is among these

	// Group and Roles are required for kind group: the leaf is of this group,
	// as the policy has it and its parties approve it, and of one of the roles.
	Group string
	Roles []string
}

// Check judges a presented chain: leaf, then the cross-certificate of its
// identity (for kind authority the leaf alone, or leaf and root). The authority
// root is the one the policy names: authorityRoot is its certificate, checked
// against the policy's digest. Check recomputes the identity id from the
// measurements in the cross-certificate's extension, and demands the same id in
// cross-certificate, leaf and Expect.
//
// A certificate outside its time is refused with "expired", another root with
// "authority-root", another history with "genesis", another kind or use with
// "kind", another identity with "identity", another URI with "name", a missing
// or broken extension with "extension", another development mark with
// "platform", what breaks the certificate profile with "chain", and a signature
// that does not verify with "signature".
//
// Of kind group the identity is the digest of a roster, and Check demands that
// it is the group's in the policy, or the one it continues, and that the parties
// approve it now. Another trust domain is refused with "trust-domain", another
// group with "group", another role with "role", another roster with "roster",
// and a group that is not agreed on with "quorum" or "expired".
func Check(chain []*x509.Certificate, authorityRoot *x509.Certificate, e Expect) (Peer, error) {
	if err := e.complete(); err != nil {
		return Peer{}, err
	}
	if err := e.root(authorityRoot); err != nil {
		return Peer{}, fmt.Errorf("checking authority root: %w", err)
	}
	if len(chain) == 0 {
		return Peer{}, wire.Refuse(wire.BadChain, "chain: certificates", 0, "at least a leaf")
	}
	leaf, err := e.leaf(chain[0])
	if err != nil {
		return Peer{}, fmt.Errorf("checking leaf: %w", err)
	}
	above := e.identity
	if leaf.kind == KindAuthority {
		above = e.authority
	}
	measurements, err := above(chain, authorityRoot, leaf)
	if err != nil {
		return Peer{}, err
	}
	key := chain[0].PublicKey.(*ecdsa.PublicKey) // certificate saw to it
	return Peer{ok: true, leaf: leaf, measurements: measurements, key: key, notAfter: chain[0].NotAfter}, nil
}

// complete refuses an Expect that leaves something open.
func (e Expect) complete() error {
	missing := func(reason wire.Reason, field string) error {
		return wire.Refuse(reason, "expect: "+field, "nothing", "said by the caller")
	}
	ofTask := slices.ContainsFunc(e.Kinds, func(k Kind) bool { return k != KindAuthority && k != KindGroup })
	switch {
	case !e.Policy.OK():
		return missing(wire.BadPolicy, "policy")
	case len(e.Kinds) == 0:
		return missing(wire.WrongKind, "kinds")
	case e.Use != UseTLS && e.Use != UseSigning:
		return missing(wire.WrongKind, "use")
	case e.At.IsZero():
		return missing(wire.ClockSkew, "time")
	case ofTask && len(e.IDs) == 0 && len(e.Measurements) == 0:
		return missing(wire.WrongIdentity, "identities")
	case slices.Contains(e.Kinds, KindGroup) && e.Group == "":
		return missing(wire.WrongGroup, "group")
	case slices.Contains(e.Kinds, KindGroup) && len(e.Roles) == 0:
		return missing(wire.WrongRole, "roles")
	}
	return nil
}

// root refuses a certificate of another root than the one the policy names.
func (e Expect) root(c *x509.Certificate) error {
	if c == nil {
		return wire.Refuse(wire.WrongRoot, "authority root", "none", e.Policy.Document().Authority.Root)
	}
	if got, want := wire.Sum(c.RawSubjectPublicKeyInfo), e.Policy.Document().Authority.Root; got != want {
		return wire.Refuse(wire.WrongRoot, "authority root", got, want)
	}
	if _, err := e.ca(c, kindAuthorityRoot); err != nil {
		return err
	}
	return signedBy(c, c)
}

// leaf checks everything about a leaf but its signature.
func (e Expect) leaf(c *x509.Certificate) (extension, error) {
	x, err := e.certificate(c)
	if err != nil {
		return extension{}, err
	}
	if _, isCA := pathLen[x.kind]; isCA || !slices.Contains(e.Kinds, x.kind) {
		return extension{}, wire.Refuse(wire.WrongKind, "leaf: kind", x.kind, e.Kinds)
	}
	if !c.BasicConstraintsValid || c.IsCA || c.KeyUsage != x509.KeyUsageDigitalSignature {
		return extension{}, wire.Refuse(wire.BadChain, "leaf: profile", "constraints or key usage of another", "no CA, digital signature")
	}
	if err := e.usage(c, x); err != nil {
		return extension{}, err
	}
	path := wire.TaskPath(x.task)
	switch x.kind {
	case KindAuthority:
		path = wire.AuthorityPath
	case KindGroup:
		if err := e.member(c, x); err != nil {
			return extension{}, err
		}
		path = wire.RolePath(x.task, x.role)
	}
	want := spiffe(e.Policy.Document().TrustDomain, path).String()
	if len(c.URIs) != 1 || c.URIs[0].String() != want {
		return extension{}, wire.Refuse(wire.WrongName, "leaf: URI", c.URIs, want)
	}
	return x, nil
}

// usage refuses a leaf that is not for this use: TLS needs the extended key
// usage of TLS, a unit signs with the one that has none, and the authority's
// leaf does both.
func (e Expect) usage(c *x509.Certificate, x extension) error {
	want := tlsUsage
	ofUnit := x.kind == KindUnit || x.kind == KindGroup
	if ofUnit && e.Use == UseSigning {
		want = nil
	}
	if !slices.Equal(c.ExtKeyUsage, want) || len(c.UnknownExtKeyUsage) > 0 {
		return wire.Refuse(wire.WrongKind, "leaf: extended key usage", c.ExtKeyUsage, want)
	}
	if x.kind == KindShared && e.Use == UseSigning {
		return wire.Refuse(wire.WrongKind, "leaf: use of kind shared", "signing", "TLS")
	}
	if !ofUnit {
		return nil
	}
	if e.Use == UseTLS && x.kind == KindUnit && x.keyMode != policy.PerUnit {
		return wire.Refuse(wire.WrongKind, "leaf: key mode of a unit's TLS leaf", x.keyMode, policy.PerUnit)
	}
	if got := wire.UnitIDOf(c.RawSubjectPublicKeyInfo); e.Use == UseSigning && got != x.unit {
		return wire.Refuse(wire.WrongIdentity, "leaf: unit id", x.unit, got)
	}
	return nil
}

// authority checks the rest of an authority's chain.
func (e Expect) authority(chain []*x509.Certificate, root *x509.Certificate, _ extension) ([]attest.Measurement, error) {
	if len(chain) > 2 || len(chain) == 2 && !chain[1].Equal(root) {
		return nil, wire.Refuse(wire.BadChain, "chain: certificates of an authority", len(chain), "leaf alone, or leaf and authority root")
	}
	if err := signedBy(chain[0], root); err != nil {
		return nil, fmt.Errorf("checking leaf: %w", err)
	}
	return nil, nil
}

// identity checks the rest of a unit's chain, and the identity itself, and gives
// the code that has it.
func (e Expect) identity(chain []*x509.Certificate, root *x509.Certificate, leaf extension) ([]attest.Measurement, error) {
	if len(chain) != 2 {
		return nil, wire.Refuse(wire.BadChain, "chain: certificates of a unit", len(chain), "leaf and cross-certificate")
	}
	cross, err := e.cross(chain[1], root, crossOf(leaf.kind))
	if err != nil {
		return nil, err
	}
	if err := signedBy(chain[0], chain[1]); err != nil {
		return nil, fmt.Errorf("checking leaf: %w", err)
	}
	if leaf.id != cross.id || leaf.task != cross.task {
		return nil, wire.Refuse(wire.WrongIdentity, "leaf: identity", leaf.id, cross.id)
	}
	return cross.measurements, nil
}

// cross checks a cross-certificate: that the authority root signed it, that its
// id is that of its measurements, and that the caller's pins hold.
func (e Expect) cross(c, authorityRoot *x509.Certificate, kind Kind) (extension, error) {
	x, err := e.ca(c, kind)
	if err == nil {
		err = signedBy(c, authorityRoot)
	}
	if err != nil {
		return extension{}, fmt.Errorf("checking cross-certificate: %w", err)
	}
	if kind == kindGroupCross {
		return x, e.agreed(x)
	}
	if id := identityID(e.Policy, x.task, x.measurements); id != x.id {
		return extension{}, wire.Refuse(wire.WrongIdentity, "cross-certificate: identity of its measurements", x.id, id)
	}
	return x, e.pinned(x)
}

// CheckRoot judges the root of an identity: self-signed, with the key and the
// identity of its cross-certificate, which [Check] would accept in a chain. It
// refuses as Check does.
func CheckRoot(root, cross, authorityRoot *x509.Certificate, e Expect) error {
	if err := e.complete(); err != nil {
		return err
	}
	if err := e.root(authorityRoot); err != nil {
		return fmt.Errorf("checking authority root: %w", err)
	}
	kind, crossed := kindIdentityRoot, kindCross
	if e.Group != "" {
		kind, crossed = kindGroupRoot, kindGroupCross
	}
	under, err := e.cross(cross, authorityRoot, crossed)
	if err != nil {
		return err
	}
	own, err := e.ca(root, kind)
	if err == nil {
		err = signedBy(root, root)
	}
	if err != nil {
		return fmt.Errorf("checking identity root: %w", err)
	}
	if own.id != under.id || !bytes.Equal(root.RawSubjectPublicKeyInfo, cross.RawSubjectPublicKeyInfo) {
		return wire.Refuse(wire.WrongIdentity, "identity root: identity and key", own.id, under.id)
	}
	return nil
}

// pinned refuses an identity outside the caller's pins.
func (e Expect) pinned(cross extension) error {
	if len(e.IDs) > 0 && !slices.Contains(e.IDs, cross.id) {
		return wire.Refuse(wire.WrongIdentity, "identity", cross.id, e.IDs)
	}
	if len(e.Measurements) == 0 {
		return nil
	}
	if len(cross.measurements) == 0 { // of a group
		return wire.Refuse(wire.WrongIdentity, "identity: measurements", "none", e.Measurements)
	}
	for _, m := range cross.measurements {
		if !slices.ContainsFunc(e.Measurements, func(pin attest.Measurement) bool { return pin.Compare(m) == 0 }) {
			return wire.Refuse(wire.WrongIdentity, "identity: measurement", m, e.Measurements)
		}
	}
	return nil
}

// ca checks everything about a CA certificate but its signature.
func (e Expect) ca(c *x509.Certificate, kind Kind) (extension, error) {
	x, err := e.certificate(c)
	if err != nil {
		return extension{}, err
	}
	if x.kind != kind {
		return extension{}, wire.Refuse(wire.WrongKind, "ca: kind", x.kind, kind)
	}
	depth := pathLen[kind]
	if !c.IsCA || c.MaxPathLen != depth || c.KeyUsage != x509.KeyUsageCertSign {
		return extension{}, wire.Refuse(wire.BadChain, "ca: profile", "constraints or key usage of another", fmt.Sprintf("CA, pathLen %d, certificate signing", depth))
	}
	if genesis := e.Policy.Genesis(); x.policy != genesis {
		return extension{}, wire.Refuse(wire.WrongGenesis, "ca: genesis", x.policy, genesis)
	}
	return x, nil
}

// certificate checks what holds for every certificate of a chain.
func (e Expect) certificate(c *x509.Certificate) (extension, error) {
	if c.SignatureAlgorithm != x509.ECDSAWithSHA256 {
		return extension{}, wire.Refuse(wire.BadChain, "certificate: signature algorithm", c.SignatureAlgorithm, x509.ECDSAWithSHA256)
	}
	if _, err := p256(c.PublicKey); err != nil {
		return extension{}, wire.Refuse(wire.BadChain, "certificate: key", c.PublicKeyAlgorithm, "ECDSA on P-256")
	}
	if len(c.UnhandledCriticalExtensions) > 0 {
		return extension{}, wire.Refuse(wire.BadChain, "certificate: critical extension", c.UnhandledCriticalExtensions, "none that is unknown")
	}
	if e.At.Before(c.NotBefore) || e.At.After(c.NotAfter) {
		return extension{}, wire.Refuse(wire.Expired, "certificate: time", e.At.UTC(), fmt.Sprintf("%v to %v", c.NotBefore, c.NotAfter))
	}
	x, err := extensionOf(c)
	if err != nil {
		return extension{}, err
	}
	if want := e.Policy.Document().Development; x.development != want {
		return extension{}, wire.Refuse(wire.NoPlatform, "certificate: development mark", x.development, want)
	}
	if x.debug && !e.Policy.Document().Debug() {
		return extension{}, wire.Refuse(wire.Debug, "certificate: debug mark", "one of a policy that accepts TEEs their host can read", "none")
	}
	return x, nil
}

// signedBy refuses a certificate that the parent's key did not sign in the
// parent's name.
func signedBy(c, parent *x509.Certificate) error {
	if !bytes.Equal(c.RawIssuer, parent.RawSubject) {
		return wire.Refuse(wire.BadChain, "certificate: issuer", c.Issuer, parent.Subject)
	}
	if err := parent.CheckSignature(c.SignatureAlgorithm, c.RawTBSCertificate, c.Signature); err != nil {
		return wire.Refuse(wire.BadSignature, "certificate: signature", "one that does not verify", "that of "+parent.Subject.String())
	}
	return nil
}
