package cli

import (
	"cmp"
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/client"
	"github.com/cohort-tee/cohort/identity"
	"github.com/cohort-tee/cohort/internal/api"
	"github.com/cohort-tee/cohort/internal/wire"
	"github.com/cohort-tee/cohort/policy"
	"github.com/spf13/cobra"
)

func (a *app) groupCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "group", Short: "Approve, withdraw from and check groups of several parties"}
	cmd.AddCommand(
		a.groupApproveCommand(), a.groupWithdrawCommand(), a.groupStatusCommand(), a.groupShowCommand(), a.groupVerifyCommand(),
	)
	return cmd
}

// pactOf finds a group of the policy, with exactly the digest that was given.
func pactOf(p policy.Approved, group, digest string) (*policy.Pact, error) {
	pact := p.Pact(group)
	if pact == nil {
		return nil, wire.Refuse(wire.NotFound, "group", group, strings.Join(p.Document().GroupNames(), ", "))
	}
	if digest == "" {
		return pact, nil
	}
	id, err := wire.ParseDigest(digest)
	if err != nil {
		return nil, usage("--digest: %w", err)
	}
	of := p.PactOf(id)
	if of == nil || of.Group.Name != group {
		return nil, wire.Refuse(wire.StaleRoster, "group "+group+": identity", pact.ID(), id)
	}
	return of, nil
}

// acknowledged demands the authority's signature that the statement is in the
// history.
func (a *app) acknowledged(p policy.Approved, said api.SignedStatement, h api.StatementReceipt) error {
	if h.Statement != wire.Sum(said.Statement) || len(h.Chain) != 2 {
		return wire.Refuse(wire.BadDigest, "acknowledgement: statement", h.Statement, wire.Sum(said.Statement))
	}
	var chain []*x509.Certificate
	for _, der := range h.Chain {
		c, err := x509.ParseCertificate(der)
		if err != nil {
			return wire.Refuse(wire.Malformed, "acknowledgement: certificate", "", "X.509, DER")
		}
		chain = append(chain, c)
	}
	_, err := identity.Check(chain[:1], chain[1], identity.Expect{
		Policy: p, Kinds: []identity.Kind{identity.KindAuthority}, Use: identity.UseSigning, At: a.now(),
	})
	if err != nil {
		return err
	}
	if chain[0].CheckSignature(x509.ECDSAWithSHA256, api.StatementReceiptMessage(h), h.Signature) != nil {
		return wire.Refuse(wire.BadSignature, "acknowledgement: signature", "one that does not verify", "the authority's")
	}
	return nil
}

func (a *app) groupStatusCommand() *cobra.Command {
	cmd, _ := a.remote("status GROUP", "Show who approves a group, who is missing, and until when", cobra.ExactArgs(1),
		func(ctx context.Context, c authorityClient, _ *remoteFlags, args []string) error {
			pact, err := pactOf(c.policy, args[0], "")
			if err != nil {
				return err
			}
			held, err := a.groupRoot(ctx, c, pact)
			if err != nil { // the group may have ended with the machines that held it
				a.say("note: the root of group %s: %v", args[0], err)
			}
			v := struct {
				*groupView
				filling
			}{a.viewGroup(pact, held.digest), fillingOf(c.policy)}
			return a.emit("group-status", v, v.status("")+v.filling.String())
		})
	cmd.Long = "Show who approves a group, who is missing, and until when. `group-root` stands at\n" +
		"a party that approved another root of the group than the authority holds now."
	return cmd
}

func (a *app) groupShowCommand() *cobra.Command {
	cmd, _ := a.remote("show GROUP", "Show the roster of a group: what its parties approve", cobra.ExactArgs(1),
		func(_ context.Context, c authorityClient, _ *remoteFlags, args []string) error {
			pact, err := pactOf(c.policy, args[0], "")
			if err != nil {
				return err
			}
			v := a.viewGroup(pact, attest.Digest{})
			return a.emit("group", v, v.tree()+"floors    "+v.Floors+"\nauthority "+v.Authorities+"\n")
		})
	return cmd
}

func (a *app) groupVerifyCommand() *cobra.Command {
	var p pinFlags
	cmd := &cobra.Command{
		Use:   "verify GROUP",
		Short: "Check a group: its authority, parties, programs, platforms and approvals",
		Long: "Check that the parties approve the group now, under policy that the pinned owners\n" +
			"signed, at an authority whose evidence holds. With --digest it must be exactly\n" +
			"that group; with --party-key a party with one of the keys must approve it.",
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			p.group = args[0]
			return a.verifyGroup(cmd.Context(), p)
		},
	}
	p.registerAuthority(cmd)
	p.registerParty(cmd)
	cmd.Flags().StringVar(&p.id, "digest", "", "identity that the group must have")
	return cmd
}

