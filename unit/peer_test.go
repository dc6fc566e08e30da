package unit

import (
	"crypto/ed25519"
	"crypto/rand"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/attest/attesttest"
	"github.com/cohort-tee/cohort/identity"
	"github.com/cohort-tee/cohort/internal/api"
	"github.com/cohort-tee/cohort/internal/wire"
	"github.com/cohort-tee/cohort/policy"
	"golang.org/x/crypto/ssh"
)

// grouped is a world whose policy has a group that its one party approves:
// scorers call holders.
func grouped(t *testing.T) *world {
	t.Helper()
	w := newWorld(t, "1h")
	_, key, err := ed25519.GenerateKey(rand.Reader)
	check(t, err)
	party, err := ssh.NewSignerFromKey(key)
	check(t, err)
	w = w.edited("[task.other]", fmt.Sprintf(`[group.trial]
key_mode = "shared"
quorum = 1
until = 2026-01-20T00:00:00Z
term = "8760h"
party = [ { name = "north", ssh = %q } ]
[group.trial.role]
holder = { members = [ { party = "north", task = "keys", release = "1" } ] }
idler = { members = [ { party = "north", task = "other", release = "1" } ] }
scorer = { members = [ { party = "north", task = "scoring", release = "1" } ], calls = ["holder"] }
[task.other]`, strings.TrimSpace(string(ssh.MarshalAuthorizedKey(party.PublicKey())))))
	w = w.edited("until = 2026-01-20T00:00:00Z", "until = "+time.Now().Add(20*time.Hour).UTC().Format("2006-01-02T15:04:05Z"))
	p := w.approved().Pact("trial")
	s := policy.Statement{TrustDomain: "clinic.example", Genesis: w.genesis(), Group: p.ID(), Party: "north", Number: 1, NotAfter: p.Group.Until}
	signature, err := policy.Sign(party, policy.ForApprove, s.Bytes())
	check(t, err)
	w.steps = append(w.steps, api.HistoryEntry{Policy: s.Bytes(), Signatures: []string{signature}})
	return w
}

// member is the configuration of a unit in the group.
func (w *world) member(role, program string, at *fake) Config {
	c := w.config(program, at)
	c.Task, c.Group, c.Role = "", "trial", role
	c.Attester = w.vendor.Chip().Attester(attesttest.Measure(program))
	return c
}

// groupReport fills a report for a unit in a group.
func (f *fake) groupReport(i *identity.Issuer, p policy.Approved, request api.CertificateRequest, result attest.Result) (api.Report, error) {
	grant, err := p.AdmitMember(request.Group, request.Role, result, f.clock())
	if err != nil {
		return api.Report{}, err
	}
	id, err := i.Group(grant.Pact)
	if err != nil {
		return api.Report{}, err
	}
	report := api.Report{
		Schema: api.ReportSchema, Task: grant.Task.Name, Release: grant.Release.Name, Identity: id.ID, KeyMode: string(grant.Pact.Group.KeyMode),
		Group: request.Group, Role: request.Role, Roster: grant.Pact.Roster.Bytes(),
		IdentityCA: id.Root, Cross: id.Cross, Authority: i.AuthorityRoot(), Head: p.Head(), Rings: testRings(f.clock()),
	}
	return report, f.leaves(i, grant, request, &report)
}

// join starts a unit of a role.
func (w *world) join(role, program string, at *fake) *Unit {
	w.t.Helper()
	u, err := Start(w.t.Context(), w.member(role, program, at))
	check(w.t, err)
	w.t.Cleanup(u.Close)
	return u
}

// holders serves as a holder that tells the role of its caller, and gives the
// address.
func holders(t *testing.T, u *Unit) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	check(t, err)
	done := make(chan error, 1)
	go func() {
		done <- u.Serve(t.Context(), l, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			p, _ := PeerOf(r.Context())
			fmt.Fprintf(w, "%s calls %s", p.Role(), r.URL.Path)
		}))
	}()
	t.Cleanup(func() { check(t, <-done) })
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
			_, err := Start(soon(t), w.member("scorer", "scoring", a))
			wantReason(t, err, tt.want)
		})
	}
}

func TestMemberConfigRefusals(t *testing.T) {
	w := grouped(t)
	a := w.authority(w.keys)
	for name, spoil := range map[string]func(*Config){
		"a task as well": func(c *Config) { c.Task = "scoring" },
		"no role":        func(c *Config) { c.Role = "" },
		"no group":       func(c *Config) { c.Group = "" },
	} {
		t.Run(name, func(t *testing.T) {
			c := w.member("scorer", "scoring", a)
			spoil(&c)
			_, err := Start(soon(t), c)
			wantReason(t, err, wire.BadRequest)
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
			wantReason(t, err, tt.want)
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
	check(t, err)
	l, err := tls.Listen("tcp", "127.0.0.1:0", server)
	check(t, err)
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
	check(t, err)
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
	check(t, err)
	dead := l.Addr().String()
	check(t, l.Close())
	proxy, err := AgentConfig{Unit: scorer, Peers: []AgentPeer{{Role: "holder", Addresses: []string{dead, address}}}}.openPeers()
	check(t, err)
	defer proxy.close()
	url := strings.TrimPrefix(proxy.environment()[0], "PEER_HOLDER=")
	if got := proxy.fill("--to={peer.holder}/x"); got != "--to="+url+"/x" {
		t.Errorf("got argument %q", got)
	}
	for range 4 {
		answer, err := http.Get(url + "/table")
		check(t, err)
		body, err := io.ReadAll(answer.Body)
		check(t, err)
		answer.Body.Close()
		if string(body) != "scorer calls /table" {
			t.Errorf("got %q", body)
		}
	}
	for name, peer := range map[string]AgentPeer{
		"no address":        {Role: "holder"},
		"a role not called": {Role: "idler", Addresses: []string{address}},
	} {
		if _, err := (AgentConfig{Unit: scorer, Peers: []AgentPeer{peer}}).openPeers(); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	behind := runAgentIn(t, w, w.join("holder", "keys", a), "http", nil)
	config, err := scorer.PeerTLS("trial", "holder")
	check(t, err)
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
