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
	"github.com/cohort-tee/cohort/policy/policyfile"
)

// Use is the purpose for which a leaf is verified.
type Use int

// The uses. [Check] refuses the zero Use.
const (
	UseTLS     Use = iota + 1 // TLS server or client
	UseSigning                // signs reports, sessions, receipts
)

// Expect describes the peer that the caller accepts. An Expect without a required field, such
// as the zero Expect, refuses every peer.
type Expect struct {
	Policy policy.Approved // required: trust domain, genesis and authority root come from it
	Kinds  []Kind          // required: the leaf's kind is one of these (shared, unit for TLS of either key mode)
	Use    Use             // required
	At     time.Time       // required

	// IDs and Measurements pin the identity. For kinds shared and unit at least one of the two
	// is required. If both are set, both must match.
	IDs          []attest.Digest      // the leaf's identity is one of these
	Measurements []attest.Measurement // all measurements of the leaf's identity are among these

	// Group and Roles are required for kind group: the leaf belongs to this group, as the policy
	// defines it and its parties approve it, and to one of the roles. With kind authority,
	// Group requires the leaf that signs reports for that group.
	Group string
	Roles []string
	// Parties optionally pins parties for each role, by the digests of their SSH keys
	// ([sshsig.KeyDigest]). A leaf of a pinned role must belong to one of its parties. For a
	// leaf that all units of the role share, the party of every member must be one of them.
	Parties map[string][]attest.Digest
	// Approvers are the key digests of the party that the caller trusts in a group: at least
	// one must belong to a party of the roster, and each such party must approve the roster
	// with the group root of the chain. Without Approvers all parties of the group are
	// accepted, and the owners of the policy choose the parties.
	Approvers []attest.Digest
}

// Check verifies the chain that a peer presents. It contains the leaf, then the cross-certificate
// of the leaf's identity. For kind authority it contains the leaf, and optionally the root. In a
// group it contains the leaf and the group root, and optionally the group-bus certificate of the
// root's key. authorityRoot is the certificate of the authority root; Check verifies it against the
// digest in the policy. Check recomputes the identity id from the measurements in the
// cross-certificate's extension, and requires the same id in cross-certificate, leaf and Expect.
//
// Check refuses with "expired" a certificate outside its validity, with "extension" a missing or
// malformed extension, with "chain" a violation of the certificate profile, and with "signature" a
// signature that does not verify. For a value that does not match policy or Expect the reasons are
// "authority-root", "genesis", "platform" (the development mark), "kind" (kind or use), "identity"
// and "name" (the URI). Check refuses a unit that the policy cuts off with the reason of
// [policy.Approved.CutOff], even if its certificate has not expired.
//
// For kind group, and for kind authority if Expect names a group, the identity is the digest of a
// roster. Check requires that the policy names this roster for the group, as the newest one or as
// its predecessor, and that the parties now approve it with the group root of the chain: no leaf
// of a group is accepted under the authority root. The reasons are then also "trust-domain",
// "group", "role" and "roster" for a value that does not match, and "quorum" or "expired" for a
// group without enough approvals.
func Check(chain []*x509.Certificate, authorityRoot *x509.Certificate, e Expect) (Peer, error) {
	if err := e.validate(); err != nil {
		return Peer{}, err
	}
	if err := e.verifyAuthorityRoot(authorityRoot); err != nil {
		return Peer{}, fmt.Errorf("checking authority root: %w", err)
	}
	if len(chain) == 0 {
		return Peer{}, wire.Refuse(wire.BadChain, "chain: certificates", 0, "at least a leaf")
	}
	leaf, err := e.verifyLeaf(chain[0])
	if err != nil {
		return Peer{}, fmt.Errorf("checking leaf: %w", err)
	}
	above := e.verifyUnitChain
	switch {
	case leaf.kind == KindGroup || leaf.kind == KindAuthority && e.Group != "":
		above = e.verifyGroupChain
	case leaf.kind == KindAuthority:
		above = e.verifyAuthorityChain
	}
	cross, err := above(chain, authorityRoot, leaf)
	if err != nil {
		return Peer{}, err
	}
	p := Peer{ok: true, leaf: leaf, measurements: cross.measurements, notAfter: chain[0].NotAfter, key: chain[0].PublicKey.(*ecdsa.PublicKey)}
	if leaf.kind == KindAuthority {
		return p, nil
	}
	if leaf.kind == KindGroup {
		p.groupRoot = wire.Sum(chain[1].RawSubjectPublicKeyInfo)
	}
	if err := e.Policy.CutOff(p.Facts(), e.At); err != nil {
		return Peer{}, fmt.Errorf("checking leaf: %w", err)
	}
	if err := e.verifyPins(cross); err != nil {
		return Peer{}, err
	}
	return p, nil
}

