package channel

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"sync"
	"testing"
	"time"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/attest/attesttest"
	"github.com/cohort-tee/cohort/identity"
	"github.com/cohort-tee/cohort/internal/bhttp"
	"github.com/cohort-tee/cohort/internal/testworld"
	"github.com/cohort-tee/cohort/internal/unitauth"
	"github.com/cohort-tee/cohort/internal/wire"
	"github.com/cohort-tee/cohort/policy"
)

// noon is the time of most tests.
var noon = testworld.Noon

// world is an authority with its policy, made with the real packages that this one imports.
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

// next returns the next policy, unchanged except for its sequence.
func (w *world) next() policy.Approved {
	return testworld.Must(w.policy.Next(w.SignPolicy(w.NextText(w.policy))))
}

// unitClock is the clock of units.
func (w *world) unitClock() (time.Time, error) { return w.clock.Now(), nil }

// atNoon is the clock of a unit for which no time passes.
func atNoon() (time.Time, error) { return noon, nil }

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
func (w *world) standing(key *ecdsa.PrivateKey, release string) UnitCredentials {
	w.T.Helper()
	leaf := testworld.Must(w.issuer.UnitLeaf(w.Grant(w.policy, "scoring", "scoring "+release, noon), key.Public(), w.clock.Now()))
	cross := testworld.Must(w.issuer.Identity("scoring", release)).Cross
	chain := []*x509.Certificate{testworld.Must(x509.ParseCertificate(leaf.DER)), testworld.Must(x509.ParseCertificate(cross))}
	peer := testworld.Must(identity.Check(chain, w.root(), identity.Expect{
		Policy: w.policy, Kinds: []identity.Kind{identity.KindUnit}, Use: identity.UseSigning, At: w.clock.Now(), IDs: []attest.Digest{w.id(release)},
	}))
	return UnitCredentials{
		Task: "scoring", Identity: w.id(release), Genesis: w.policy.Genesis(), Root: w.keys.RootDigest(), Head: w.policy.PolicyHead(),
		Unit: leaf.DER, Cross: cross, NotAfter: leaf.NotAfter, Facts: peer.Facts(), Ring: copyRing(w.ring),
	}
}

// copyRing returns a copy of a ring, as a report contains it: each unit owns its copy.
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
func (w *world) host(limits Limits) *Host {
	w.T.Helper()
	key := newKey()
	h := testworld.Must(NewHost(key, limits))
	w.mu.Lock()
	w.signing[h.ID()] = key
	w.mu.Unlock()
	if err := h.Update(w.standing(key, "1")); err != nil {
		w.T.Fatal(err)
	}
	return h
}

// keyOf returns the signing key of a host.
func (w *world) keyOf(h *Host) *ecdsa.PrivateKey {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.signing[h.ID()]
}

// opened opens a session at a host, and returns the client's session and the sealed session.
func (w *world) opened(h *Host, pin unitauth.Pin) (*Session, []byte) {
	w.T.Helper()
	o := testworld.Must(NewClientHandshake(pin, 0))
	a := testworld.Must(h.Accept(OpenRequest{Body: o.Request(), Number: 7}, w.clock.Now()))
	response, sealed, err := a.Finish(attest.Evidence{}, w.clock.Now())
	if err != nil {
		w.T.Fatal(err)
	}
	return testworld.Must(o.Finish(response, w.trust(), w.clock.Now())), sealed
}

// asked returns a sealed request of a session, without content.
func asked(s *Session, method string, target wire.UnitID, notAfter time.Time) []byte {
	x := testworld.Must(s.NewRequest(RequestConfig{Target: target, NotAfter: notAfter}))
	return testworld.Must(x.Whole(bhttp.Head{Method: method, Scheme: "https", Authority: "scoring.clinic.example", Path: "/"}, nil))
}

// brought sends a request to a host, which accepts its number or refuses it.
func brought(h *Host, raw []byte, at time.Time) error {
	x, err := h.Open([wire.HeaderSize]byte(raw), bytes.NewReader(raw[wire.HeaderSize:]), at)
	if err != nil {
		return err
	}
	return x.Authenticate(nil, func() (time.Time, error) { return at, nil })
}
