package unit

import (
	"crypto/tls"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/attest/attesttest"
	"github.com/cohort-tee/cohort/identity"
	"github.com/cohort-tee/cohort/internal/api"
	"github.com/cohort-tee/cohort/internal/testworld"
	"github.com/cohort-tee/cohort/internal/wire"
	"github.com/cohort-tee/cohort/policy"
)

// grouped is a world whose policy has a group that its one party approves:
// scorers call holders. Edits are pairs of old and new text of the policy before it.
func grouped(t *testing.T, edits ...string) *world {
	t.Helper()
	w := newWorld(t, "1h")
	for i := 0; i < len(edits); i += 2 {
		w = w.edited(edits[i], edits[i+1])
	}
	w.Keys["north"] = testworld.NewKey()
	w = w.edited("[task.other]", fmt.Sprintf(`[group.trial]
key_mode = "shared"
quorum = 1
until = 2026-01-20T00:00:00Z
term = "8760h"
party = [ %s ]
[group.trial.role]
holder = { members = [ { party = "north", task = "keys", release = "1" } ] }
idler = { members = [ { party = "north", task = "other", release = "1" } ] }
scorer = { members = [ { party = "north", task = "scoring", release = "1" } ], calls = ["holder"] }
[task.other]`, w.OwnerRows("north")))
	w = w.edited("until = 2026-01-20T00:00:00Z", "until = "+time.Now().Add(20*time.Hour).UTC().Format("2006-01-02T15:04:05Z"))
	w.says("north", false)
	return w
}

// groupKeys are the keys of a roster, as the parties' authority drew them.
func groupKeys(roster attest.Digest) *identity.GroupKeys {
	return groupKeysOf(ownSecret, roster)
}

// ownSecret is what the root of each roster comes from at the authorities of its parties.
const ownSecret = "the group's own secret"

func groupKeysOf(from string, roster attest.Digest) *identity.GroupKeys {
	seed := wire.Sum([]byte(from + roster.Hex()))
	secret, err := identity.OpenSecret(seed[:])
	if err != nil {
		panic(err)
	}
	keys, err := identity.DeriveGroup(secret, roster)
	if err != nil {
		panic(err)
	}
	return keys
}

// groupsOf are the keys of all rosters of a policy.
func groupsOf(secret string, p policy.Approved) (all []*identity.GroupKeys) {
	for _, name := range p.Document().GroupNames() {
		for pact := p.Pact(name); pact != nil; pact = pact.Before {
			all = append(all, groupKeysOf(secret, pact.ID()))
		}
	}
	return all
}

// member is the configuration of a unit in the group.
func (w *world) member(role, program string, at *fake) Config {
	c := w.config(program, at)
	c.Task, c.Group, c.Role = "", "trial", role
	c.PartyKeys = []attest.Digest{w.Policy().Pact("trial").Roster.Parties[0].Key}
	c.Attester = w.Vendor.Chip().Attester(attesttest.Measure(program))
	return c
}

// groupReport fills a report for a unit in a group.
func (f *fake) groupReport(i *identity.Issuer, p policy.Approved, request api.CertificateRequest, result attest.Result) (api.Report, error) {
	pins := policy.Pins{Parties: request.PartyKeys, Roster: request.Roster}
	if f.faults.party != nil {
		pins = policy.Pins{Parties: f.faults.party}
	}
	grant, err := p.AdmitMember(request.Group, request.Role, result, pins, func(p *policy.Pact) attest.Digest { return groupKeysOf(f.secret, p.ID()).RootDigest() }, f.clock())
	if err != nil {
		return api.Report{}, err
	}
	id, err := i.GroupIdentity(grant.Pact)
	if err != nil {
		return api.Report{}, err
	}
	report := api.Report{
		Schema: api.ReportSchema, Task: grant.Task.Name, Release: grant.Release.Name, Identity: id.ID, KeyMode: string(grant.Pact.Group.KeyMode),
		Group: request.Group, Role: request.Role, Roster: grant.Pact.Roster.Bytes(),
		IdentityCA: id.Root, Cross: id.Cross, Authority: i.AuthorityRoot(), Head: p.Head(), ProvedHead: f.prove(p), Rings: testRings(f.clock()),
	}
	return report, f.leaves(i, grant, request, &report)
}

// join starts a unit of a role.
func (w *world) join(role, program string, at *fake) *Unit {
	w.T.Helper()
	u, err := Start(w.T.Context(), w.member(role, program, at))
	testworld.NoError(w.T, err)
	w.T.Cleanup(u.Close)
	return u
}

// holders serves as a holder that tells the role of its caller, and gives the
// address.
func holders(t *testing.T, u *Unit) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	testworld.NoError(t, err)
	done := make(chan error, 1)
	go func() {
		done <- u.Serve(t.Context(), l, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			p, _ := PeerOf(r.Context())
			fmt.Fprintf(w, "%s calls %s", p.Role(), r.URL.Path)
		}))
	}()
	t.Cleanup(func() { testworld.NoError(t, <-done) })
	return l.Addr().String()
}

