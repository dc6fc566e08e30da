package channelhttp

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/binary"
	"fmt"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/attest/attesttest"
	"github.com/cohort-tee/cohort/identity"
	"github.com/cohort-tee/cohort/internal/bhttp"
	"github.com/cohort-tee/cohort/internal/channel"
	"github.com/cohort-tee/cohort/internal/testworld"
	"github.com/cohort-tee/cohort/internal/unitauth"
	"github.com/cohort-tee/cohort/internal/wire"
	"github.com/cohort-tee/cohort/policy"
)

// cpu returns the process's CPU time in nanoseconds.
func cpu() int64 {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		panic(err)
	}
	return u.Utime.Nano() + u.Stime.Nano()
}

// measured reports the CPU time of one operation: f runs it n times.
func measured(b *testing.B, f func()) {
	b.ReportAllocs()
	before := cpu()
	for b.Loop() {
		f()
	}
	b.ReportMetric(float64(cpu()-before)/float64(b.N), "cpu-ns/op")
}

// adopt edits the world's policy into the next one and puts it in force for clients and
// certificate reports. Units learn of it by [channel.Host.Follow].
func (w *world) adopt(edits ...string) policy.Approved {
	w.T.Helper()
	const created = "created      = "
	next := testworld.Must(w.policy.Next(w.SignPolicy(w.NextText(w.policy, append(edits, created+w.policy.Document().Created.Format(time.RFC3339),
		created+w.clock.Now().UTC().Truncate(time.Second).Format(time.RFC3339))...))))
	w.mu.Lock()
	defer w.mu.Unlock()
	w.policy, w.issuer = next, testworld.Must(w.keys.Issuer(next))
	return next
}

// cutOff puts a policy in force, as adopt does, that cuts one more unit off.
func (w *world) cutOff(id wire.UnitID) policy.Approved {
	w.T.Helper()
	const table, key = "[task.scoring]\n", "cut_units = ["
	if strings.Contains(string(w.policy.Document().Source()), key) {
		return w.adopt(key, fmt.Sprintf("%s%q, ", key, id))
	}
	return w.adopt(table, fmt.Sprintf("%s%s%q]\n", table, key, id))
}

// renewed generates new ring keys, as the authority does at a cut, and gives a host its
// report under the world's policy.
func (w *world) renewed(h *channel.Host, release string) {
	w.T.Helper()
	h.Follow(w.policy)
	testworld.Must(0, h.Update(w.standing(w.keyOf(h), release)))
}

func (w *world) drawRings() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.ring = identity.Ring{Strict: identity.NewRingKeys(w.clock.Now(), time.Hour), Follow: identity.NewRingKeys(w.clock.Now(), time.Hour)}
}

// cutRings replaces all ring keys of the world, as a cut-off does, and updates a host with
// its new credentials.
func (w *world) cutRings(h *channel.Host) {
	w.T.Helper()
	w.mu.Lock()
	w.ring = identity.Ring{Strict: identity.NewRingKeys(noon, time.Hour), Follow: identity.NewRingKeys(noon, time.Hour)}
	w.mu.Unlock()
	if err := h.Update(w.standing(w.keyOf(h), "1")); err != nil {
		w.T.Fatal(err)
	}
}

// relabel encodes a sealed session again after a change to one of its parts: associated
// data, nonce, ciphertext.
func relabel(sealed []byte, field int, change func([]byte) []byte) []byte {
	f := testworld.Must(wire.Unframe(wire.LabelSealedSession, sealed, 3))
	f[field] = change(bytes.Clone(f[field]))
	return wire.Frame(wire.LabelSealedSession, f...)
}

// inAD changes one field of the associated data.
func inAD(sealed []byte, field int, change func([]byte) []byte) []byte {
	return relabel(sealed, 0, func(ad []byte) []byte {
		f := testworld.Must(wire.Unframe(wire.LabelSealed, ad, 6))
		f[field] = change(bytes.Clone(f[field]))
		return wire.Frame(wire.LabelSealed, f...)
	})
}

