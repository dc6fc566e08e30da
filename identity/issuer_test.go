package identity

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"fmt"
	"math/big"
	"strings"
	"testing"
	"time"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/internal/testworld"
	"github.com/cohort-tee/cohort/internal/wire"
	"github.com/cohort-tee/cohort/policy"
)

// issued returns every kind of certificate of a world at a time, by name.
func (w *world) issued(t testing.TB, at time.Time) map[string][]byte {
	t.Helper()
	scoring, keys := w.grant(t, "scoring", "2026.11"), w.grant(t, "keys", "1.4")
	id, keysID := testworld.Must(w.issuer.Identity("scoring", "2026.11")), testworld.Must(w.issuer.Identity("keys", "1.4"))
	signing := &unitKey("signing").PublicKey
	return map[string][]byte{
		"authority root":             w.issuer.AuthorityRoot(),
		"authority":                  testworld.Must(w.issuer.AuthorityLeaf(at)).DER,
		"identity root":              id.Root,
		"cross":                      id.Cross,
		"shared":                     testworld.Must(w.issuer.SharedLeaf(scoring, at)).DER,
		"unit of scoring":            testworld.Must(w.issuer.UnitLeaf(scoring, signing, at)).DER,
		"identity root of keys":      keysID.Root,
		"cross of keys":              keysID.Cross,
		"unit of keys":               testworld.Must(w.issuer.UnitLeaf(keys, signing, at)).DER,
		"TLS leaf of a unit of keys": testworld.Must(w.issuer.UnitTLSLeaf(keys, &unitKey("tls").PublicKey, wire.UnitIDOf(publicKeyInfo(signing)), at)).DER,
	}
}

// TestTwoIssuersOneResult: two authorities with only root secret, policy and window in common
// issue the same bytes.
func TestTwoIssuersOneResult(t *testing.T) {
	one, two := newWorld(t, 'a').issued(t, noon), newWorld(t, 'a').issued(t, noon.Add(39*time.Minute))
	for name, der := range one {
		if strings.Contains(name, "keys") && !strings.Contains(name, "root") && !strings.Contains(name, "cross") {
			continue // its lifetime is 30 minutes, so its window differs
		}
		if got, want := two[name], der; !bytes.Equal(got, want) {
			t.Errorf("%s: got %x, want %x", name, got, want)
		}
	}
	for name, der := range newWorld(t, 'b').issued(t, noon) {
		if bytes.Equal(der, one[name]) {
			t.Errorf("%s: got the same bytes from another root secret", name)
		}
	}
}

// TestSharedLeafOfWindows: the shared leaf stays the same within a window, and the next window
// has a new key.
func TestSharedLeafOfWindows(t *testing.T) {
	w := newWorld(t, 'a')
	g := w.grant(t, "scoring", "2026.11")
	first := testworld.Must(w.issuer.SharedLeaf(g, noon))
	last := testworld.Must(w.issuer.SharedLeaf(g, first.RenewAfter.Add(-1)))
	next := testworld.Must(w.issuer.SharedLeaf(g, first.RenewAfter))
	if !bytes.Equal(first.DER, last.DER) || !first.Key.Equal(last.Key) {
		t.Error("got two pairs in one window, want one")
	}
	if first.Key.Equal(next.Key) {
		t.Error("got the same key in two windows, want two")
	}
	other := testworld.Must(w.issuer.SharedLeaf(w.grant(t, "scoring", "2026.10"), noon))
	if first.Key.Equal(other.Key) {
		t.Error("got the same key for two identities, want two")
	}
	if a, b := testworld.Must(w.issuer.AuthorityLeaf(noon)), testworld.Must(w.issuer.AuthorityLeaf(noon.Add(time.Hour))); a.Key.Equal(b.Key) {
		t.Error("got the same authority key in two windows, want two")
	}
	if !first.Key.PublicKey.Equal(parse(t, first.DER)[0].PublicKey) {
		t.Error("got a certificate of another key")
	}
	if got, want := first.NotAfter, parse(t, first.DER)[0].NotAfter; !got.Equal(want) {
		t.Errorf("not after: got %v, want %v", got, want)
	}
}

