package unit

import (
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"testing"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/attest/attesttest"
	"github.com/cohort-tee/cohort/internal/api"
	"github.com/cohort-tee/cohort/internal/testworld"
	"github.com/cohort-tee/cohort/internal/wire"
	"github.com/cohort-tee/cohort/unit/unittest"
)

// member returns the configuration of a unit in the group.
func member(w *unittest.World, role, program string, at *unittest.Authority) Config {
	c := configOf(w, program, at)
	c.Task, c.Group, c.Role = "", "trial", role
	c.PartyKeys = []attest.Digest{w.Policy().GroupByName("trial").Roster.Parties[0].Key}
	c.Attester = w.Vendor.Chip().Attester(attesttest.Measure(program))
	return c
}

// join starts a unit of a role.
func join(w *unittest.World, role, program string, at *unittest.Authority) *Unit {
	w.T.Helper()
	u, err := Start(w.T.Context(), member(w, role, program, at))
	testworld.NoError(w.T, err)
	w.T.Cleanup(u.Close)
	return u
}

// holders serves as a holder that responds with the role of its caller, and returns the
// address.
func holders(t *testing.T, u *Unit) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	testworld.NoError(t, err)
	done := make(chan error, 1)
	go func() {
		done <- u.Serve(t.Context(), l, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			p, _ := PeerOf(r.Context())
			fmt.Fprintf(w, "%s calls %s", p.RoleName(), r.URL.Path)
		}))
	}()
	t.Cleanup(func() { testworld.NoError(t, <-done) })
	return l.Addr().String()
}

func TestGroupReportRefused(t *testing.T) {
	w := unittest.Grouped(t)
	a := w.Authority(w.AuthorityKeys)
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
			a.Set(func(f *unittest.Authority) { f.Faults.Report = tt.spoil })
			_, err := Start(testworld.ShortContext(t), member(w, "scorer", "scoring", a))
			testworld.Refused(t, err, tt.want)
		})
	}
}

// TestGroupReportSigner: a unit in a group accepts reports only from the authority that its
// parties approved, not even from the authority of the trust domain.
func TestGroupReportSigner(t *testing.T) {
	if testing.Short() {
		t.Skip("SKIPPED: who may sign a report for a group is not shown; run without -short")
	}
	w := unittest.Grouped(t)
	a := w.Authority(w.AuthorityKeys)
	for name, tt := range map[string]struct {
		faults unittest.Faults
		want   wire.Reason
	}{
		"the domain's authority": {unittest.Faults{DomainSigns: true}, wire.BadChain},
		"the domain's authority beside the group root": {unittest.Faults{DomainSigns: true, Signed: func(s *api.SignedReport) {
			i, p := a.Issuer()
			id, _ := i.GroupIdentity(p.GroupByName("trial"))
			s.Chain = [][]byte{s.Chain[0], id.Root, s.Chain[1]}
		}}, wire.WrongGroup},
		"a root that no party approved":       {unittest.Faults{GroupSecret: "the owners'"}, wire.NoQuorum},
		"sealed under no group root":          {unittest.Faults{GroupRoot: func(d *wire.Digest) { *d = wire.Digest{} }}, wire.WrongRoot},
		"sealed under another group root":     {unittest.Faults{GroupRoot: func(d *wire.Digest) { d[0]++ }}, wire.WrongRoot},
		"another group root said on the way":  {unittest.Faults{Sealed: func(s *api.SealedReport) { s.GroupRoot[0]++ }}, wire.BadSignature},
		"certificates under another root":     {unittest.Faults{Report: func(r *api.Report) { r.IdentityCA = r.Cross }}, wire.WrongRoot},
		"no group-bus certificate of its own": {unittest.Faults{Report: func(r *api.Report) { r.Cross = r.Authority }}, wire.WrongKind},
	} {
		t.Run(name, func(t *testing.T) {
			a.Set(func(f *unittest.Authority) { f.Faults = tt.faults })
			u, err := Start(testworld.ShortContext(t), member(w, "scorer", "scoring", a))
			if u != nil {
				u.Close()
			}
			testworld.Refused(t, err, tt.want)
		})
	}
	a.Set(func(f *unittest.Authority) { f.Faults = unittest.Faults{GroupRoot: func(d *wire.Digest) { d[0]++ }} })
	_, err := Start(testworld.ShortContext(t), configOf(w, "scoring", a))
	testworld.Refused(t, err, wire.WrongRoot)
}

func TestMemberConfigRefusals(t *testing.T) {
	w := unittest.Grouped(t)
	a := w.Authority(w.AuthorityKeys)
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
			c := member(w, "scorer", "scoring", a)
			spoil(&c)
			_, err := Start(testworld.ShortContext(t), c)
			testworld.Refused(t, err, wire.BadRequest)
		})
	}
}

func TestPeerTLSRefusals(t *testing.T) {
	w := unittest.Grouped(t)
	a := w.Authority(w.AuthorityKeys)
	scorer, task := join(w, "scorer", "scoring", a), started(w, "scoring", a)
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

// TestPeerTLSServes: one configuration serves the callers that it names, and refuses
// connections without a certificate.
func TestPeerTLSServes(t *testing.T) {
	w := unittest.Grouped(t)
	a := w.Authority(w.AuthorityKeys)
	holder, scorer, idler := join(w, "holder", "keys", a), join(w, "scorer", "scoring", a), join(w, "idler", "other", a)
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
			fmt.Fprint(c, "served") // completes the handshake or fails
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
