package systest

import (
	"crypto/x509"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/attest/attesttest"
	"github.com/cohort-tee/cohort/client"
	"github.com/cohort-tee/cohort/internal/api"
	"github.com/cohort-tee/cohort/internal/testworld"
	"github.com/cohort-tee/cohort/internal/wire"
	"github.com/cohort-tee/cohort/policy"
	"github.com/cohort-tee/cohort/policy/policyfile"
	"github.com/cohort-tee/cohort/policy/sshsig"
	"github.com/cohort-tee/cohort/unit"
)

// Group is a group of a cluster's policy. Each role has one member: the first release of
// the task with the role's name, from the party with that name.
type Group struct {
	Name    string
	KeyMode policyfile.KeyMode
	Life    time.Duration
	Quorum  int
	Calls   map[string][]string // roles that each role may call, in the order of their names
	Roles   []string            // in the order of their names
	More    string              // more lines of the group's table
}

// Parties maps the names of a group's parties to their keys.
type Parties map[string]testworld.Key

// policyText returns the group in policy syntax.
func (g Group) policyText(parties Parties) string {
	var b, names strings.Builder
	for i, role := range g.Roles {
		if i > 0 {
			names.WriteString(", ")
		}
		fmt.Fprintf(&names, "{ name = %q, ssh = %q }", role, parties[role].AuthorizedKey())
	}
	until := time.Now().Add(24 * time.Hour).UTC().Format(time.RFC3339)
	fmt.Fprintf(&b, "[group.%s]\nkey_mode = %q\nquorum = %d\nuntil = %s\nlifetime = %q\nnames = [%q]\nparty = [ %s ]\n%s[group.%s.role]\n",
		g.Name, g.KeyMode, g.Quorum, until, g.Life, ServerName(g.Name), names.String(), g.More, g.Name)
	for _, role := range g.Roles {
		fmt.Fprintf(&b, "%s = { members = [ { party = %q, task = %q, release = \"1\" } ], calls = [%s] }\n", role, role, role, quoted(g.Calls[role]))
	}
	return b.String()
}

// FormGroup adds a group to the policy and returns the keys of its parties, which have
// signed no statement yet.
func (c *Cluster) FormGroup(g Group) Parties {
	c.t.Helper()
	parties := Parties{}
	for _, role := range g.Roles {
		parties[role] = testworld.NewKey()
	}
	c.Adopt("[authority]\n", g.policyText(parties)+"[authority]\n")
	return parties
}

// Adopt edits the newest policy and puts the result in force.
func (c *Cluster) Adopt(edits ...string) {
	c.t.Helper()
	step := c.NextPolicy(edits...)
	p, err := authorityOf(c.t, c).Propose(c.t.Context(), api.ProposeRequest{Policy: step.Policy, Signatures: step.Signatures})
	if err != nil || p.State != string(policy.Adopted) {
		c.t.Fatalf("adopting policy %d: %v, %s", p.Sequence, err, p.State)
	}
}

// Approved replays the authority's history.
func (c *Cluster) Approved() policy.Approved {
	c.t.Helper()
	h, err := authorityOf(c.t, c).History(c.t.Context(), 0)
	if err != nil {
		c.t.Fatal(err)
	}
	var steps []policy.Step
	for _, e := range h.Entries {
		steps = append(steps, policy.Step{Policy: e.Policy, Signatures: e.Signatures})
	}
	approved, err := policy.Replay(c.Genesis, steps)
	if err != nil {
		c.t.Fatal(err)
	}
	return approved
}

// Statement returns a party's next signed statement about a group.
func (c *Cluster) Statement(group, party string, key testworld.Key, change func(*policy.Statement)) api.SignedStatement {
	c.t.Helper()
	p := c.Approved().GroupByName(group)
	s, err := p.Statement(partyKey(p, party), c.groupRoot(p))
	if err != nil {
		c.t.Fatal(err)
	}
	if change != nil {
		change(&s)
	}
	signature, err := sshsig.Sign(key, s.Namespace(), s.Bytes())
	if err != nil {
		c.t.Fatal(err)
	}
	return api.SignedStatement{Statement: s.Bytes(), Signature: signature}
}

// groupRoot returns the public key digest of a group's root, as the authority reports it.
// The parties of these tests do not appraise it.
func (c *Cluster) groupRoot(p *policy.GroupState) attest.Digest {
	c.t.Helper()
	r, err := authorityOf(c.t, c).GroupRoot(c.t.Context(), p.Group.Name, api.GroupRootRequest{Nonce: make([]byte, 32), Roster: p.ID()})
	if err != nil {
		c.t.Fatalf("fetching the root of group %s: %v", p.Group.Name, err)
	}
	root, err := x509.ParseCertificate(r.Root)
	if err != nil {
		c.t.Fatal(err)
	}
	return wire.Sum(root.RawSubjectPublicKeyInfo)
}

// partyKey returns the digest of a party's key, by name.
func partyKey(p *policy.GroupState, party string) attest.Digest {
	for _, x := range p.Roster.Parties {
		if x.Name == party {
			return x.Key
		}
	}
	return attest.Digest{}
}

// Withdraw turns a statement into a withdrawal.
func Withdraw(s *policy.Statement) { s.Withdraws = true }

// SubmitStatement sends a party's statement to the authority.
func (c *Cluster) SubmitStatement(group, party string, key testworld.Key, change func(*policy.Statement)) (api.StatementReceipt, error) {
	c.t.Helper()
	return authorityOf(c.t, c).SubmitStatement(c.t.Context(), group, c.Statement(group, party, key, change))
}

// ApproveGroup submits the approval of every party of a group.
func (c *Cluster) ApproveGroup(group string, parties Parties) {
	c.t.Helper()
	for party, key := range parties {
		if _, err := c.SubmitStatement(group, party, key, nil); err != nil {
			c.t.Fatalf("%s approving: %v", party, err)
		}
	}
}

// MemberConfig returns the configuration of a unit in a group that runs a program. The
// unit's party is the party with the role's name.
func (c *Cluster) MemberConfig(group, role, program string) unit.Config {
	config := c.UnitConfig("", program)
	config.Group, config.Role, config.Attester = group, role, c.Chip.Attester(attesttest.Measure(program))
	if p := c.Approved().GroupByName(group); p != nil {
		if key := partyKey(p, role); !key.IsZero() {
			config.PartyKeys = []attest.Digest{key}
		}
	}
	return config
}

// StartMember starts a unit in a group that serves the handler.
func (c *Cluster) StartMember(group, role, program string, h http.Handler) *Replica {
	c.t.Helper()
	u, err := unit.Start(c.t.Context(), c.MemberConfig(group, role, program))
	if err != nil {
		c.t.Fatalf("starting a unit of role %s: %v", role, err)
	}
	return c.serveUnit(u, c.listen(), h)
}

// GroupTrust returns the trust of a client of a group.
func (c *Cluster) GroupTrust(group string) *client.Trust {
	c.t.Helper()
	trust, err := client.FetchTrust(c.t.Context(), client.TrustConfig{
		Authorities: []string{c.URL()}, Genesis: c.Genesis, Group: group, Verifier: attesttest.Verifier(),
	})
	if err != nil {
		c.t.Fatalf("trusting group %s: %v", group, err)
	}
	return trust
}
