package identity

import (
	"crypto"
	"crypto/ecdsa"
	"math/big"
	"time"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/internal/wire"
	"github.com/cohort-tee/cohort/policy"
	"github.com/cohort-tee/cohort/policy/policyfile"
)

// AuthorityLeafLifetime is the lifetime of kind-authority leaves.
const AuthorityLeafLifetime = time.Hour

// Issuer issues certificates under one policy. Certificates depend only on the secrets, the
// policy and the time: authorities with the same inputs issue the same bytes. An Issuer is
// immutable and safe for concurrent use.
type Issuer struct {
	keys   *Keys
	policy policy.Approved
	doc    *policyfile.Document
	signer signer // the authority root
	root   []byte
	known  map[*policyfile.Release]issuedIdentity
	groups map[*policy.GroupState]issuedIdentity // no CA where the roster's keys are missing
}

// issuedIdentity is the identity of a release or group with its CA.
type issuedIdentity struct {
	Identity
	secret Secret        // source of the identity's keys: secret of the authority or the roster
	root   attest.Digest // in a group: digest of the root that the parties approve
	ca     signer        // the CA with the key of root and cross-certificate
}

// Leaf is a leaf certificate and its renewal times.
type Leaf struct {
	DER         []byte
	Serial      *big.Int
	Key         *ecdsa.PrivateKey // nil if only the unit has it
	RenewAfter  time.Time         // begin of the next window
	RenewBefore time.Time         // renewals spread from RenewAfter to this time
	NotAfter    time.Time
}

// Identity is the identity of one release, or of one group.
type Identity struct {
	ID      attest.Digest
	Task    string // for a unit in a group, the task of its program
	Release string
	Group   string // empty outside groups
	Role    string // for a unit in a group only
	Root    []byte // self-signed, DER
	// Cross is the certificate of the root's key under the authority root, pathLen 0, DER. In
	// a group its kind is group-bus, and only the cluster manager and the gateway use it.
	Cross []byte
}

// Signing returns the chain of a unit's signing certificate: that certificate, then in a group
// the group root, otherwise the cross-certificate.
func (i Identity) Signing(unit []byte) [][]byte {
	if i.Group != "" {
		return [][]byte{unit, i.Root}
	}
	return [][]byte{unit, i.Cross}
}

// Serving returns the chain that a unit presents in TLS to peers and cluster managers. In a
// group it ends with the group-bus certificate, which only managers use.
func (i Identity) Serving(leaf []byte) [][]byte {
	if i.Group != "" {
		return [][]byte{leaf, i.Root, i.Cross}
	}
	return [][]byte{leaf, i.Cross}
}

// Issuer returns the issuer of a policy. It issues for the policy's tasks, and for the rosters of
// its groups whose keys are given. It refuses, with "authority-root", a policy that names a
// different authority root.
func (k *Keys) Issuer(p policy.Approved, groups ...*GroupKeys) (*Issuer, error) {
	if !p.Genuine() {
		return nil, wire.Refuse(wire.BadPolicy, "issuer: policy", "an unapproved one", "an approved policy")
	}
	doc := p.Document()
	if doc.Authority.Root != k.RootDigest() {
		return nil, wire.Refuse(wire.WrongRoot, "issuer: root that policy names", doc.Authority.Root, "the root of these keys")
	}
	name := subject("authority root", k.RootDigest(), doc.TrustDomain)
	i := &Issuer{keys: k, policy: p, doc: doc, signer: newSigner(k.root, name), known: make(map[*policyfile.Release]issuedIdentity), groups: make(map[*policy.GroupState]issuedIdentity)}
	var err error
	if i.root, _, err = i.signer.signCertificate(i.caContent(i.signer, extension{kind: kindAuthorityRoot})); err != nil {
		return nil, err
	}
	for _, task := range doc.Tasks {
		for _, release := range task.Releases {
			if i.known[release], err = i.deriveRelease(task.Name, release); err != nil {
				return nil, err
			}
		}
	}
	if err := i.deriveGroups(groups); err != nil {
		return nil, err
	}
	return i, nil
}

