package identity

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"math/big"
	"net/url"
	"testing"
	"time"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/internal/testworld"
	"github.com/cohort-tee/cohort/internal/wire"
	"github.com/cohort-tee/cohort/policy"
	"github.com/cohort-tee/cohort/policy/policyfile"
)

// forgery is a chain that is signed with the real keys of a world, so that a test can change any
// one part of it.
type forgery struct {
	root, cross, leaf part
	expect            Expect
	chain             []*x509.Certificate // the presented chain; nil for leaf and cross, or the authority's leaf
}

// part is one certificate of a forgery.
type part struct {
	extension extension
	edit      func(*x509.Certificate) // changes the template last
	key       any                     // public key
	by        signer
}

func (p part) sign(t testing.TB, like *x509.Certificate) *x509.Certificate {
	t.Helper()
	template := *like
	template.SerialNumber = big.NewInt(7)
	template.SignatureAlgorithm = 0 // follows from the key
	template.ExtraExtensions = []pkix.Extension{{Id: extensionOID, Value: p.extension.unchecked()}}
	parent := &x509.Certificate{RawSubject: p.by.name}
	if p.edit != nil {
		p.edit(&template)
	}
	der, err := x509.CreateCertificate(rand.Reader, &template, parent, p.key, p.by.key)
	if err != nil {
		t.Fatal(err)
	}
	return parse(t, der)[0]
}

// mint issues forgeries with the real keys of a world.
type mint struct {
	*world
	release string
	kind    string // "shared", "signing", "tls" or "authority"
}

// forge makes a good chain of one kind, applies edits, and returns the result of Check.
func (m mint) forge(t testing.TB, edits ...func(*forgery)) (Peer, error) {
	t.Helper()
	task, like := "scoring", m.issued(t, noon)
	names := map[string][3]string{
		"shared":    {"authority root", "cross", "shared"},
		"signing":   {"authority root", "cross", "unit of scoring"},
		"tls":       {"authority root", "cross of keys", "TLS leaf of a unit of keys"},
		"authority": {"authority root", "cross", "authority"},
	}[m.kind]
	if m.kind == "tls" {
		task, m.release = "keys", "1.4"
	}
	good := parse(t, like[names[0]], like[names[1]], like[names[2]])
	ca := m.issuer.known[m.policy.Document().Tasks[task].Releases[m.release]].ca
	f := &forgery{
		root:   part{key: good[0].PublicKey, by: m.issuer.signer},
		cross:  part{key: good[1].PublicKey, by: m.issuer.signer},
		leaf:   part{key: good[2].PublicKey, by: ca},
		expect: Expect{Policy: m.policy, Use: UseTLS, IDs: testworld.Must(LiveIDs(m.policy, task)), At: noon},
	}
	for i, p := range []*part{&f.root, &f.cross, &f.leaf} {
		p.extension = testworld.Must(extensionOf(good[i]))
	}
	f.expect.Kinds = []Kind{f.leaf.extension.kind}
	switch m.kind {
	case "signing":
		f.expect.Use = UseSigning
	case "authority":
		f.leaf.by, f.expect.IDs = m.issuer.signer, nil
	}
	for _, edit := range edits {
		edit(f)
	}
	root := f.root.sign(t, good[0])
	if f.chain == nil {
		f.chain = []*x509.Certificate{f.leaf.sign(t, good[2]), f.cross.sign(t, good[1])}
		if m.kind == "authority" {
			f.chain = f.chain[:1]
		}
	}
	return Check(f.chain, root, f.expect)
}

func TestCheckAccepts(t *testing.T) {
	w := newWorld(t, 'a')
	for _, kind := range []string{"shared", "signing", "tls", "authority"} {
		p, err := mint{w, "2026.11", kind}.forge(t)
		if err != nil || !p.Verified() {
			t.Errorf("forgery without edits, %s: got %v, want acceptance", kind, err)
		}
	}
	authority := parse(t, testworld.Must(w.issuer.AuthorityLeaf(noon)).DER, w.issuer.AuthorityRoot())
	for _, use := range []Use{UseTLS, UseSigning} {
		e := Expect{Policy: w.policy, Kinds: []Kind{KindAuthority}, Use: use, At: noon}
		for _, chain := range [][]*x509.Certificate{authority[:1], authority} {
			if _, err := Check(chain, w.root(t), e); err != nil {
				t.Errorf("authority, use %d, %d certificates: %v", use, len(chain), err)
			}
		}
	}
}

