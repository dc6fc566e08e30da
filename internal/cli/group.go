package cli

import (
	"cmp"
	"context"
	"crypto/x509"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/cohort-tee/cohort/client"
	"github.com/cohort-tee/cohort/identity"
	"github.com/cohort-tee/cohort/internal/api"
	"github.com/cohort-tee/cohort/internal/wire"
	"github.com/cohort-tee/cohort/policy"
	"github.com/spf13/cobra"
	"golang.org/x/crypto/ssh"
)

func (a *app) groupCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "group", Short: "Approve, withdraw from and check groups of several parties"}
	cmd.AddCommand(
		a.groupApproveCommand(), a.groupWithdrawCommand(), a.groupStatusCommand(), a.groupShowCommand(), a.groupVerifyCommand(),
	)
	return cmd
}

// sayFlags are what a party's statement is made of.
type sayFlags struct {
	digest, party, key string
	notAfter           string
}

func (a *app) groupApproveCommand() *cobra.Command {
	var s sayFlags
	cmd, _ := a.remote("approve GROUP --digest D", "Approve a group, as one of its parties", cobra.ExactArgs(1),
		func(ctx context.Context, c authorityClient, _ *remoteFlags, args []string) error {
			return a.tellGroup(ctx, c, args[0], s, policy.ForApprove)
		})
	cmd.Long = "Approve the group whose identity has the digest D, with the party's SSH key. D\n" +
		"is what the parties agreed on beside Cohort; what a server shows is never signed."
	s.register(cmd)
	cmd.Flags().StringVar(&s.digest, "digest", "", "identity of the group that is approved, from `cohort group show`")
	cmd.Flags().StringVar(&s.notAfter, "not-after", "", "end of the approval, as 2026-12-01T00:00:00Z (default the group's end)")
	_ = cmd.MarkFlagRequired("digest")
	return cmd
}

func (a *app) groupWithdrawCommand() *cobra.Command {
	var s sayFlags
	cmd, _ := a.remote("withdraw GROUP", "Withdraw from a group, as one of its parties", cobra.ExactArgs(1),
		func(ctx context.Context, c authorityClient, _ *remoteFlags, args []string) error {
			return a.tellGroup(ctx, c, args[0], s, policy.ForWithdraw)
		})
	s.register(cmd)
	cmd.Flags().StringVar(&s.digest, "digest", "", "identity of the group (default the one of the newest policy)")
	return cmd
}

func (s *sayFlags) register(cmd *cobra.Command) {
	cmd.Flags().StringVar(&s.party, "party", "", "name of the party (default the one that has the key)")
	cmd.Flags().StringVar(&s.key, "ssh-key", "", "SSH key of the party")
	_ = cmd.MarkFlagRequired("ssh-key")
}

// tellGroup lets a party say something of a group and tells that it was heard.
func (a *app) tellGroup(ctx context.Context, c authorityClient, group string, s sayFlags, ns policy.Namespace) error {
	statement, heard, err := a.sayOfGroup(ctx, c, group, s, ns)
	if err != nil {
		return err
	}
	return a.emit("group-statement", heard, fmt.Sprintf("heard: statement %d of party %s, in the history up to head %s\n", statement.Number, statement.Party, heard.Head))
}