func TestGroupReportRefused(t *testing.T) {
	w := grouped(t)
	a := w.authority(w.keys)
	for name, tt := range map[string]struct {
		spoil func(*api.Report)
		want  wire.Reason
	}{
		"another roster":      {func(r *api.Report) { r.Roster[len(r.Roster)-1]++ }, wire.StaleRoster},
		"another identity":    {func(r *api.Report) { r.Identity[0]++ }, wire.StaleRoster},
		"another role":        {func(r *api.Report) { r.Role = "holder" }, wire.WrongIdentity},
		"a member of another": {func(r *api.Report) { r.Task = "keys" }, wire.WrongRole},
		"a task's report":     {func(r *api.Report) { r.Group, r.Role = "", "" }, wire.WrongIdentity},
		"inherited keys":      {func(r *api.Report) { r.Rings.Inherited = &api.InheritedRing{RingKeys: r.Rings.Follow} }, wire.WrongIdentity},
	} {
		t.Run(name, func(t *testing.T) {
			a.set(func(f *fake) { f.faults.report = tt.spoil })
			_, err := Start(testworld.ShortContext(t), w.member("scorer", "scoring", a))
			testworld.Refused(t, err, tt.want)
		})
	}
}

// TestGroupReportSigner: a unit in a group takes a report from the authority that its
// parties approved and from no other, the authority of the domain included.
func TestGroupReportSigner(t *testing.T) {
	if testing.Short() {
		t.Skip("SKIPPED: who may sign a report for a group is not shown; run without -short")
	}
	w := grouped(t)
	a := w.authority(w.keys)
	for name, tt := range map[string]struct {
		faults faults
		want   wire.Reason
	}{
		"the domain's authority": {faults{domainSigns: true}, wire.BadChain},
		"the domain's authority beside the group root": {faults{domainSigns: true, signed: func(s *api.SignedReport) {
			i, p := a.issuer()
			id, _ := i.GroupIdentity(p.Pact("trial"))
			s.Chain = [][]byte{s.Chain[0], id.Root, s.Chain[1]}
		}}, wire.WrongGroup},
		"a root that no party approved":       {faults{groupSecret: "the owners'"}, wire.NoQuorum},
		"sealed under no group root":          {faults{groupRoot: func(d *wire.Digest) { *d = wire.Digest{} }}, wire.WrongRoot},
		"sealed under another group root":     {faults{groupRoot: func(d *wire.Digest) { d[0]++ }}, wire.WrongRoot},
		"another group root said on the way":  {faults{sealed: func(s *api.SealedReport) { s.GroupRoot[0]++ }}, wire.BadSignature},
		"certificates under another root":     {faults{report: func(r *api.Report) { r.IdentityCA = r.Cross }}, wire.WrongRoot},
		"no group-bus certificate of its own": {faults{report: func(r *api.Report) { r.Cross = r.Authority }}, wire.WrongKind},
	} {
		t.Run(name, func(t *testing.T) {
			a.set(func(f *fake) { f.faults = tt.faults })
			u, err := Start(testworld.ShortContext(t), w.member("scorer", "scoring", a))
			if u != nil {
				u.Close()
			}
			testworld.Refused(t, err, tt.want)
		})
	}
	a.set(func(f *fake) { f.faults = faults{groupRoot: func(d *wire.Digest) { d[0]++ }} })
	_, err := Start(testworld.ShortContext(t), w.config("scoring", a))
	testworld.Refused(t, err, wire.WrongRoot)
}

func TestMemberConfigRefusals(t *testing.T) {
	w := grouped(t)
	a := w.authority(w.keys)
	for name, spoil := range map[string]func(*Config){
		"a task as well": func(c *Config) { c.Task = "scoring" },
		"no role":        func(c *Config) { c.Role = "" },
		"no group":       func(c *Config) { c.Group = "" },
		"no party key":   func(c *Config) { c.PartyKeys = nil },
		"a zero key":     func(c *Config) { c.PartyKeys = []attest.Digest{{}} },
		"a key twice":    func(c *Config) { c.PartyKeys = append(c.PartyKeys, c.PartyKeys[0]) },
		"too many keys": func(c *Config) {
			c.PartyKeys = append(c.PartyKeys, attest.Digest{1}, attest.Digest{2}, attest.Digest{3}, attest.Digest{4})
		},
		"no peer's key":  func(c *Config) { c.PeerParties = map[string][]attest.Digest{"holder": nil} },
		"a peer's role":  func(c *Config) { c.PeerParties = map[string][]attest.Digest{"Holder": {{1}}} },
		"a task's party": func(c *Config) { c.Task, c.Group, c.Role = "scoring", "", "" },
		"a task's roster": func(c *Config) {
			c.Task, c.Group, c.Role, c.PartyKeys, c.Roster = "scoring", "", "", nil, attest.Digest{1}
		},
		"a task's peers": func(c *Config) {
			c.Task, c.Group, c.Role, c.PartyKeys, c.PeerParties = "scoring", "", "", nil, map[string][]attest.Digest{"holder": {{1}}}
		},
	} {
		t.Run(name, func(t *testing.T) {
			c := w.member("scorer", "scoring", a)
			spoil(&c)
			_, err := Start(testworld.ShortContext(t), c)
			testworld.Refused(t, err, wire.BadRequest)
		})
	}
}