// AuthorityRoot returns the self-signed authority root certificate, DER.
func (i *Issuer) AuthorityRoot() []byte { return i.root }

// AuthorityLeaf returns the kind-authority leaf, with its key, for the window that contains at.
// The leaf signs reports and serves the authority's TLS. Its only names are
// "authority.<trust domain>" and spiffe://<trust domain>/authority.
func (i *Issuer) AuthorityLeaf(at time.Time) (Leaf, error) {
	w, err := windowAt(AuthorityLeafLifetime, at)
	if err != nil {
		return Leaf{}, err
	}
	key, err := i.keys.secret.deriveSigningKey(wire.LabelSignerKey, wire.Uint64(w.index))
	if err != nil {
		return Leaf{}, err
	}
	return i.signLeaf(i.signer, w, certificateContent{
		name: subject("authority", i.keys.RootDigest(), i.doc.TrustDomain), private: key, spki: publicKeyInfo(&key.PublicKey),
		names: []string{i.doc.AuthorityName()}, path: wire.AuthorityPath, tls: true,
		extension: extension{kind: KindAuthority, head: i.policy.PolicyHead()},
	})
}

// Identity returns the identity of a release. It refuses, with "not-found", a release that the
// policy does not contain.
func (i *Issuer) Identity(task, release string) (Identity, error) {
	r, err := findRelease(i.policy, task, release)
	if err != nil {
		return Identity{}, err
	}
	return i.known[r].Identity, nil
}

// deriveRelease derives the root key of a release's identity and issues its CA certificates.
func (i *Issuer) deriveRelease(task string, r *policyfile.Release) (issuedIdentity, error) {
	e := extension{kind: kindIdentityRoot, id: i.doc.ReleaseID(i.policy.Genesis(), task, r.References), task: task, measurements: policyfile.SortedMeasurements(r.References)}
	key, err := i.keys.secret.deriveSigningKey(wire.LabelIdentityKey, e.id[:])
	if err != nil {
		return issuedIdentity{}, err
	}
	k, err := i.issueRoots(key, e, kindCross)
	k.secret = i.keys.secret
	k.Task, k.Release = task, r.Name
	return k, err
}

// issueRoots issues the root of an identity and the certificate of the root's key under the
// authority root; crossed is the kind of that certificate.
func (i *Issuer) issueRoots(key *ecdsa.PrivateKey, e extension, crossed Kind) (issuedIdentity, error) {
	ca := newSigner(key, subject("root of "+e.task, e.id, i.doc.TrustDomain))
	root, _, err := ca.signCertificate(i.caContent(ca, e))
	if err != nil {
		return issuedIdentity{}, err
	}
	e.kind = crossed
	cross, _, err := i.signer.signCertificate(i.caContent(ca, e))
	if err != nil {
		return issuedIdentity{}, err
	}
	return issuedIdentity{Identity: Identity{ID: e.id, Root: root, Cross: cross}, ca: ca}, nil
}

// SharedLeaf returns the shared leaf, with its key, for the window that contains at. It refuses,
// with "not-allowed", a grant that is not of this policy and a key mode other than shared.
func (i *Issuer) SharedLeaf(grant policy.Grant, at time.Time) (Leaf, error) {
	g, err := i.checkGrant(grant, at)
	if err != nil {
		return Leaf{}, err
	}
	if err := g.checkKeyMode(policyfile.Shared); err != nil {
		return Leaf{}, err
	}
	if g.role != "" {
		g.ends = earliest(g.ends, roleApprovalEnd(grant.GroupState, g.root, g.role, at))
	}
	// Validity and last cut-off are inputs of the derivation, so that no later leaf has a key
	// that a unit got before it was cut off. The role is empty outside groups.
	w, cut := g.validity(), i.policy.LastCut(g.ID, g.role)
	key, err := g.secret.deriveSigningKey(wire.LabelLeafKey, g.ID[:], []byte(g.role), unixField(w.notBefore()), unixField(w.notAfter()), cut[:])
	if err != nil {
		return Leaf{}, err
	}
	return g.signLeaf(certificateContent{private: key, spki: publicKeyInfo(&key.PublicKey), names: g.names, tls: true, extension: extension{kind: KindShared, head: cut}})
}

