// Package bustest provides an authority that issues real certificates to units, for tests of the
// bus and the manager without a cluster. It verifies nothing.
//
// Only tests import it.
package bustest

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"testing"
	"time"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/identity"
	"github.com/cohort-tee/cohort/internal/bus"
	"github.com/cohort-tee/cohort/internal/testworld"
	"github.com/cohort-tee/cohort/policy"
)

// Tasks of every authority, all in key mode shared. Certificates of Scoring and Keys are valid
// for an hour, those of Short for 3 seconds. Keys has a second release, which continues the
// first.
const (
	Scoring = "scoring"
	Keys    = "keys"
	Short   = "short"
)

// Group and Role are the group of every authority and its only role. The first release of
// [Scoring] is the role's member.
const (
	Group = "trial"
	Role  = "scorer"
)

// DNSName returns the DNS name of a task.
func DNSName(task string) string { return task + ".clinic.example" }

// tasks is the part of every authority's policy that defines tasks and group.
const tasks = `
[task.keys]
key_mode = "shared"
names = ["keys.clinic.example"]
lifetime = "1h"
[task.keys.release."1"]
reference = [ { platform = "soft", program = "keys" } ]
[task.keys.release."2"]
continues = "1"
reference = [ { platform = "soft", program = "keys 2" } ]

[task.scoring]
key_mode = "shared"
names = ["scoring.clinic.example"]
lifetime = "1h"
[task.scoring.release."1"]
reference = [ { platform = "soft", program = "scoring" } ]

[task.short]
key_mode = "shared"
names = ["short.clinic.example"]
lifetime = "3s"
[task.short.release."1"]
reference = [ { platform = "soft", program = "short" } ]

[group.trial]
key_mode = "shared"
quorum = 1
until = UNTIL
party = [ PARTY ]
[group.trial.role]
scorer = { members = [ { party = "north", task = "scoring", release = "1" } ] }
`

// Authority issues certificates under a root of its own.
type Authority struct {
	Root   *x509.Certificate
	world  *testworld.World
	policy policy.Approved
	issuer *identity.Issuer
}

// Unit is a unit with new certificates, as after one start.
type Unit struct {
	bus.Unit
	Signing tls.Certificate // certificate of its signing key, for the bus
	Serving tls.Certificate // certificate of the shared key, for the gateway's requests
}

// New makes an authority with a root of its own.
func New(t testing.TB) *Authority {
	t.Helper()
	keys, w, now := testworld.Must(identity.Derive(identity.NewSecret())), testworld.New(t), time.Now().UTC()
	w.Keys["north"] = testworld.NewKey()
	w.SignFirst(keys.RootDigest(), tasks, testworld.Created, "created      = "+now.Add(-time.Hour).Format(time.RFC3339)+"\n",
		"UNTIL", now.Add(24*time.Hour).Format(time.RFC3339), "PARTY", w.OwnerRows("north"))
	group := testworld.Must(identity.DeriveGroup(identity.NewSecret(), w.Policy().GroupByName(Group).ID()))
	p := w.WithStep(w.Statement(Group, "north", group.RootDigest(), nil)).Policy()
	issuer := testworld.Must(keys.Issuer(p, group))
	return &Authority{Root: testworld.Must(x509.ParseCertificate(issuer.AuthorityRoot())), world: w, policy: p, issuer: issuer}
}

// Roots returns a pool with the authority's root.
func (a *Authority) Roots() *x509.CertPool {
	pool := x509.NewCertPool()
	pool.AddCert(a.Root)
	return pool
}

// AuthorityLeaf returns the authority's own leaf, directly under its root.
func (a *Authority) AuthorityLeaf() tls.Certificate {
	a.world.T.Helper()
	leaf, err := a.issuer.AuthorityLeaf(time.Now())
	testworld.NoError(a.world.T, err)
	return tls.Certificate{Certificate: [][]byte{leaf.DER, a.Root.Raw}, PrivateKey: leaf.Key}
}

// Unit returns a new unit of a task's first release.
func (a *Authority) Unit(task string) Unit { a.world.T.Helper(); return a.startProgram(task, task) }

// Successor returns a new unit of the second release of [Keys].
func (a *Authority) Successor() Unit { a.world.T.Helper(); return a.startProgram(Keys, "keys 2") }

// Member returns a new unit of the group's role, with certificates under the group root.
func (a *Authority) Member() Unit {
	a.world.T.Helper()
	p := a.policy.GroupByName(Group)
	pins := policy.Pins{Parties: []attest.Digest{a.world.Keys["north"].Digest()}}
	grant, err := a.policy.AdmitMember(Group, Role, a.world.Grant(a.policy, Scoring, Scoring, time.Now()).Result, pins, policy.ApprovedRoot(time.Now()), time.Now())
	testworld.NoError(a.world.T, err)
	id, err := a.issuer.GroupIdentity(p)
	testworld.NoError(a.world.T, err)
	return a.issueUnit(grant, id)
}

// startProgram returns a new unit of a task that runs program.
func (a *Authority) startProgram(task, program string) Unit {
	a.world.T.Helper()
	grant := a.world.Grant(a.policy, task, program, time.Now())
	return a.issueUnit(grant, testworld.Must(a.issuer.Identity(task, grant.Release.Name)))
}

func (a *Authority) issueUnit(grant policy.Grant, id identity.Identity) Unit {
	a.world.T.Helper()
	now := time.Now()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	testworld.NoError(a.world.T, err)
	signing, err := a.issuer.UnitLeaf(grant, &key.PublicKey, now)
	testworld.NoError(a.world.T, err)
	serving, err := a.issuer.SharedLeaf(grant, now)
	testworld.NoError(a.world.T, err)
	u := Unit{
		Signing: tls.Certificate{Certificate: id.Serving(signing.DER), PrivateKey: key},
		Serving: tls.Certificate{Certificate: id.Serving(serving.DER), PrivateKey: serving.Key},
	}
	u.Unit, err = bus.UnitOf(Chain(a.world.T, u.Signing), a.Roots(), now)
	testworld.NoError(a.world.T, err)
	return u
}

// Chain returns the parsed certificates of a TLS certificate.
func Chain(t testing.TB, c tls.Certificate) []*x509.Certificate {
	t.Helper()
	var chain []*x509.Certificate
	for _, der := range c.Certificate {
		parsed, err := x509.ParseCertificate(der)
		testworld.NoError(t, err)
		chain = append(chain, parsed)
	}
	return chain
}