// pairs collects the (subkey, nonce) pairs under which messages were encrypted, from the
// bytes sent. It identifies a subkey by the inputs of its derivation, which are complete.
type pairs struct {
	mu    sync.Mutex
	seen  map[string]int
	count int
	twice int
}

func (p *pairs) message(subkey string, chunks []byte) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.seen == nil {
		p.seen = map[string]int{}
	}
	for n := 0; len(chunks) >= lengthSize; n++ {
		size := lengthSize + int(binary.BigEndian.Uint32(chunks)&^finalBit)
		pair := fmt.Sprint(subkey, " ", n)
		p.seen[pair]++
		p.count++
		if p.seen[pair] > 1 {
			p.twice++
		}
		chunks = chunks[size:]
	}
}

// x25519 returns a key configuration without its first key.
func x25519(k unitauth.OHTTPKeys) unitauth.OHTTPKeys {
	return testworld.Must(unitauth.UnverifiedOHTTPKeys(k.Plain[2+binary.BigEndian.Uint16(k.Plain):]))
}

func flip(b []byte) []byte { b[len(b)-1] ^= 1; return b }

// ends are extreme values that a peer may choose for a 64-bit number.
var ends = []uint64{0, 1, 1 << 31, 1<<32 - 1, 1<<63 - 1, 1 << 63, 1<<64 - 2, 1<<64 - 1}

// noon is the time of most tests.
var noon = testworld.Noon

// world is an authority with its policy, built from the real packages below channelhttp.
type world struct {
	*testworld.World
	clock  *testworld.Clock
	keys   *identity.Keys
	policy policy.Approved
	issuer *identity.Issuer
	ring   identity.Ring

	mu      sync.Mutex                        // guards the fields that tests change while units run: policy, issuer, ring
	signing map[wire.UnitID]*ecdsa.PrivateKey // of hosts
}

const tasks = `
[task.other]
key_mode = "shared"
names = ["other.clinic.example"]
[task.other.release."1"]
reference = [ { platform = "soft", program = "other" } ]
[task.scoring]
key_mode = "shared"
names = ["scoring.clinic.example"]
lifetime = "1h"
[task.scoring.release."1"]
reference = [ { platform = "soft", program = "scoring 1" } ]
[task.scoring.release."2"]
reference = [ { platform = "soft", program = "scoring 2" } ]
continues = "1"
`

func newWorld(t testing.TB) *world {
	t.Helper()
	w := &world{World: testworld.New(t), signing: map[wire.UnitID]*ecdsa.PrivateKey{}, clock: testworld.NewClock(noon), keys: testworld.Must(identity.Derive(identity.NewSecret()))}
	w.policy = w.SignFirst(w.keys.RootDigest(), tasks).Policy()
	w.issuer = testworld.Must(w.keys.Issuer(w.policy))
	w.ring = identity.Ring{Strict: identity.NewRingKeys(noon, time.Hour), Follow: identity.NewRingKeys(noon, time.Hour)}
	return w
}

// unitClock is the clock of units.
func (w *world) unitClock() (time.Time, error) { return w.clock.Now(), nil }

func (w *world) root() *x509.Certificate {
	return testworld.Must(x509.ParseCertificate(w.issuer.AuthorityRoot()))
}

func (w *world) trust() unitauth.Trust {
	w.mu.Lock()
	defer w.mu.Unlock()
	return unitauth.Trust{Policy: w.policy, Root: w.root(), Verifier: attesttest.Verifier()}
}

func (w *world) Renew(context.Context) unitauth.Trust { return w.trust() }

func (w *world) id(release string) attest.Digest {
	return testworld.Must(identity.ReleaseID(w.policy, "scoring", release))
}

func (w *world) byTask() unitauth.Pin {
	return unitauth.Pin{Genesis: w.policy.Genesis(), Task: "scoring"}
}

func (w *world) byID() unitauth.Pin { return unitauth.Pin{Genesis: w.policy.Genesis(), ID: w.id("1")} }

func newKey() *ecdsa.PrivateKey {
	return testworld.Must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
}