// TestRootsOutlivePolicies: a later policy changes leaves, but no root, because clients may have
// pinned it.
func TestRootsOutlivePolicies(t *testing.T) {
	w := newWorld(t, 'a')
	later := w.next("created      = 2026-11-22T09:00:00Z", "created      = 2026-11-22T11:00:00Z", `"score.clinic.example"`, `"score2.clinic.example"`)
	before, after := w.issued(t, noon), later.issued(t, noon)
	for name := range before {
		leaf := !strings.Contains(name, "root") && !strings.Contains(name, "cross")
		if changed := !bytes.Equal(before[name], after[name]); changed != leaf {
			t.Errorf("%s: got changed %v under the next policy, want %v", name, changed, leaf)
		}
	}
}

// TestSerials: two certificates with one serial number have equal bytes, over issuers, kinds,
// windows, units and policies. Each number is positive and at most 20 bytes of DER.
func TestSerials(t *testing.T) {
	seen := map[string][]byte{}
	add := func(der []byte) {
		serial := parse(t, der)[0].SerialNumber
		if serial.Sign() <= 0 || serial.BitLen() > 152 {
			t.Errorf("serial: got %v, want a positive one of 19 bytes", serial)
		}
		if other, ok := seen[serial.String()]; ok && !bytes.Equal(other, der) {
			t.Errorf("got serial %v for two certificates: %x and %x", serial, other, der)
		}
		seen[serial.String()] = der
	}
	w := newWorld(t, 'a')
	edited := newWorld(t, 'a', "score.clinic.example", "scorf.clinic.example")
	for i := range 4 {
		for _, w := range []*world{w, edited} {
			for _, der := range w.issued(t, noon.Add(time.Duration(i)*20*time.Minute)) {
				add(der)
			}
			key := testworld.Must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
			add(testworld.Must(w.issuer.UnitLeaf(w.grant(t, "keys", "1.4"), &key.PublicKey, noon)).DER)
		}
	}
	if len(seen) < 40 {
		t.Errorf("got %d serial numbers, want at least 40: the test tests nothing", len(seen))
	}
}

// TestSerialRule recomputes a serial number from the finished certificate.
func TestSerialRule(t *testing.T) {
	w := newWorld(t, 'a')
	leaf := parse(t, testworld.Must(w.issuer.AuthorityLeaf(noon)).DER)[0]
	tbs := leaf.RawTBSCertificate
	number := leaf.SerialNumber.Bytes()
	if number[0] >= 0x80 {
		number = append([]byte{0}, number...)
	}
	i := bytes.Index(tbs, number)
	head := []byte{0xa0, 3, 2, 1, 2, 2, 1, 1} // version 3, serial number 1
	body := append(head, tbs[i+len(number):]...)
	unnumbered := append([]byte{0x30, 0x82, byte(len(body) >> 8), byte(len(body))}, body...)
	d := wire.Hash(wire.LabelSerial, w.root(t).RawSubjectPublicKeyInfo, unnumbered)
	if got, want := leaf.SerialNumber, new(big.Int).SetBytes(d[:19]); got.Cmp(want) != 0 {
		t.Errorf("got %x, want %x", got, want)
	}
}