func TestPeerTLSRefusals(t *testing.T) {
	w := grouped(t)
	a := w.authority(w.keys)
	scorer, task := w.join("scorer", "scoring", a), w.start("scoring", a)
	for _, tt := range []struct {
		name, group, role string
		unit              *Unit
		want              wire.Reason
	}{
		{"another group", "audit", "holder", scorer, wire.WrongGroup},
		{"no group", "", "holder", task, wire.WrongGroup},
		{"a role that neither calls", "trial", "idler", scorer, wire.NotAllowed},
		{"no such role", "trial", "none", scorer, wire.NotAllowed},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := tt.unit.PeerTLS(tt.group, tt.role)
			testworld.Refused(t, err, tt.want)
		})
	}
}

// TestPeerTLSServes: one configuration serves the callers it names, and nobody
// without a certificate.
func TestPeerTLSServes(t *testing.T) {
	w := grouped(t)
	a := w.authority(w.keys)
	holder, scorer, idler := w.join("holder", "keys", a), w.join("scorer", "scoring", a), w.join("idler", "other", a)
	server, err := holder.PeerTLS("trial", "scorer")
	testworld.NoError(t, err)
	l, err := tls.Listen("tcp", "127.0.0.1:0", server)
	testworld.NoError(t, err)
	defer l.Close()
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			fmt.Fprint(c, "served") // completes the handshake, or fails
			c.Close()
		}
	}()
	served := func(config *tls.Config) bool {
		c, err := tls.Dial("tcp", l.Addr().String(), config)
		if err != nil {
			return false
		}
		defer c.Close()
		b, _ := io.ReadAll(c)
		return string(b) == "served"
	}
	client, err := scorer.PeerTLS("trial", "holder")
	testworld.NoError(t, err)
	if !served(client) {
		t.Error("the role that the group lets call is not served")
	}
	stranger := client.Clone()
	stranger.GetClientCertificate = idler.clientCertificate
	if served(stranger) {
		t.Error("another role is served")
	}
	if served(&tls.Config{InsecureSkipVerify: true}) {
		t.Error("somebody without a certificate is served")
	}
}

// TestAgentPeers: a program that knows nothing of Cohort calls a peer in plain
// HTTP, and is told the role of its own callers.
func TestAgentPeers(t *testing.T) {
	w := grouped(t)
	a := w.authority(w.keys)
	address := holders(t, w.join("holder", "keys", a))
	scorer := w.join("scorer", "scoring", a)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	testworld.NoError(t, err)
	dead := l.Addr().String()
	testworld.NoError(t, l.Close())
	proxy, err := AgentConfig{Unit: scorer, Log: slog.New(slog.DiscardHandler), Peers: []AgentPeer{{Role: "holder", Addresses: []string{dead, address}}}}.openPeers()
	testworld.NoError(t, err)
	defer proxy.close()
	url := strings.TrimPrefix(proxy.environment()[0], "PEER_HOLDER=")
	if got := proxy.fill("--to={peer.holder}/x"); got != "--to="+url+"/x" {
		t.Errorf("got argument %q", got)
	}
	for range 4 {
		answer, err := http.Get(url + "/table")
		testworld.NoError(t, err)
		body, err := io.ReadAll(answer.Body)
		testworld.NoError(t, err)
		answer.Body.Close()
		if string(body) != "scorer calls /table" {
			t.Errorf("got %q", body)
		}
	}
	for name, peer := range map[string]AgentPeer{
		"no address":        {Role: "holder"},
		"a role not called": {Role: "idler", Addresses: []string{address}},
	} {
		if _, err := (AgentConfig{Unit: scorer, Log: slog.New(slog.DiscardHandler), Peers: []AgentPeer{peer}}).openPeers(); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	behind := runAgentIn(t, w, w.join("holder", "keys", a), "http", nil)
	config, err := scorer.PeerTLS("trial", "holder")
	testworld.NoError(t, err)
	behind.user = &http.Client{Transport: &http.Transport{TLSClientConfig: config, DisableKeepAlives: true}}
	var seen struct{ Header http.Header }
	behind.json("/request", &seen, RoleField, "owner")
	if got := seen.Header.Values(RoleField); len(got) != 1 || got[0] != "scorer" {
		t.Errorf("the program is told role %q, want scorer", got)
	}
	var plain struct{ Header http.Header }
	runAgentIn(t, w, w.start("scoring", a), "http", nil).json("/request", &plain, RoleField, "owner")
	if got := plain.Header.Values(RoleField); len(got) != 0 {
		t.Errorf("without a peer the program is told role %q", got)
	}
}