func (a *app) verifyGroup(ctx context.Context, p pinFlags) error {
	t, err := a.trust(ctx, p)
	if err != nil {
		return err
	}
	v := a.viewGroup(t.Group(), wire.Sum(t.Identities()[0].Root.RawSubjectPublicKeyInfo))
	v.trusted(t)
	return a.emit("group-verify", v, v.tree())
}

// groupView is a group, as people and programs read it.
type groupView struct {
	Name        string      `json:"group"`
	TrustDomain string      `json:"trust_domain"`
	Identity    string      `json:"identity"`
	Genesis     string      `json:"genesis"`
	Root        string      `json:"authority_root"`
	Authority   string      `json:"authority,omitempty"` // appraised just now
	GroupRoot   string      `json:"group_root,omitempty"`
	KeyMode     string      `json:"key_mode"`
	Until       time.Time   `json:"until"`
	Quorum      int         `json:"quorum"`
	Agreed      bool        `json:"agreed"`
	Ends        time.Time   `json:"approved_until,omitzero"`
	Parties     []partyView `json:"parties"`
	Roles       []roleView  `json:"roles"`
	Former      *formerView `json:"former,omitempty"` // what the roster agreed on last demands
	Floors      string      `json:"floors"`
	Authorities string      `json:"authorities"` // that may hold the group's root
	Continues   *groupView  `json:"continues,omitempty"`
}

type partyView struct {
	Name        string    `json:"name"`
	Key         string    `json:"key"`
	Fingerprint string    `json:"fingerprint"` // of the key, as ssh-keygen prints it
	Says        string    `json:"says"`        // "nothing", "approves", "withdrew", "approval ended", "group-root"
	Number      uint64    `json:"number,omitempty"`
	NotAfter    time.Time `json:"not_after,omitzero"`
	GroupRoot   string    `json:"group_root,omitempty"` // that it approved
}

// formerView is what the roster that was agreed on last under the group's name demands.
type formerView struct {
	Quorum   int      `json:"quorum"`
	Approved []string `json:"approved"`
	Missing  []string `json:"missing"`
}

type roleView struct {
	Name    string       `json:"name"`
	Calls   []string     `json:"calls"`
	Members []memberView `json:"members"`
}

type memberView struct {
	Party     string   `json:"party"`
	Task      string   `json:"task"`
	Release   string   `json:"release"`
	Identity  string   `json:"identity"`
	Platforms []string `json:"platforms,omitempty"`
	Dynamic   bool     `json:"dynamic,omitempty"` // it may load code that is not measured
}

// viewGroup is a group under a root of it; the zero digest is one that its parties
// approve.
func (a *app) viewGroup(p *policy.Pact, root attest.Digest) *groupView {
	said := statements(p)
	if root.IsZero() {
		root = policy.ApprovedRoot(a.now())(p)
	}
	r, agreed := p.Roster, p.Agreement(root, a.now())
	v := &groupView{
		Name: r.Group, TrustDomain: r.TrustDomain, Identity: p.ID().String(), Genesis: r.Genesis.Hex(), Root: r.Root.String(),
		KeyMode: string(r.KeyMode), Until: r.Until, Quorum: r.Quorum, Floors: r.Floors, Authorities: r.Authority,
		Agreed: !agreed.Ends.IsZero(), Ends: agreed.Ends,
	}
	if !root.IsZero() {
		v.GroupRoot = root.String()
	}
	if agreed.Former != nil {
		v.Former = &formerView{agreed.Former.Quorum, agreed.Former.Approved, agreed.Former.Missing}
	}
	for _, party := range r.Parties {
		_, err := p.Consents(root, party.Key, a.now())
		v.Parties = append(v.Parties, viewParty(party, said, err))
	}
	for _, role := range r.Roles {
		row := roleView{Name: role.Name, Calls: role.Calls}
		for _, m := range role.Members {
			row.Members = append(row.Members, memberView{Party: m.Party, Task: m.Task, Release: m.Release, Identity: m.Identity.String()})
		}
		v.Roles = append(v.Roles, row)
	}
	if p.Before != nil {
		v.Continues = a.viewGroup(p.Before, attest.Digest{})
	}
	return v
}

// viewParty is a party with its newest statement; refused is why that does not count
// as its approval.
func viewParty(party policy.RosterParty, said []policy.Statement, refused error) partyView {
	v := partyView{Name: party.Name, Key: party.Key.String(), Fingerprint: fingerprint(party.Key), Says: "nothing"}
	i := slices.IndexFunc(said, func(s policy.Statement) bool { return s.Key == party.Key })
	if i < 0 {
		return v
	}
	v.Number, v.NotAfter, v.GroupRoot = said[i].Number, said[i].NotAfter, said[i].GroupRoot.String()
	switch {
	case refused == nil:
		v.Says = "approves"
	case errors.Is(refused, wire.Withdrawn):
		v.Says = "withdrew"
	case errors.Is(refused, wire.Expired):
		v.Says = "approval ended"
	default:
		v.Says = "group-root"
	}
	return v
}