// unixField encodes a time as a field of a framing: seconds since the Unix epoch, 8 bytes.
func unixField(at time.Time) []byte { return wire.Uint64(uint64(at.Unix())) }

func earliest(a, b time.Time) time.Time {
	if b.Before(a) {
		return b
	}
	return a
}

// UnitLeaf returns the certificate of a unit's signing key for the window that contains at. It has
// kind unit, or in a group kind group, and no extended key usage, so that it cannot serve TLS. It
// names platform and chip. Its URI is spiffe://<trust domain>/task/<name>, or in a group that of
// the role. UnitLeaf refuses with "not-allowed" a grant that is not of this policy, and with
// "request" a key that is not on P-256.
func (i *Issuer) UnitLeaf(grant policy.Grant, signing crypto.PublicKey, at time.Time) (Leaf, error) {
	g, err := i.checkGrant(grant, at)
	if err != nil {
		return Leaf{}, err
	}
	key, err := verifyP256(signing)
	if err != nil {
		return Leaf{}, err
	}
	spki := publicKeyInfo(key)
	return g.signLeaf(certificateContent{spki: spki, extension: g.unitExtension(wire.UnitIDOf(spki))})
}

// UnitTLSLeaf returns the TLS leaf of a unit in key mode unit. It refuses as UnitLeaf does, and
// refuses any other key mode with "not-allowed".
func (i *Issuer) UnitTLSLeaf(grant policy.Grant, key crypto.PublicKey, unit wire.UnitID, at time.Time) (Leaf, error) {
	g, err := i.checkGrant(grant, at)
	if err != nil {
		return Leaf{}, err
	}
	if err := g.checkKeyMode(policyfile.PerUnit); err != nil {
		return Leaf{}, err
	}
	public, err := verifyP256(key)
	if err != nil {
		return Leaf{}, err
	}
	return g.signLeaf(certificateContent{spki: publicKeyInfo(public), names: g.names, tls: true, extension: g.unitExtension(unit)})
}

// granted is a verified grant of the issuer's own policy.
type granted struct {
	issuedIdentity
	issuer  *Issuer
	holder  string // name of the task, or of the group
	role    string // in a group only
	member  member // in a group only
	path    string // path of the SPIFFE URI
	names   []string
	keyMode policyfile.KeyMode
	ends    time.Time // end of the parties' approval; zero outside groups
	result  attest.Result
	window  window
}