// TestProfile: certificates have the fields that the specification describes.
func TestProfile(t *testing.T) {
	w := newWorld(t, 'a')
	const all = "version %d, %v, CN=%s, O=%v, CA %v %d %v, usage %d, extended %v, DNS %v, URI %v, %s to %s"
	show := func(c *x509.Certificate) string {
		return fmt.Sprintf(all, c.Version, c.SignatureAlgorithm, c.Subject.CommonName, c.Subject.Organization, c.IsCA, c.MaxPathLen, c.MaxPathLenZero,
			c.KeyUsage, c.ExtKeyUsage, c.DNSNames, c.URIs, c.NotBefore.Format(time.RFC3339), c.NotAfter.Format(time.RFC3339))
	}
	short := func(id attest.Digest) string { return id.Hex()[:8] }
	id, root := testworld.Must(ReleaseID(w.policy, "scoring", "2026.11")), w.keys.RootDigest()
	keys := testworld.Must(ReleaseID(w.policy, "keys", "1.4"))
	const org = "O=[clinic.example]"
	const life = "2026-11-22T09:00:00Z to 2036-11-19T09:00:00Z"
	want := map[string]string{
		"authority root": "version 3, ECDSA-SHA256, CN=authority root " + short(root) + ", " + org + ", CA true 1 false, usage 32, extended [], DNS [], URI [], " + life,
		"authority": "version 3, ECDSA-SHA256, CN=authority " + short(root) + ", " + org + ", CA false -1 false, usage 1, extended [serverAuth clientAuth], " +
			"DNS [authority.clinic.example], URI [spiffe://clinic.example/authority], 2026-11-22T11:59:00Z to 2026-11-22T13:00:00Z",
		"identity root": "version 3, ECDSA-SHA256, CN=root of scoring " + short(id) + ", " + org + ", CA true 0 true, usage 32, extended [], DNS [], URI [], " + life,
		"cross":         "version 3, ECDSA-SHA256, CN=root of scoring " + short(id) + ", " + org + ", CA true 0 true, usage 32, extended [], DNS [], URI [], " + life,
		"shared": "version 3, ECDSA-SHA256, CN=scoring " + short(id) + ", " + org + ", CA false -1 false, usage 1, extended [serverAuth clientAuth], " +
			"DNS [scoring.clinic.example score.clinic.example], URI [spiffe://clinic.example/task/scoring], 2026-11-22T11:59:00Z to 2026-11-22T13:00:00Z",
		"unit of scoring": "version 3, ECDSA-SHA256, CN=scoring " + short(id) + ", " + org + ", CA false -1 false, usage 1, extended [], " +
			"DNS [], URI [spiffe://clinic.example/task/scoring], 2026-11-22T11:59:00Z to 2026-11-22T13:00:00Z",
		"TLS leaf of a unit of keys": "version 3, ECDSA-SHA256, CN=keys " + short(keys) + ", " + org + ", CA false -1 false, usage 1, extended [serverAuth clientAuth], " +
			"DNS [keys.clinic.example], URI [spiffe://clinic.example/task/keys], 2026-11-22T11:59:00Z to 2026-11-22T12:30:00Z",
	}
	got := w.issued(t, noon)
	for name, want := range want {
		if got := show(parse(t, got[name])[0]); got != want {
			t.Errorf("%s:\ngot  %s\nwant %s", name, got, want)
		}
	}
	identityRoot, cross := parse(t, got["identity root"])[0], parse(t, got["cross"])[0]
	if !bytes.Equal(identityRoot.RawSubjectPublicKeyInfo, cross.RawSubjectPublicKeyInfo) || !bytes.Equal(identityRoot.RawSubject, cross.RawSubject) {
		t.Error("got a cross-certificate of another key or name than the identity root's")
	}
	if got, want := wire.Sum(w.root(t).RawSubjectPublicKeyInfo), w.keys.RootDigest(); got != want {
		t.Errorf("authority root: got %v, want %v", got, want)
	}
}

// TestLongNames: with the longest names that a policy may have, certificate names stay within
// their bounds and differ from their issuers' names.
func TestLongNames(t *testing.T) {
	long := strings.Repeat("s", 63)
	w := newWorld(t, 'a', "task.scoring", "task."+long, "clinic.example", strings.Repeat("d", 60)+".example")
	id := testworld.Must(w.issuer.Identity(long, "2026.11"))
	leaf := testworld.Must(w.issuer.SharedLeaf(w.grant(t, long, "2026.11"), noon))
	for _, c := range parse(t, leaf.DER, id.Root, id.Cross) {
		if len(c.Subject.CommonName) > 64 || len(c.Subject.Organization[0]) > 64 {
			t.Errorf("got subject %v, want attributes of at most 64 bytes", c.Subject)
		}
	}
	if c := parse(t, leaf.DER)[0]; bytes.Equal(c.RawSubject, c.RawIssuer) {
		t.Errorf("got subject and issuer %v, want two names", c.Subject)
	}
}

// TestReleaseID: each input of the digest changes the release id.
func TestReleaseID(t *testing.T) {
	base := newWorld(t, 'a')
	want := testworld.Must(ReleaseID(base.policy, "scoring", "2026.11"))
	other := map[string]attest.Digest{
		"root":         testworld.Must(ReleaseID(newWorld(t, 'b').policy, "scoring", "2026.11")),
		"genesis":      testworld.Must(ReleaseID(newWorld(t, 'a', "calls = [\"keys\"]", "calls = [ ]").policy, "scoring", "2026.11")),
		"trust domain": testworld.Must(ReleaseID(newWorld(t, 'a', "clinic.example", "clinik.example").policy, "scoring", "2026.11")),
		"task":         testworld.Must(ReleaseID(newWorld(t, 'a', "task.scoring", "task.scorinh").policy, "scorinh", "2026.11")),
		"release":      testworld.Must(ReleaseID(base.policy, "scoring", "2026.10")),
	}
	for name, id := range other {
		if id == want {
			t.Errorf("%s: got the same id, want another", name)
		}
	}
	doc := base.policy.Document()
	list := doc.Tasks["scoring"].Releases["2026.11"].References
	reversed := []attest.Measurement{list[1], list[0]}
	if got := base.policy.Document().ReleaseID(base.policy.Genesis(), "scoring", reversed); got != want {
		t.Errorf("got %v from the measurements in another order, want %v", got, want)
	}
	for name, list := range map[string][]attest.Measurement{"a measurement less": list[:1], "any": {list[0], softMeasurement(5)}} {
		if got := base.policy.Document().ReleaseID(base.policy.Genesis(), "scoring", list); got == want {
			t.Errorf("%s: got the same id, want another", name)
		}
	}
	genesis, root := base.policy.Genesis(), doc.Authority.Root
	fields := [][]byte{[]byte("clinic.example"), root[:], genesis[:], []byte("scoring")}
	if got := wire.Hash(wire.LabelIdentity, append(fields, list[1].Bytes(), list[0].Bytes())...); got != want {
		t.Errorf("got %v, want %v: not the digest that the protocol defines", want, got)
	}
	if got, want := testworld.Must(LiveIDs(base.policy, "scoring")), []attest.Digest{other["release"], want}; len(got) != 2 || got[0] != want[0] || got[1] != want[1] {
		t.Errorf("live ids: got %v, want %v", got, want)
	}
}

