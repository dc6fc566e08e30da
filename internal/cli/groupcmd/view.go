package groupcmd

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/client"
	"github.com/cohort-tee/cohort/internal/cli/frame"
	"github.com/cohort-tee/cohort/internal/cli/partystatement"
	"github.com/cohort-tee/cohort/internal/cli/sshkey"
	"github.com/cohort-tee/cohort/internal/wire"
	"github.com/cohort-tee/cohort/policy"
)

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
func viewGroup(a *frame.App, p *policy.Pact, root attest.Digest) *groupView {
	said := partystatement.Statements(p)
	if root.IsZero() {
		root = policy.ApprovedRoot(a.Now())(p)
	}
	r, agreed := p.Roster, p.Agreement(root, a.Now())
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
		_, err := p.Consents(root, party.Key, a.Now())
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
		v.Continues = viewGroup(a, p.Before, attest.Digest{})
	}
	return v
}

// viewParty is a party with its newest statement; refused is why that does not count
// as its approval.
func viewParty(party policy.RosterParty, said []policy.Statement, refused error) partyView {
	v := partyView{Name: party.Name, Key: party.Key.String(), Fingerprint: sshkey.Fingerprint(party.Key), Says: "nothing"}
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
		state = "agreed until " + frame.RFC3339(v.Ends)
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
		return " until " + frame.RFC3339(p.NotAfter)
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
		state = "agreed until " + frame.RFC3339(v.Ends)
	}
	fmt.Fprintf(&b, "%s: %s\n├─ group\n│  ├─ identity     %s\n│  ├─ domain       %s\n│  ├─ genesis      %s\n│  ├─ key mode     %s\n│  └─ ends         %s\n",
		v.Name, state, v.Identity, v.TrustDomain, v.Genesis, v.KeyMode, frame.RFC3339(v.Until))
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