// checkGrant returns a grant with its identity and window. It refuses with "not-allowed" a grant
// that is not of this policy, and with "retired" a grant for a retired release.
func (i *Issuer) checkGrant(grant policy.Grant, at time.Time) (granted, error) {
	refused := wire.Refuse(wire.NotAllowed, "issuing: grant", "of another policy", "a grant of the policy in force")
	if !grant.Result.Appraised() || grant.Task == nil || grant.Release == nil ||
		i.doc.Tasks[grant.Task.Name] != grant.Task || grant.Task.Releases[grant.Release.Name] != grant.Release {
		return granted{}, refused
	}
	if grant.Release.Retired {
		return granted{}, wire.Refuse(wire.Retired, "issuing: release of task "+grant.Task.Name, grant.Release.Name+", which is retired", "a release that is not retired")
	}
	g := granted{
		issuedIdentity: i.known[grant.Release], issuer: i, result: grant.Result,
		holder: grant.Task.Name, path: wire.TaskPath(grant.Task.Name), names: grant.Task.Names, keyMode: grant.Task.KeyMode,
	}
	if p := grant.GroupState; p != nil {
		if _, ours := i.groups[p]; !ours {
			return granted{}, refused
		}
		var err error
		if g.issuedIdentity, err = i.findGroup(p); err != nil {
			return granted{}, err
		}
		if g.ends, err = p.ApprovedUntil(g.root, at); err != nil {
			return granted{}, err
		}
		own, err := p.Consents(g.root, grant.Party, at)
		if err != nil {
			return granted{}, err
		}
		g.ends = earliest(g.ends, own)
		g.holder, g.role, g.path = p.Group.Name, grant.Role, wire.RolePath(p.Group.Name, grant.Role)
		g.names, g.keyMode = p.Group.Names, p.Group.KeyMode
		g.member = member{grant.Member.Task, grant.Member.Release, grant.Party}
	}
	var err error
	if g.window, err = windowAt(grant.LeafLifetime(), at); err != nil {
		return granted{}, err
	}
	return g, nil
}

// checkKeyMode refuses, with "not-allowed", a grant whose key mode is not mode.
func (g granted) checkKeyMode(mode policyfile.KeyMode) error {
	if g.keyMode != mode {
		return wire.Refuse(wire.NotAllowed, "issuing: key mode of "+g.holder, g.keyMode, mode)
	}
	return nil
}

// unitExtension returns the extension fields that both certificates of a unit share.
func (g granted) unitExtension(id wire.UnitID) extension {
	return extension{
		kind: KindUnit, head: g.issuer.policy.PolicyHead(), unit: id, platform: g.result.Measurement().Platform, chip: g.result.ChipID(), member: g.member,
	}
}

// validity returns the window of a leaf of the identity. In a group the window ends at the latest
// with the parties' approval; renewal is then due at the same fraction of the shorter lifetime.
func (g granted) validity() window {
	w := g.window
	if g.role != "" && w.notAfter().After(g.ends) {
		w.lifetime = g.ends.Sub(w.begin)
		w.next = w.begin.Add(w.lifetime * 2 / 3)
	}
	return w
}

// signLeaf fills in the fields of the identity and signs a leaf.
func (g granted) signLeaf(c certificateContent) (Leaf, error) {
	c.name = subject(g.holder, g.ID, g.issuer.doc.TrustDomain)
	c.path = g.path
	c.extension.id, c.extension.task, c.extension.keyMode = g.ID, g.holder, g.keyMode
	if g.role != "" {
		c.extension.kind, c.extension.role, c.extension.ends = KindGroup, g.role, g.ends
	}
	return g.issuer.signLeaf(g.ca, g.validity(), c)
}

// signLeaf signs a leaf for a window under the issuer's policy.
func (i *Issuer) signLeaf(by signer, w window, c certificateContent) (Leaf, error) {
	c.domain, c.notBefore, c.notAfter = i.doc.TrustDomain, w.notBefore(), w.notAfter()
	c.extension.development, c.extension.debug = i.doc.Development, i.doc.Debug()
	der, number, err := by.signCertificate(c)
	if err != nil {
		return Leaf{}, err
	}
	return Leaf{DER: der, Serial: number, Key: c.private, RenewAfter: w.next, RenewBefore: w.renewBefore(), NotAfter: c.notAfter}, nil
}

// caContent returns the content of a CA certificate. All CA certificates are valid from the
// genesis on and contain nothing that a later policy changes, so that the bytes of a pinned root
// stay the same.
func (i *Issuer) caContent(s signer, e extension) certificateContent {
	begin := i.policy.Founded().UTC().Truncate(time.Second)
	e.head, e.development = i.policy.Genesis(), i.doc.Development
	return certificateContent{name: s.name, spki: s.spki, notBefore: begin, notAfter: begin.Add(wire.RootLifetime), extension: e}
}