// sayOfGroup signs what a party says of a group and brings it to the authority,
// whose acknowledgement it checks. The history that the authority proved tells
// which group has the digest; the authority's own word is not asked for.
func (a *app) sayOfGroup(ctx context.Context, c authorityClient, group string, s sayFlags, ns policy.Namespace) (statement policy.Statement, heard api.Heard, err error) {
	pact, err := pactOf(c.policy, group, s.digest)
	if err != nil {
		return statement, heard, err
	}
	signer, closeAgent, err := a.signer(s.key)
	if err != nil {
		return statement, heard, err
	}
	defer closeAgent()
	statement = policy.Statement{
		TrustDomain: pact.Roster.TrustDomain, Genesis: pact.Roster.Genesis, Group: pact.ID(), NotAfter: pact.Roster.Until,
		Withdraws: ns == policy.ForWithdraw,
	}
	if statement.Party, err = partyOf(pact, s.party, signer.PublicKey()); err != nil {
		return statement, heard, err
	}
	statement.Number = pact.Next(statement.Party)
	if s.notAfter != "" {
		if statement.NotAfter, err = time.Parse(time.RFC3339, s.notAfter); err != nil {
			return statement, heard, usage("--not-after: got %q, want a time such as 2026-12-01T00:00:00Z", s.notAfter)
		}
	}
	a.say("%s", statement.Bytes())
	said := api.Said{Statement: statement.Bytes()}
	if said.Signature, err = policy.Sign(signer, ns, said.Statement); err != nil {
		return statement, heard, err
	}
	if heard, err = c.Say(ctx, group, said); err != nil {
		return statement, heard, err
	}
	if err := a.acknowledged(c.policy, said, heard); err != nil {
		return statement, heard, fmt.Errorf("checking the acknowledgement: %w", err)
	}
	return statement, heard, nil
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

// partyOf is the party that has the key; where a name is given, that one.
func partyOf(p *policy.Pact, name string, key ssh.PublicKey) (string, error) {
	for _, party := range p.Roster.Parties {
		if party.Key == policy.KeyDigest(key) && (name == "" || name == party.Name) {
			return party.Name, nil
		}
	}
	return "", wire.Refuse(wire.NotOwner, "group "+p.Group.Name+": key", ssh.FingerprintSHA256(key), "that of party "+name)
}

// acknowledged demands the authority's signature that the statement is in the
// history.
func (a *app) acknowledged(p policy.Approved, said api.Said, h api.Heard) error {
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
	if chain[0].CheckSignature(x509.ECDSAWithSHA256, api.HeardMessage(h), h.Signature) != nil {
		return wire.Refuse(wire.BadSignature, "acknowledgement: signature", "one that does not verify", "the authority's")
	}
	return nil
}

func (a *app) groupStatusCommand() *cobra.Command {
	cmd, _ := a.remote("status GROUP", "Show who approves a group, who is missing, and until when", cobra.ExactArgs(1),
		func(_ context.Context, c authorityClient, _ *remoteFlags, args []string) error {
			pact, err := pactOf(c.policy, args[0], "")
			if err != nil {
				return err
			}
			v := a.viewGroup(pact)
			return a.emit("group-status", v, v.status(""))
		})
	return cmd
}

func (a *app) groupShowCommand() *cobra.Command {
	cmd, _ := a.remote("show GROUP", "Show the roster of a group: what its parties approve", cobra.ExactArgs(1),
		func(_ context.Context, c authorityClient, _ *remoteFlags, args []string) error {
			pact, err := pactOf(c.policy, args[0], "")
			if err != nil {
				return err
			}
			v := a.viewGroup(pact)
			return a.emit("group", v, v.tree()+"floors "+v.Floors+"\n")
		})
	return cmd
}

// groupVerifyFlags are the flags of `cohort group verify`.
type groupVerifyFlags struct {
	digest string
	keys   []string
}

func (a *app) groupVerifyCommand() *cobra.Command {
	var p pinFlags
	var f groupVerifyFlags
	cmd := &cobra.Command{
		Use:   "verify GROUP",
		Short: "Check a group: its authority, parties, programs, platforms and approvals",
		Long: "Check that the parties approve the group now, under policy that the pinned owners\n" +
			"signed, at an authority whose evidence holds. With --digest it must be exactly\n" +
			"that group; with --party-key the party that has the key must approve it.",
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			p.group, p.id = args[0], f.digest
			return a.verifyGroup(cmd.Context(), p, f)
		},
	}
	p.registerAuthority(cmd)
	cmd.Flags().StringVar(&f.digest, "digest", "", "identity that the group must have")
	cmd.Flags().StringArrayVar(&f.keys, "party-key", nil, "SSH public key of a party that must approve; repeat")
	return cmd
}