// standing returns the credentials of a unit of scoring with this key.
func (w *world) standing(key *ecdsa.PrivateKey, release string) channel.UnitCredentials {
	w.T.Helper()
	leaf := testworld.Must(w.issuer.UnitLeaf(w.Grant(w.policy, "scoring", "scoring "+release, noon), key.Public(), w.clock.Now()))
	cross := testworld.Must(w.issuer.Identity("scoring", release)).Cross
	chain := []*x509.Certificate{testworld.Must(x509.ParseCertificate(leaf.DER)), testworld.Must(x509.ParseCertificate(cross))}
	peer := testworld.Must(identity.Check(chain, w.root(), identity.Expect{
		Policy: w.policy, Kinds: []identity.Kind{identity.KindUnit}, Use: identity.UseSigning, At: w.clock.Now(), IDs: []attest.Digest{w.id(release)},
	}))
	return channel.UnitCredentials{
		Task: "scoring", Identity: w.id(release), Genesis: w.policy.Genesis(), Root: w.keys.RootDigest(), Head: w.policy.PolicyHead(),
		Unit: leaf.DER, Cross: cross, NotAfter: leaf.NotAfter, Facts: peer.Facts(), Ring: copyRing(w.ring),
	}
}

// copyRing returns a copy as a report contains it: a unit owns its copy.
func copyRing(r identity.Ring) identity.Ring {
	keys := func(k identity.RingKeys) identity.RingKeys {
		for _, p := range []**identity.RingKey{&k.Previous, &k.Current, &k.Next} {
			if *p != nil {
				*p = testworld.Must(identity.OpenRingKey((*p).Expose(), (*p).Expires()))
			}
		}
		return k
	}
	r.Strict, r.Follow, r.Inherited.Keys = keys(r.Strict), keys(r.Follow), keys(r.Inherited.Keys)
	return r
}

// host returns a unit of scoring 1.
func (w *world) host(limits channel.Limits) *channel.Host {
	w.T.Helper()
	key := newKey()
	h := testworld.Must(channel.NewHost(key, limits))
	w.mu.Lock()
	w.signing[h.ID()] = key
	w.mu.Unlock()
	if err := h.Update(w.standing(key, "1")); err != nil {
		w.T.Fatal(err)
	}
	return h
}

// keyOf returns the signing key of a host.
func (w *world) keyOf(h *channel.Host) *ecdsa.PrivateKey {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.signing[h.ID()]
}

// opened opens a session at a host and returns both ends.
func (w *world) opened(h *channel.Host, pin unitauth.Pin) (*channel.Session, []byte) {
	w.T.Helper()
	o := testworld.Must(channel.NewClientHandshake(pin, 0))
	a := testworld.Must(h.Accept(channel.OpenRequest{Body: o.Request(), Number: 7}, w.clock.Now()))
	response, sealed, err := a.Finish(attest.Evidence{}, w.clock.Now())
	if err != nil {
		w.T.Fatal(err)
	}
	return testworld.Must(o.Finish(response, w.trust(), w.clock.Now())), sealed
}

// asked returns a sealed request without content in a session.
func asked(s *channel.Session, method string, target wire.UnitID, notAfter time.Time) []byte {
	x := testworld.Must(s.NewRequest(channel.RequestConfig{Target: target, NotAfter: notAfter}))
	return testworld.Must(x.Whole(bhttp.Head{Method: method, Scheme: "https", Authority: "scoring.clinic.example", Path: "/"}, nil))
}

// brought delivers a request to a host, up to the step that accepts or refuses its number.
func brought(h *channel.Host, raw []byte, at time.Time) error {
	x, err := h.Open([wire.HeaderSize]byte(raw), bytes.NewReader(raw[wire.HeaderSize:]), at)
	if err != nil {
		return err
	}
	return x.Authenticate(nil, func() (time.Time, error) { return at, nil })
}

// Sizes of the protocol, in bytes: docs/spec/channel.md.
const (
	lengthSize   = 4
	finalBit     = 1 << 31
	answerPrefix = 16 + 16
)