// TestCheckTimes: a chain is valid from its first second to its last, inclusive.
func TestCheckTimes(t *testing.T) {
	w := newWorld(t, 'a')
	chain, e := w.sharedChain(t), w.expectShared(t)
	for _, at := range []time.Time{chain[0].NotBefore, chain[0].NotAfter} {
		e.At = at
		if _, err := Check(chain, w.root(t), e); err != nil {
			t.Errorf("at %v: %v", at, err)
		}
	}
	for _, at := range []time.Time{chain[0].NotBefore.Add(-1), chain[0].NotAfter.Add(1)} {
		e.At = at
		_, err := Check(chain, w.root(t), e)
		testworld.Refused(t, err, wire.Expired)
	}
}

func TestPeer(t *testing.T) {
	w := newWorld(t, 'a')
	g := w.grant(t, "keys", "1.4")
	signing, key := &unitKey("signing").PublicKey, &unitKey("tls").PublicKey
	unit := wire.UnitIDOf(publicKeyInfo(signing))
	leaf := testworld.Must(w.issuer.UnitTLSLeaf(g, key, unit, noon))
	id := testworld.Must(w.issuer.Identity("keys", "1.4"))
	p, err := Check(parse(t, leaf.DER, id.Cross), w.root(t), Expect{
		Policy: w.policy, Kinds: []Kind{KindShared, KindUnit}, Use: UseTLS, IDs: []attest.Digest{id.ID}, At: noon,
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range []struct {
		name      string
		got, want any
	}{
		{"ok", p.Verified(), true}, {"kind", p.LeafKind(), KindUnit}, {"id", p.ID(), id.ID}, {"task", p.TaskName(), "keys"},
		{"key mode", p.KeyMode(), policyfile.PerUnit}, {"head", p.PolicyHead(), w.policy.PolicyHead()},
		{"development", p.Development(), true}, {"unit", p.UnitID(), unit}, {"platform", p.Platform(), attest.Soft},
		{"chip", p.ChipID(), "chip-7"}, {"not after", p.NotAfter(), leaf.NotAfter}, {"measurements", len(p.Measurements()), 1},
		{"measurement", p.Measurements()[0].String(), g.Release.References[0].String()}, {"key", key.Equal(p.PublicKey()), true},
	} {
		if f.got != f.want {
			t.Errorf("%s: got %v, want %v", f.name, f.got, f.want)
		}
	}
	if zero := (Peer{}); zero.Verified() || zero.PublicKey() != nil || zero.LeafKind() != "" || zero.Measurements() != nil {
		t.Errorf("zero peer: got %v, want nobody", zero)
	}
}

// refusal is one row: the smallest change of a good chain, and the one reason for its refusal.
type refusal struct {
	name string
	kind string
	want wire.Reason
	edit func(*forgery)
}

func (r refusal) test(t *testing.T, w *world) {
	p, err := mint{w, "2026.11", r.kind}.forge(t, r.edit)
	testworld.Refused(t, err, r.want)
	if p.Verified() || p.PublicKey() != nil {
		t.Errorf("got peer %v beside the error, want the zero Peer", p)
	}
}

// onEach returns a row for each certificate: root, cross-certificate and leaves.
func onEach(name string, want wire.Reason, edit func(*part)) []refusal {
	return []refusal{
		{"root: " + name, "shared", want, func(f *forgery) { edit(&f.root) }},
		{"cross: " + name, "shared", want, func(f *forgery) { edit(&f.cross) }},
		{"leaf: " + name, "shared", want, func(f *forgery) { edit(&f.leaf) }},
		{"unit: " + name, "signing", want, func(f *forgery) { edit(&f.leaf) }},
		{"authority: " + name, "authority", want, func(f *forgery) { edit(&f.leaf) }},
	}
}

func template(edit func(*x509.Certificate)) func(*part) { return func(p *part) { p.edit = edit } }

func stranger() signer {
	return newSigner(unitKey("stranger"), subject("stranger", attest.Digest{}, ""))
}

func TestCheckRefusesCertificates(t *testing.T) {
	w := newWorld(t, 'a')
	var rows []refusal
	add := func(name string, want wire.Reason, edit func(*part)) {
		rows = append(rows, onEach(name, want, edit)...)
	}
	add("another key's signature", wire.BadSignature, func(p *part) { p.by.key = stranger().key })
	add("another issuer's name", wire.BadChain, func(p *part) { p.by.name = stranger().name })
	add("SHA-384", wire.BadChain, template(func(c *x509.Certificate) { c.SignatureAlgorithm = x509.ECDSAWithSHA384 }))
	add("begins a second later", wire.Expired, template(func(c *x509.Certificate) { c.NotBefore = noon.Add(time.Second) }))
	add("ended a second ago", wire.Expired, template(func(c *x509.Certificate) { c.NotAfter = noon.Add(-time.Second) }))
	add("unknown critical extension", wire.BadChain, template(func(c *x509.Certificate) {
		c.ExtraExtensions = append(c.ExtraExtensions, pkix.Extension{Id: asn1.ObjectIdentifier{2, 25, 1}, Critical: true, Value: []byte{5, 0}})
	}))
	add("no extension", wire.NoExtension, template(func(c *x509.Certificate) { c.ExtraExtensions = nil }))
	add("critical extension of ours", wire.BadChain, template(func(c *x509.Certificate) { c.ExtraExtensions[0].Critical = true }))
	add("trailing byte in the extension", wire.NoExtension, template(func(c *x509.Certificate) {
		c.ExtraExtensions[0].Value = append(c.ExtraExtensions[0].Value, 0)
	}))
	add("a debug mark that policy does not allow", wire.Debug, func(p *part) { p.extension.debug = true })
	add("no development mark", wire.NoPlatform, func(p *part) { p.extension.development = false })
	add("no basic constraints", wire.BadChain, template(func(c *x509.Certificate) { c.BasicConstraintsValid, c.IsCA = false, false }))
	add("another key usage", wire.BadChain, template(func(c *x509.Certificate) { c.KeyUsage |= x509.KeyUsageCRLSign }))
	for _, r := range rows {
		t.Run(r.name, func(t *testing.T) { r.test(t, w) })
	}
}

func TestCheckRefusesCAs(t *testing.T) {
	w, other := newWorld(t, 'a'), newWorld(t, 'b')
	genesis := other.policy.Genesis()
	rows := []refusal{
		{"another root's key", "shared", wire.WrongRoot, func(f *forgery) { f.root.key = &unitKey("stranger").PublicKey }},
		{"root that is no CA", "shared", wire.BadChain, func(f *forgery) { template(noCA)(&f.root) }},
		{"root of pathLen 0", "shared", wire.BadChain, func(f *forgery) { template(pathLength(0))(&f.root) }},
		{"root of pathLen 2", "shared", wire.BadChain, func(f *forgery) { template(pathLength(2))(&f.root) }},
		{"root of another kind", "shared", wire.WrongKind, func(f *forgery) { f.root.extension.kind = KindAuthority }},
		{"root of another genesis", "shared", wire.WrongGenesis, func(f *forgery) { f.root.extension.head = genesis }},
		{"cross that is no CA", "shared", wire.BadChain, func(f *forgery) { template(noCA)(&f.cross) }},
		{"cross of pathLen 1", "shared", wire.BadChain, func(f *forgery) { template(pathLength(1))(&f.cross) }},
		{"cross with pathLen but no CA flag", "shared", wire.BadChain, func(f *forgery) {
			f.cross.edit = func(c *x509.Certificate) {
				constraints := pkix.Extension{Id: asn1.ObjectIdentifier{2, 5, 29, 19}, Critical: true, Value: []byte{0x30, 3, 2, 1, 0}}
				c.ExtraExtensions = append(c.ExtraExtensions, constraints)
			}
		}},
		{"cross without pathLen", "shared", wire.BadChain, func(f *forgery) { template(pathLength(-1))(&f.cross) }},
		{"identity root for cross", "shared", wire.WrongKind, func(f *forgery) { f.cross.extension.kind = kindIdentityRoot }},
		{"identity root as it is for cross", "shared", wire.WrongKind, func(f *forgery) {
			f.chain = append(w.sharedChain(t)[:1], parse(t, testworld.Must(w.issuer.Identity("scoring", "2026.11")).Root)...)
		}},
		{"cross of another genesis", "shared", wire.WrongGenesis, func(f *forgery) { f.cross.extension.head = genesis }},
		{"cross of another identity", "shared", wire.WrongIdentity, func(f *forgery) { f.cross.extension.id[0] ^= 1 }},
		{"cross with a measurement less", "shared", wire.WrongIdentity, func(f *forgery) { f.cross.extension.measurements = f.cross.extension.measurements[:1] }},
		{"cross with another measurement", "shared", wire.WrongIdentity, func(f *forgery) {
			f.cross.extension.measurements = []attest.Measurement{softMeasurement(1)}
		}},
		{"cross of another task", "shared", wire.WrongIdentity, func(f *forgery) { f.cross.extension.task = "keys" }},
		{"cross of another release", "shared", wire.BadChain, func(f *forgery) {
			f.chain = append(w.sharedChain(t)[:1], parse(t, testworld.Must(w.issuer.Identity("scoring", "2026.10")).Cross)...)
		}},
		{"no certificates", "shared", wire.BadChain, func(f *forgery) { f.chain = []*x509.Certificate{} }},
		{"no cross", "shared", wire.BadChain, func(f *forgery) { f.chain = w.sharedChain(t)[:1] }},
		{"cross and root", "shared", wire.BadChain, func(f *forgery) { f.chain = append(w.sharedChain(t), w.root(t)) }},
		{"cross twice", "shared", wire.BadChain, func(f *forgery) { f.chain = append(w.sharedChain(t), w.sharedChain(t)[1]) }},
		{"authority with another CA", "authority", wire.BadChain, func(f *forgery) {
			f.chain = append(parse(t, testworld.Must(w.issuer.AuthorityLeaf(noon)).DER), w.sharedChain(t)[1])
		}},
		{"authority with the root twice", "authority", wire.BadChain, func(f *forgery) {
			f.chain = append(parse(t, testworld.Must(w.issuer.AuthorityLeaf(noon)).DER), w.root(t), w.root(t))
		}},
	}
	for _, r := range rows {
		t.Run(r.name, func(t *testing.T) { r.test(t, w) })
	}
	_, err := Check(w.sharedChain(t), nil, w.expectShared(t))
	testworld.Refused(t, err, wire.WrongRoot)
	_, err = Check(w.sharedChain(t), other.root(t), w.expectShared(t))
	testworld.Refused(t, err, wire.WrongRoot)
}

func noCA(c *x509.Certificate) { c.IsCA, c.MaxPathLen, c.MaxPathLenZero = false, 0, false }

func pathLength(n int) func(*x509.Certificate) {
	return func(c *x509.Certificate) { c.MaxPathLen, c.MaxPathLenZero = n, n == 0 }
}

func uris(texts ...string) func(*forgery) {
	return func(f *forgery) {
		f.leaf.edit = func(c *x509.Certificate) {
			c.URIs = nil
			for _, s := range texts {
				c.URIs = append(c.URIs, testworld.Must(url.Parse(s)))
			}
		}
	}
}

func usages(list ...x509.ExtKeyUsage) func(*forgery) {
	return func(f *forgery) { f.leaf.edit = func(c *x509.Certificate) { c.ExtKeyUsage = list } }
}

func leafKey(key any) func(*forgery) { return func(f *forgery) { f.leaf.key = key } }

func TestCheckRefusesLeaves(t *testing.T) {
	w := newWorld(t, 'a')
	both := []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}
	const scoring = "spiffe://clinic.example/task/scoring"
	rows := []refusal{
		{"CA flag", "shared", wire.BadChain, func(f *forgery) { f.leaf.edit = func(c *x509.Certificate) { c.IsCA = true } }},
		{"RSA", "shared", wire.BadChain, leafKey(&testworld.Must(rsa.GenerateKey(rand.Reader, 2048)).PublicKey)},
		{"P-384", "shared", wire.BadChain, leafKey(&testworld.Must(ecdsa.GenerateKey(elliptic.P384(), rand.Reader)).PublicKey)},
		{"no EKU for TLS", "shared", wire.WrongKind, usages()},
		{"server only", "shared", wire.WrongKind, usages(x509.ExtKeyUsageServerAuth)},
		{"code signing too", "shared", wire.WrongKind, usages(append(both, x509.ExtKeyUsageCodeSigning)...)},
		{"any EKU", "shared", wire.WrongKind, usages(x509.ExtKeyUsageAny)},
		{"unknown EKU too", "shared", wire.WrongKind, func(f *forgery) {
			f.leaf.edit = func(c *x509.Certificate) { c.UnknownExtKeyUsage = []asn1.ObjectIdentifier{{2, 25, 1}} }
		}},
		{"EKU on a signing certificate", "signing", wire.WrongKind, usages(both...)},
		{"signing certificate for TLS", "signing", wire.WrongKind, func(f *forgery) { f.expect.Use = UseTLS }},
		{"TLS leaf of a unit for signing", "tls", wire.WrongKind, func(f *forgery) { f.expect.Use = UseSigning }},
		{"shared leaf for signing", "shared", wire.WrongKind, func(f *forgery) { f.expect.Use = UseSigning }},
		{"TLS leaf of a unit in mode shared", "tls", wire.WrongKind, func(f *forgery) { f.leaf.extension.keyMode = policyfile.Shared }},
		{"authority without EKU", "authority", wire.WrongKind, usages()},
		{"shared for unit", "shared", wire.WrongKind, func(f *forgery) { f.expect.Kinds = []Kind{KindUnit} }},
		{"shared for authority", "shared", wire.WrongKind, func(f *forgery) { f.expect.Kinds = []Kind{KindAuthority} }},
		{"unit for shared", "tls", wire.WrongKind, func(f *forgery) { f.expect.Kinds = []Kind{KindShared} }},
		{"authority for unit or shared", "authority", wire.WrongKind, func(f *forgery) {
			f.expect.Kinds, f.expect.IDs = []Kind{KindUnit, KindShared}, testworld.Must(LiveIDs(w.policy, "scoring"))
		}},
		{"CA's kind, even when asked for", "shared", wire.WrongKind, func(f *forgery) {
			f.leaf.extension = f.cross.extension
			f.expect.Kinds = []Kind{kindCross}
		}},
		{"cross for a leaf", "shared", wire.WrongKind, func(f *forgery) { f.chain = w.sharedChain(t)[1:] }},
		{"no URI", "shared", wire.WrongName, uris()},
		{"two URIs", "shared", wire.WrongName, uris(scoring, scoring)},
		{"another task's URI", "shared", wire.WrongName, uris("spiffe://clinic.example/task/keys")},
		{"another trust domain's URI", "shared", wire.WrongName, uris("spiffe://clinik.example/task/scoring")},
		{"URI with a query", "shared", wire.WrongName, uris(scoring + "?x")},
		{"https URI", "shared", wire.WrongName, uris("https://clinic.example/task/scoring")},
		{"unit's URI at the authority", "authority", wire.WrongName, uris(scoring)},
		{"another identity", "shared", wire.WrongIdentity, func(f *forgery) { f.leaf.extension.id[0] ^= 1 }},
		{"another task", "shared", wire.WrongIdentity, func(f *forgery) {
			f.leaf.extension.task = "keys"
			uris("spiffe://clinic.example/task/keys")(f)
		}},
		{"another unit id", "signing", wire.WrongIdentity, func(f *forgery) { f.leaf.extension.unit[0] ^= 1 }},
		{"authority's leaf signed by an identity", "authority", wire.BadSignature, func(f *forgery) {
			f.leaf.by.key = w.issuer.known[w.policy.Document().Tasks["scoring"].Releases["2026.11"]].ca.key
		}},
		{"leaf signed by the authority root", "shared", wire.BadChain, func(f *forgery) { f.leaf.by = w.issuer.signer }},
	}
	for _, r := range rows {
		t.Run(r.name, func(t *testing.T) { r.test(t, w) })
	}
}

// TestCheckRefusesExpectations: an incomplete expectation is refused, and so is a chain that the
// pins do not name.
func TestCheckRefusesExpectations(t *testing.T) {
	w := newWorld(t, 'a')
	list := w.policy.Document().Tasks["scoring"].Releases["2026.11"].References
	rows := []refusal{
		{"nothing expected", "shared", wire.BadPolicy, func(f *forgery) { f.expect = Expect{} }},
		{"no policy", "shared", wire.BadPolicy, func(f *forgery) { f.expect.Policy = policy.Approved{} }},
		{"no kinds", "shared", wire.WrongKind, func(f *forgery) { f.expect.Kinds = nil }},
		{"no use", "shared", wire.WrongKind, func(f *forgery) { f.expect.Use = 0 }},
		{"unknown use", "shared", wire.WrongKind, func(f *forgery) { f.expect.Use = UseSigning + 1 }},
		{"no time", "shared", wire.ClockSkew, func(f *forgery) { f.expect.At = time.Time{} }},
		{"no pin", "shared", wire.WrongIdentity, func(f *forgery) { f.expect.IDs = nil }},
		{"no pin beside authority", "authority", wire.WrongIdentity, func(f *forgery) { f.expect.Kinds = []Kind{KindAuthority, KindUnit} }},
		{"removed release", "shared", wire.WrongIdentity, func(f *forgery) {
			f.expect.IDs = []attest.Digest{testworld.Must(ReleaseID(w.policy, "scoring", "2026.10"))}
		}},
		{"another task's id", "shared", wire.WrongIdentity, func(f *forgery) { f.expect.IDs = testworld.Must(LiveIDs(w.policy, "keys")) }},
		{"a measurement outside the pin", "shared", wire.WrongIdentity, func(f *forgery) { f.expect.Measurements = list[:1] }},
		{"only a measurement outside the pin", "shared", wire.WrongIdentity, func(f *forgery) {
			f.expect.IDs, f.expect.Measurements = nil, list[1:]
		}},
		{"measurements right, id not", "shared", wire.WrongIdentity, func(f *forgery) {
			f.expect.IDs, f.expect.Measurements = []attest.Digest{{1}}, list
		}},
		{"another policy's root", "shared", wire.WrongRoot, func(f *forgery) { f.expect.Policy = newWorld(t, 'b').policy }},
	}
	for _, r := range rows {
		t.Run(r.name, func(t *testing.T) { r.test(t, w) })
	}
	for name, edit := range map[string]func(*forgery){
		"measurements alone": func(f *forgery) { f.expect.IDs, f.expect.Measurements = nil, list },
		"more measurements":  func(f *forgery) { f.expect.Measurements = append([]attest.Measurement{softMeasurement(1)}, list...) },
	} {
		if _, err := (mint{w, "2026.11", "shared"}).forge(t, edit); err != nil {
			t.Errorf("%s: got %v, want acceptance", name, err)
		}
	}
}

// TestCheckRoot: an identity root is accepted only with its own cross-certificate.
func TestCheckRoot(t *testing.T) {
	w := newWorld(t, 1)
	expect := func(task, release string) Expect {
		id := testworld.Must(ReleaseID(w.policy, task, release))
		return Expect{Policy: w.policy, Kinds: []Kind{KindShared}, Use: UseTLS, IDs: []attest.Digest{id}, At: noon}
	}
	mine, sibling, theirs := testworld.Must(w.issuer.Identity("scoring", "2026.11")), testworld.Must(w.issuer.Identity("scoring", "2026.10")), testworld.Must(newWorld(t, 2).issuer.Identity("scoring", "2026.11"))
	tests := []struct {
		name        string
		root, cross []byte
		expect      Expect
		want        wire.Reason
	}{
		{"its own", mine.Root, mine.Cross, expect("scoring", "2026.11"), ""},
		{"another release's cross-certificate", mine.Root, sibling.Cross, expect("scoring", "2026.10"), wire.WrongIdentity},
		{"another release's root", sibling.Root, mine.Cross, expect("scoring", "2026.11"), wire.WrongIdentity},
		{"another authority's root", theirs.Root, mine.Cross, expect("scoring", "2026.11"), wire.WrongGenesis},
		{"another authority's cross-certificate", mine.Root, theirs.Cross, expect("scoring", "2026.11"), wire.WrongGenesis},
		{"cross-certificate in the root's place", mine.Cross, mine.Cross, expect("scoring", "2026.11"), wire.WrongKind},
		{"root in the cross-certificate's place", mine.Root, mine.Root, expect("scoring", "2026.11"), wire.WrongKind},
		{"not the pinned identity", mine.Root, mine.Cross, expect("scoring", "2026.10"), wire.WrongIdentity},
		{"zero expectation", mine.Root, mine.Cross, Expect{}, wire.BadPolicy},
	}
	authority := parse(t, w.issuer.AuthorityRoot())[0]
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			certs := parse(t, tt.root, tt.cross)
			err := CheckRoot(certs[0], certs[1], authority, tt.expect)
			if tt.want == "" && err != nil || tt.want != "" && wire.ReasonOf(err) != tt.want {
				t.Errorf("got %v, want reason %q", err, tt.want)
			}
		})
	}
}
