package unit

import (
	"context"
	"fmt"
	"net/http"
	"testing"
	"time"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/internal/testworld"
	"github.com/cohort-tee/cohort/internal/wire"
	"github.com/cohort-tee/cohort/unit/unittest"
)

// partied returns a world whose policy has a group of two parties with a quorum of one.
// Both parties bring the same program for the role scorer.
func partied(t *testing.T) *unittest.World {
	t.Helper()
	w := unittest.New(t, "1h")
	w.Keys["north"], w.Keys["south"] = testworld.NewKey(), testworld.NewKey()
	return w.Edited("[task.other]", fmt.Sprintf(`[group.trial]
key_mode = "unit"
quorum = 1
until = %s
term = "8760h"
party = [ %s ]
[group.trial.role]
holder = { members = [ { party = "north", task = "keys", release = "1" } ] }
scorer = { members = [ { party = "north", task = "scoring", release = "1" }, { party = "south", task = "scoring", release = "1" } ], calls = ["holder"] }
[task.other]`, time.Now().Add(20*time.Hour).UTC().Format(time.RFC3339), w.OwnerRows("north", "south")))
}

// of returns the configuration of a unit whose party has a given key.
func of(w *unittest.World, party attest.Digest, role, program string, at *unittest.Authority) Config {
	c := member(w, role, program, at)
	c.PartyKeys = []attest.Digest{party}
	return c
}

// TestOwnParty: a unit accepts certificates of a group only as its own party's program,
// under a roster that this party approves, whatever the authority admits.
func TestOwnParty(t *testing.T) {
	if testing.Short() {
		t.Skip("SKIPPED: that a unit checks its own party is not shown; run without -short")
	}
	w := partied(t)
	w.Says("north", false)
	silent := w.Authority(w.AuthorityKeys)
	w.Says("south", false)
	both := w.Authority(w.AuthorityKeys)
	w.Says("south", true)
	withdrew := w.Authority(w.AuthorityKeys)
	north := []attest.Digest{w.Keys["north"].Digest()}
	for name, tt := range map[string]struct {
		at     *unittest.Authority
		admits []attest.Digest // parties for which the authority admits the unit; nil means the unit's own
		change func(*Config)
		want   wire.Reason // empty if it enrols
	}{
		"its party approves":             {both, nil, func(*Config) {}, ""},
		"the key before, and the new":    {both, nil, func(c *Config) { c.PartyKeys = append(c.PartyKeys, attest.Digest{1}) }, ""},
		"this roster":                    {both, nil, func(c *Config) { c.Roster = w.Policy().GroupByName("trial").ID() }, ""},
		"another roster":                 {both, north, func(c *Config) { c.Roster[0] = 1 }, wire.StaleRoster},
		"no party of the role":           {both, north, func(c *Config) { c.PartyKeys = []attest.Digest{{1}} }, wire.NoParty},
		"both parties":                   {both, north, func(c *Config) { c.PartyKeys = append(c.PartyKeys, w.Keys["north"].Digest()) }, wire.NoParty},
		"admitted as another party's":    {both, north, func(*Config) {}, wire.NoParty},
		"its party has said nothing":     {silent, north, func(*Config) {}, wire.NoQuorum},
		"its party withdrew":             {withdrew, north, func(*Config) {}, wire.Withdrawn},
		"honest authority, silent party": {silent, nil, func(*Config) {}, wire.NoQuorum},
	} {
		t.Run(name, func(t *testing.T) {
			tt.at.Set(func(f *unittest.Authority) { f.Faults.Party = tt.admits })
			c := of(w, w.Keys["south"].Digest(), "scorer", "scoring", tt.at)
			tt.change(&c)
			ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
			defer cancel()
			u, err := Start(ctx, c)
			if tt.want != "" {
				testworld.Refused(t, err, tt.want)
				return
			}
			testworld.NoError(t, err)
			u.Close()
		})
	}
}