// validate refuses an Expect in which a required field is not set.
func (e Expect) validate() error {
	missing := func(reason wire.Reason, field string) error {
		return wire.Refuse(reason, "expect: "+field, "not set", "a value")
	}
	ofTask := slices.ContainsFunc(e.Kinds, func(k Kind) bool { return k != KindAuthority && k != KindGroup })
	switch {
	case !e.Policy.Genuine():
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

// verifyAuthorityRoot verifies that c is the authority root that the policy names by its digest.
func (e Expect) verifyAuthorityRoot(c *x509.Certificate) error {
	if c == nil {
		return wire.Refuse(wire.WrongRoot, "authority root", "no certificate", e.Policy.Document().Authority.Root)
	}
	if got, want := wire.Sum(c.RawSubjectPublicKeyInfo), e.Policy.Document().Authority.Root; got != want {
		return wire.Refuse(wire.WrongRoot, "authority root", got, want)
	}
	if _, err := e.verifyCA(c, kindAuthorityRoot); err != nil {
		return err
	}
	return verifySignedBy(c, c)
}

// verifyLeaf verifies everything in a leaf except its signature.
func (e Expect) verifyLeaf(c *x509.Certificate) (extension, error) {
	x, err := e.verifyProfile(c)
	if err != nil {
		return extension{}, err
	}
	if _, isCA := pathLen[x.kind]; isCA || !slices.Contains(e.Kinds, x.kind) {
		return extension{}, wire.Refuse(wire.WrongKind, "leaf: kind", x.kind, e.Kinds)
	}
	if !c.BasicConstraintsValid || c.IsCA || c.KeyUsage != x509.KeyUsageDigitalSignature {
		return extension{}, wire.Refuse(wire.BadChain, "leaf: CA, and key usage", fmt.Sprintf("%t, %b", c.IsCA, c.KeyUsage), fmt.Sprintf("false, %b: no CA, digital signature", x509.KeyUsageDigitalSignature))
	}
	if err := e.verifyUse(c, x); err != nil {
		return extension{}, err
	}
	path := wire.TaskPath(x.task)
	switch x.kind {
	case KindAuthority:
		if x.task != e.Group {
			return extension{}, wire.Refuse(wire.WrongGroup, "leaf: group of an authority", x.task, e.Group)
		}
		path = wire.AuthorityPath
	case KindGroup:
		if err := e.verifyMember(c, x); err != nil {
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

// verifyUse verifies that the leaf is for the expected use. TLS requires the extended key usage
// of TLS. A unit's signing certificate has no extended key usage, nor has an authority's leaf
// that signs reports for a group. The authority's own leaf has it, and may sign and serve TLS.
func (e Expect) verifyUse(c *x509.Certificate, x extension) error {
	want := tlsUsage
	ofUnit := x.kind == KindUnit || x.kind == KindGroup
	reporter := x.kind == KindAuthority && x.task != ""
	if ofUnit && e.Use == UseSigning || reporter {
		want = nil
	}
	if !slices.Equal(c.ExtKeyUsage, want) || len(c.UnknownExtKeyUsage) > 0 {
		return wire.Refuse(wire.WrongKind, "leaf: extended key usage", c.ExtKeyUsage, want)
	}
	if x.kind == KindShared && e.Use == UseSigning {
		return wire.Refuse(wire.WrongKind, "leaf: use of kind shared", "signing statements", "TLS")
	}
	if reporter && e.Use == UseTLS {
		return wire.Refuse(wire.WrongKind, "leaf: use of a group's kind authority", "serving TLS", "signing reports")
	}
	if !ofUnit {
		return nil
	}
	if e.Use == UseTLS && x.kind == KindUnit && x.keyMode != policyfile.PerUnit {
		return wire.Refuse(wire.WrongKind, "leaf: key mode of a unit's TLS leaf", x.keyMode, policyfile.PerUnit)
	}
	if got := wire.UnitIDOf(c.RawSubjectPublicKeyInfo); e.Use == UseSigning && got != x.unit {
		return wire.Refuse(wire.WrongIdentity, "leaf: unit id", x.unit, got)
	}
	return nil
}

// verifyAuthorityChain verifies the rest of an authority's chain.
func (e Expect) verifyAuthorityChain(chain []*x509.Certificate, root *x509.Certificate, _ extension) (extension, error) {
	if len(chain) > 2 || len(chain) == 2 && !chain[1].Equal(root) {
		return extension{}, wire.Refuse(wire.BadChain, "chain: certificates of an authority", len(chain), "leaf alone, or leaf and authority root")
	}
	if err := verifySignedBy(chain[0], root); err != nil {
		return extension{}, fmt.Errorf("checking leaf: %w", err)
	}
	return extension{}, nil
}

// verifyUnitChain verifies the rest of a unit's chain, and returns the extension of the
// cross-certificate.
func (e Expect) verifyUnitChain(chain []*x509.Certificate, root *x509.Certificate, leaf extension) (extension, error) {
	if len(chain) != 2 {
		return extension{}, wire.Refuse(wire.BadChain, "chain: certificates of a unit", len(chain), "leaf and cross-certificate")
	}
	cross, err := e.verifyCross(chain[1], root)
	if err != nil {
		return extension{}, err
	}
	if err := verifySignedBy(chain[0], chain[1]); err != nil {
		return extension{}, fmt.Errorf("checking leaf: %w", err)
	}
	if leaf.id != cross.id || leaf.task != cross.task {
		return extension{}, wire.Refuse(wire.WrongIdentity, "leaf: identity", leaf.id, cross.id)
	}
	return cross, nil
}

// verifyCross verifies a cross-certificate: the authority root signed it, and its identity id
// is the digest of its measurements.
func (e Expect) verifyCross(c, authorityRoot *x509.Certificate) (extension, error) {
	x, err := e.verifyCA(c, kindCross)
	if err == nil {
		err = verifySignedBy(c, authorityRoot)
	}
	if err != nil {
		return extension{}, fmt.Errorf("checking cross-certificate: %w", err)
	}
	if id := e.Policy.Document().ReleaseID(e.Policy.Genesis(), x.task, x.measurements); id != x.id {
		return extension{}, wire.Refuse(wire.WrongIdentity, "cross-certificate: identity of its measurements", x.id, id)
	}
	return x, nil
}

// CheckRoot verifies the root of a release's identity. The root must be self-signed, and have
// the key and the identity of its cross-certificate, which must be one that [Check] accepts in
// a chain. CheckRoot refuses with the reasons of Check. For a group use [CheckGroupRoot].
func CheckRoot(root, cross, authorityRoot *x509.Certificate, e Expect) error {
	if err := e.validate(); err != nil {
		return err
	}
	if err := e.verifyAuthorityRoot(authorityRoot); err != nil {
		return fmt.Errorf("checking authority root: %w", err)
	}
	under, err := e.verifyCross(cross, authorityRoot)
	if err == nil {
		err = e.verifyPins(under)
	}
	if err != nil {
		return err
	}
	own, err := e.verifySelfSigned(root, kindIdentityRoot)
	if err != nil {
		return fmt.Errorf("checking identity root: %w", err)
	}
	if own.id != under.id || !bytes.Equal(root.RawSubjectPublicKeyInfo, cross.RawSubjectPublicKeyInfo) {
		return wire.Refuse(wire.WrongIdentity, "identity root: identity and key", own.id, under.id)
	}
	return nil
}

// verifyPins refuses an identity outside the caller's pins.
func (e Expect) verifyPins(cross extension) error {
	if len(e.IDs) > 0 && !slices.Contains(e.IDs, cross.id) {
		return wire.Refuse(wire.WrongIdentity, "identity", cross.id, e.IDs)
	}
	if len(e.Measurements) == 0 {
		return nil
	}
	if len(cross.measurements) == 0 { // the identity is of a group
		return wire.Refuse(wire.WrongIdentity, "identity: number of measurements", 0, e.Measurements)
	}
	for _, m := range cross.measurements {
		if !slices.ContainsFunc(e.Measurements, func(pin attest.Measurement) bool { return pin.Compare(m) == 0 }) {
			return wire.Refuse(wire.WrongIdentity, "identity: measurement", m, e.Measurements)
		}
	}
	return nil
}

// verifySelfSigned verifies the root of an identity, but not whether that identity is expected.
func (e Expect) verifySelfSigned(c *x509.Certificate, kind Kind) (extension, error) {
	x, err := e.verifyCA(c, kind)
	if err != nil {
		return extension{}, err
	}
	return x, verifySignedBy(c, c)
}

// verifyCA verifies everything in a CA certificate except its signature.
func (e Expect) verifyCA(c *x509.Certificate, kind Kind) (extension, error) {
	x, err := e.verifyProfile(c)
	if err != nil {
		return extension{}, err
	}
	if x.kind != kind {
		return extension{}, wire.Refuse(wire.WrongKind, "ca: kind", x.kind, kind)
	}
	depth := pathLen[kind]
	if !c.IsCA || c.MaxPathLen != depth || c.KeyUsage != x509.KeyUsageCertSign {
		return extension{}, wire.Refuse(wire.BadChain, "ca: CA, pathLen and key usage", fmt.Sprintf("%t, %d, %b", c.IsCA, c.MaxPathLen, c.KeyUsage), fmt.Sprintf("true, %d, %b: certificate signing", depth, x509.KeyUsageCertSign))
	}
	if genesis := e.Policy.Genesis(); x.head != genesis {
		return extension{}, wire.Refuse(wire.WrongGenesis, "ca: genesis", x.head, genesis)
	}
	return x, nil
}

// verifyProfile verifies the requirements that all certificates of a chain share.
func (e Expect) verifyProfile(c *x509.Certificate) (extension, error) {
	if c.SignatureAlgorithm != x509.ECDSAWithSHA256 {
		return extension{}, wire.Refuse(wire.BadChain, "certificate: signature algorithm", c.SignatureAlgorithm, x509.ECDSAWithSHA256)
	}
	if _, err := verifyP256(c.PublicKey); err != nil {
		return extension{}, wire.Refuse(wire.BadChain, "certificate: key", c.PublicKeyAlgorithm, "ECDSA on P-256")
	}
	if len(c.UnhandledCriticalExtensions) > 0 {
		return extension{}, wire.Refuse(wire.BadChain, "certificate: critical extension", c.UnhandledCriticalExtensions, "no unknown ones")
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
		return extension{}, wire.Refuse(wire.Debug, "certificate: debug mark", "set: its policy accepted TEEs that their host can read", "not set")
	}
	return x, nil
}

// verifySignedBy verifies that c names parent as its issuer and that the parent's key signed c.
func verifySignedBy(c, parent *x509.Certificate) error {
	if !bytes.Equal(c.RawIssuer, parent.RawSubject) {
		return wire.Refuse(wire.BadChain, "certificate: issuer", c.Issuer, parent.Subject)
	}
	if err := parent.CheckSignature(c.SignatureAlgorithm, c.RawTBSCertificate, c.Signature); err != nil {
		return wire.Refuse(wire.BadSignature, "certificate: signature", err, "a signature by "+parent.Subject.String())
	}
	return nil
}