// trusted adds what only trust tells: the authority, and the platforms of the
// members.
func (v *groupView) trusted(t *client.Trust) {
	v.Authority = t.Evidence().Measurement().String()
	tasks := t.Policy().Document().Tasks
	for i := range v.Roles {
		for j, m := range v.Roles[i].Members {
			if tasks[m.Task] == nil || tasks[m.Task].Releases[m.Release] == nil {
				continue
			}
			v.Roles[i].Members[j].Dynamic = tasks[m.Task].Releases[m.Release].Dynamic
			for _, ref := range tasks[m.Task].Releases[m.Release].References {
				v.Roles[i].Members[j].Platforms = append(v.Roles[i].Members[j].Platforms, ref.String())
			}
		}
	}
}

// status is one line for each party.
func (v *groupView) status(indent string) string {
	var b strings.Builder
	state := "not agreed"
	if v.Agreed {
		state = "agreed until " + rfc3339(v.Ends)
	}
	fmt.Fprintf(&b, "%sgroup %s of %s: %s\n%s  identity %s\n%s  root     %s\n%s  %d of these parties must approve, and for each program its own:\n",
		indent, v.Name, v.TrustDomain, state, indent, v.Identity, indent, cmp.Or(v.GroupRoot, "none"), indent, v.Quorum)
	for _, p := range v.Parties {
		fmt.Fprintf(&b, "%s  %-12s %s%s\n", indent, p.Name, p.Says, until(p))
	}
	if v.Former != nil {
		fmt.Fprintf(&b, "%s  %d of the parties of the roster before must approve as well: %s; missing %s\n", indent, v.Former.Quorum,
			cmp.Or(strings.Join(v.Former.Approved, ", "), "none did"), cmp.Or(strings.Join(v.Former.Missing, ", "), "none"))
	}
	if v.Continues != nil {
		b.WriteString(indent + "  continues:\n" + v.Continues.status(indent+"    "))
	}
	return b.String()
}

func until(p partyView) string {
	switch p.Says {
	case "approves":
		return " until " + rfc3339(p.NotAfter)
	case "group-root":
		return ": approved root " + p.GroupRoot
	}
	return ""
}

// tree is the group as `group verify` prints it.
func (v *groupView) tree() string {
	var b strings.Builder
	state := "NOT AGREED"
	if v.Agreed {
		state = "agreed until " + rfc3339(v.Ends)
	}
	fmt.Fprintf(&b, "%s: %s\n├─ group\n│  ├─ identity     %s\n│  ├─ domain       %s\n│  ├─ genesis      %s\n│  ├─ key mode     %s\n│  └─ ends         %s\n",
		v.Name, state, v.Identity, v.TrustDomain, v.Genesis, v.KeyMode, rfc3339(v.Until))
	fmt.Fprintf(&b, "├─ authority\n│  ├─ root         %s\n│  ├─ group root   %s\n│  └─ code         %s\n",
		v.Root, cmp.Or(v.GroupRoot, "none approved"), cmp.Or(v.Authority, "not asked"))
	fmt.Fprintf(&b, "├─ approvals (%d needed)\n", v.Quorum)
	for i, p := range v.Parties {
		fmt.Fprintf(&b, "│  %s %-12s %s%s, key %s\n", twig(i, len(v.Parties)), p.Name, p.Says, until(p), p.Fingerprint)
	}
	b.WriteString("└─ roles\n")
	for i, r := range v.Roles {
		below := "│ "
		if i == len(v.Roles)-1 {
			below = "  "
		}
		fmt.Fprintf(&b, "   %s %s, calls %s\n", twig(i, len(v.Roles)), r.Name, cmp.Or(strings.Join(r.Calls, ", "), "nobody"))
		for j, m := range r.Members {
			fmt.Fprintf(&b, "   %s %s %s: task %s release %s, identity %s\n", below, twig(j, len(r.Members)), m.Party, m.Task, m.Release, m.Identity)
			if m.Dynamic {
				fmt.Fprintf(&b, "   %s    dynamic: loads code that is not measured\n", below)
			}
			for _, platform := range m.Platforms {
				fmt.Fprintf(&b, "   %s    %s\n", below, platform)
			}
		}
	}
	return b.String()
}

func twig(i, n int) string {
	if i == n-1 {
		return "└─"
	}
	return "├─"
}