// TestPeerParties: a unit that pins parties for a role connects to those parties' programs,
// and refuses other programs of that role as callers and as servers.
func TestPeerParties(t *testing.T) {
	w := partied(t)
	w.Says("north", false)
	w.Says("south", false)
	a := w.Authority(w.AuthorityKeys)
	join := func(party, role, program string, pins map[string][]attest.Digest) *Unit {
		t.Helper()
		c := of(w, w.Keys[party].Digest(), role, program, a)
		c.PeerParties = pins
		u, err := Start(testworld.ShortContext(t), c)
		testworld.NoError(t, err)
		t.Cleanup(u.Close)
		return u
	}
	northern, southern := map[string][]attest.Digest{"holder": {w.Keys["north"].Digest()}}, map[string][]attest.Digest{"holder": {w.Keys["south"].Digest()}, "scorer": {w.Keys["south"].Digest()}}
	open, closed := holders(t, join("north", "holder", "keys", nil)), holders(t, join("north", "holder", "keys", southern))
	for name, tt := range map[string]struct {
		caller  *Unit
		address string
		ok      bool
	}{
		"no pins":                           {join("north", "scorer", "scoring", nil), open, true},
		"the pinned holder":                 {join("north", "scorer", "scoring", northern), open, true},
		"another holder than the pinned":    {join("north", "scorer", "scoring", southern), open, false},
		"the scorer that the holder pins":   {join("south", "scorer", "scoring", nil), closed, true},
		"another scorer than it has pinned": {join("north", "scorer", "scoring", nil), closed, false},
	} {
		t.Run(name, func(t *testing.T) {
			config, err := tt.caller.PeerTLS("trial", "holder")
			testworld.NoError(t, err)
			c := &http.Client{Transport: &http.Transport{TLSClientConfig: config, DisableKeepAlives: true}, Timeout: 10 * time.Second}
			answer, err := c.Get("https://" + tt.address + "/table")
			if err == nil {
				answer.Body.Close()
			}
			if (err == nil) != tt.ok {
				t.Errorf("got %v", err)
			}
		})
	}
}

// TestPeerRoot: a unit refuses peers under a group root that its own party has not
// approved, although a quorum of others has.
func TestPeerRoot(t *testing.T) {
	const theirs = "another secret of the group"
	w := partied(t)
	w.Says("north", false)
	w.SaysOf(unittest.GroupKeysOf(theirs, w.Policy().GroupByName("trial").ID()).RootDigest(), "south", false)
	a, b := w.Authority(w.AuthorityKeys), w.Authority(w.AuthorityKeys)
	b.Set(func(f *unittest.Authority) { f.Secret = theirs })
	start := func(party, role, program string, at *unittest.Authority) *Unit {
		t.Helper()
		u, err := Start(testworld.ShortContext(t), of(w, w.Keys[party].Digest(), role, program, at))
		testworld.NoError(t, err)
		t.Cleanup(u.Close)
		return u
	}
	address := holders(t, start("north", "holder", "keys", a))
	for name, tt := range map[string]struct {
		caller *Unit
		ok     bool
	}{
		"under the root that its party approved": {start("north", "scorer", "scoring", a), true},
		"under the root of another party":        {start("south", "scorer", "scoring", b), false},
	} {
		t.Run(name, func(t *testing.T) {
			leaf, err := tt.caller.clientCertificate(nil)
			testworld.NoError(t, err)
			config, err := tt.caller.PeerTLS("trial", "holder")
			testworld.NoError(t, err)
			config.VerifyConnection = nil // only the holder verifies
			config.GetClientCertificate, config.Certificates = nil, append(config.Certificates, *leaf)
			c := &http.Client{Transport: &http.Transport{TLSClientConfig: config, DisableKeepAlives: true}, Timeout: 10 * time.Second}
			answer, err := c.Get("https://" + address + "/table")
			if err == nil {
				answer.Body.Close()
			}
			if (err == nil) != tt.ok {
				t.Errorf("got %v", err)
			}
		})
	}
}

// TestWithdrawnPeer: a party withdraws and its program ignores it. The peers' connections
// to that program end, and it gets no new ones.
func TestWithdrawnPeer(t *testing.T) {
	w := partied(t)
	w.Says("north", false)
	w.Says("south", false)
	a := w.Authority(w.AuthorityKeys)
	start := func(party, role, program string) *Unit {
		t.Helper()
		u, err := Start(testworld.ShortContext(t), of(w, w.Keys[party].Digest(), role, program, a))
		testworld.NoError(t, err)
		t.Cleanup(u.Close)
		return u
	}
	address := holders(t, start("north", "holder", "keys"))
	caller := start("south", "scorer", "scoring")
	leaf, err := caller.clientCertificate(nil)
	testworld.NoError(t, err)
	config, err := caller.PeerTLS("trial", "holder")
	testworld.NoError(t, err)
	config.GetClientCertificate, config.VerifyConnection = nil, nil // a twin that ignores the policy
	config.Certificates = append(config.Certificates, *leaf)
	twin := &http.Client{Transport: &http.Transport{TLSClientConfig: config}, Timeout: 10 * time.Second}
	get := func() error {
		answer, err := twin.Get("https://" + address + "/table")
		if err == nil {
			err = answer.Body.Close()
		}
		return err
	}
	testworld.NoError(t, get())
	w.Says("south", true)
	a.Set(func(f *unittest.Authority) { f.Steps = w.Entries() })
	testworld.Within(t, 10*time.Second, "the holder has ended the connection, and takes no other", func() bool { return get() != nil })
}