func TestIssuerRefusals(t *testing.T) {
	w, other := newWorld(t, 'a'), newWorld(t, 'b')
	scoring, keys := w.grant(t, "scoring", "2026.11"), w.grant(t, "keys", "1.4")
	key := &unitKey("signing").PublicKey
	p384 := &testworld.Must(ecdsa.GenerateKey(elliptic.P384(), rand.Reader)).PublicKey
	offCurve := &ecdsa.PublicKey{Curve: elliptic.P256(), X: big.NewInt(1), Y: big.NewInt(1)}
	forged := scoring
	forged.Result = attest.Result{}
	mixed := scoring
	mixed.Release = keys.Release
	issuer := func(k *Keys, p policy.Approved) error { _, err := k.Issuer(p); return err }
	shared := func(g policy.Grant, at time.Time) error { _, err := w.issuer.SharedLeaf(g, at); return err }
	unit := func(g policy.Grant, key any) error { _, err := w.issuer.UnitLeaf(g, key, noon); return err }
	unitTLS := func(g policy.Grant, key any) error {
		_, err := w.issuer.UnitTLSLeaf(g, key, wire.UnitID{1}, noon)
		return err
	}
	of := func(_ any, err error) error { return err }
	tests := []struct {
		name string
		err  error
		want wire.Reason
	}{
		{"issuer of no policy", issuer(w.keys, policy.Approved{}), wire.BadPolicy},
		{"issuer of another root's policy", issuer(w.keys, other.policy), wire.WrongRoot},
		{"identity of no task", of(w.issuer.Identity("x", "1")), wire.NotFound},
		{"identity of no release", of(w.issuer.Identity("scoring", "1")), wire.NotFound},
		{"id of no policy", of(ReleaseID(policy.Approved{}, "scoring", "2026.11")), wire.BadPolicy},
		{"ids of no task", of(LiveIDs(w.policy, "x")), wire.NotFound},
		{"no grant", shared(policy.Grant{}, noon), wire.NotAllowed},
		{"grant without result", shared(forged, noon), wire.NotAllowed},
		{"grant of another policy", shared(other.grant(t, "scoring", "2026.11"), noon), wire.NotAllowed},
		{"grant of two tasks", shared(mixed, noon), wire.NotAllowed},
		{"unit without grant", unit(policy.Grant{}, key), wire.NotAllowed},
		{"unit TLS without grant", unitTLS(policy.Grant{}, key), wire.NotAllowed},
		{"shared leaf in mode unit", shared(keys, noon), wire.NotAllowed},
		{"unit TLS leaf in mode shared", unitTLS(scoring, key), wire.NotAllowed},
		{"no time", shared(scoring, time.Time{}), wire.ClockSkew},
		{"authority without time", of(w.issuer.AuthorityLeaf(time.Time{})), wire.ClockSkew},
		{"no key", unit(scoring, nil), wire.BadRequest},
		{"nil key", unit(scoring, (*ecdsa.PublicKey)(nil)), wire.BadRequest},
		{"P-384", unit(scoring, p384), wire.BadRequest},
		{"point off the curve", unit(scoring, offCurve), wire.BadRequest},
		{"P-384 for TLS", unitTLS(keys, p384), wire.BadRequest},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) { testworld.Refused(t, tt.err, tt.want) })
	}
}