func (a *app) verifyGroup(ctx context.Context, p pinFlags, f groupVerifyFlags) error {
	t, err := a.trust(ctx, p)
	if err != nil {
		return err
	}
	pact := t.Group()
	if len(f.keys) > 0 {
		var trusted []ssh.PublicKey
		for _, path := range f.keys {
			b, err := readFile(path, maxKeyFile)
			if err != nil {
				return err
			}
			key, _, _, _, err := ssh.ParseAuthorizedKey(b)
			if err != nil {
				return usage("--party-key: %s is not an SSH public key", path)
			}
			trusted = append(trusted, key)
		}
		if _, err := pact.Roster.Check(pact.Said(), trusted, a.now()); err != nil {
			return err
		}
	}
	v := a.viewGroup(pact)
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
	KeyMode     string      `json:"key_mode"`
	Until       time.Time   `json:"until"`
	Quorum      int         `json:"quorum"`
	Agreed      bool        `json:"agreed"`
	Ends        time.Time   `json:"approved_until,omitzero"`
	Parties     []partyView `json:"parties"`
	Roles       []roleView  `json:"roles"`
	Floors      string      `json:"floors"`
	Continues   *groupView  `json:"continues,omitempty"`
}

type partyView struct {
	Name     string    `json:"name"`
	Key      string    `json:"key"`
	Says     string    `json:"says"` // "nothing", "approves", "withdrew", "approval ended"
	Number   uint64    `json:"number,omitempty"`
	NotAfter time.Time `json:"not_after,omitzero"`
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
}

func (a *app) viewGroup(p *policy.Pact) *groupView {
	r, agreed := p.Roster, p.Agreement(a.now())
	v := &groupView{
		Name: r.Group, TrustDomain: r.TrustDomain, Identity: p.ID().String(), Genesis: r.Genesis.Hex(), Root: r.Root.String(),
		KeyMode: string(r.KeyMode), Until: r.Until, Quorum: r.Quorum, Floors: r.Floors, Agreed: !agreed.Ends.IsZero(), Ends: agreed.Ends,
	}
	for _, party := range r.Parties {
		v.Parties = append(v.Parties, a.viewParty(p, party, slices.Contains(agreed.Approved, party.Name)))
	}
	for _, role := range r.Roles {
		row := roleView{Name: role.Name, Calls: role.Calls}
		for _, m := range role.Members {
			row.Members = append(row.Members, memberView{Party: m.Party, Task: m.Task, Release: m.Release, Identity: m.Identity.String()})
		}
		v.Roles = append(v.Roles, row)
	}
	if p.Before != nil {
		v.Continues = a.viewGroup(p.Before)
	}
	return v
}

func (a *app) viewParty(p *policy.Pact, party policy.RosterParty, approves bool) partyView {
	v := partyView{Name: party.Name, Key: party.Key.String(), Says: "nothing"}
	for _, said := range p.Said() {
		s, err := policy.ParseStatement(said.Statement)
		if err != nil || s.Party != party.Name {
			continue
		}
		v.Number, v.NotAfter = s.Number, s.NotAfter
		switch {
		case s.Withdraws:
			v.Says = "withdrew"
		case approves:
			v.Says = "approves"
		default:
			v.Says = "approval ended"
		}
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
	fmt.Fprintf(&b, "%sgroup %s of %s: %s\n%s  identity %s\n%s  %d of these parties must approve:\n",
		indent, v.Name, v.TrustDomain, state, indent, v.Identity, indent, v.Quorum)
	for _, p := range v.Parties {
		fmt.Fprintf(&b, "%s  %-12s %s%s\n", indent, p.Name, p.Says, until(p))
	}
	if v.Continues != nil {
		b.WriteString(indent + "  continues:\n" + v.Continues.status(indent+"    "))
	}
	return b.String()
}

func until(p partyView) string {
	if p.Says != "approves" {
		return ""
	}
	return " until " + rfc3339(p.NotAfter)
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
	fmt.Fprintf(&b, "├─ authority\n│  ├─ root         %s\n│  └─ code         %s\n", v.Root, cmp.Or(v.Authority, "not asked"))
	fmt.Fprintf(&b, "├─ approvals (%d needed)\n", v.Quorum)
	for i, p := range v.Parties {
		fmt.Fprintf(&b, "│  %s %-12s %s%s, key %s\n", twig(i, len(v.Parties)), p.Name, p.Says, until(p), p.Key)
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
