package groupcmd

import (
	"cmp"
	"errors"
	"slices"
	"strings"
	"time"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/client"
	"github.com/cohort-tee/cohort/internal/cli/frame"
	"github.com/cohort-tee/cohort/internal/cli/partystatement"
	"github.com/cohort-tee/cohort/internal/cli/sshkey"
	"github.com/cohort-tee/cohort/internal/cli/tree"
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
	Status      string    `json:"state"`       // "nothing", "approves", "withdrew", "approval ended", "group-root"
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
func viewGroup(a *frame.App, p *policy.GroupState, root attest.Digest) *groupView {
	statements := partystatement.Statements(p)
	if root.IsZero() {
		root = policy.ApprovedRoot(a.Now())(p)
	}
	r, agreed := p.Roster, p.ApprovalStatus(root, a.Now())
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
		v.Parties = append(v.Parties, viewParty(party, statements, err))
	}
	for _, role := range r.Roles {
		row := roleView{Name: role.Name, Calls: role.Calls}
		for _, m := range role.Members {
			row.Members = append(row.Members, memberView{Party: m.Party, Task: m.Task, Release: m.Release, Identity: m.Identity.String()})
		}
		v.Roles = append(v.Roles, row)
	}
	if p.Predecessor != nil {
		v.Continues = viewGroup(a, p.Predecessor, attest.Digest{})
	}
	return v
}

// viewParty is a party with its newest statement; refused is why that does not count
// as its approval.
func viewParty(party policy.RosterParty, statements []policy.Statement, refused error) partyView {
	v := partyView{Name: party.Name, Key: party.Key.String(), Fingerprint: sshkey.Fingerprint(party.Key), Status: "nothing"}
	i := slices.IndexFunc(statements, func(s policy.Statement) bool { return s.Key == party.Key })
	if i < 0 {
		return v
	}
	v.Number, v.NotAfter, v.GroupRoot = statements[i].Number, statements[i].NotAfter, statements[i].GroupRoot.String()
	switch {
	case refused == nil:
		v.Status = "approves"
	case errors.Is(refused, wire.Withdrawn):
		v.Status = "withdrew"
	case errors.Is(refused, wire.Expired):
		v.Status = "approval ended"
	default:
		v.Status = "group-root"
	}
	return v
}

// trusted adds what only trust proves: the authority, and the platforms of the
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
func (v *groupView) status() *tree.Node {
	state := "not agreed"
	if v.Agreed {
		state = "agreed until " + frame.RFC3339(v.Ends)
	}
	root := tree.New("group %s of %s: %s", v.Name, v.TrustDomain, state)
	root.Add("identity %s", v.Identity)
	root.Add("root     %s", cmp.Or(v.GroupRoot, "none"))
	root.Add("%d of these parties must approve, and for each program its own:", v.Quorum)
	for _, p := range v.Parties {
		root.Add("%-12s %s%s", p.Name, p.Status, until(p))
	}
	if v.Former != nil {
		root.Add("%d of the parties of the roster before must approve as well: %s; missing %s", v.Former.Quorum,
			cmp.Or(strings.Join(v.Former.Approved, ", "), "none did"), cmp.Or(strings.Join(v.Former.Missing, ", "), "none"))
	}
	if v.Continues != nil {
		root.Add("continues:").Append(v.Continues.status())
	}
	return root
}

func until(p partyView) string {
	switch p.Status {
	case "approves":
		return " until " + frame.RFC3339(p.NotAfter)
	case "group-root":
		return ": approved root " + p.GroupRoot
	}
	return ""
}

// drawTree is the group as `group verify` prints it.
func (v *groupView) drawTree() string {
	state := "NOT AGREED"
	if v.Agreed {
		state = "agreed until " + frame.RFC3339(v.Ends)
	}
	root := tree.New("%s: %s", v.Name, state)
	facts := func(name string, rows ...[2]string) {
		part := root.Add("%s", name)
		for _, row := range rows {
			part.Add("%-12s %s", row[0], row[1])
		}
	}
	facts("group", [2]string{"identity", v.Identity}, [2]string{"domain", v.TrustDomain}, [2]string{"genesis", v.Genesis},
		[2]string{"key mode", v.KeyMode}, [2]string{"ends", frame.RFC3339(v.Until)})
	facts("authority", [2]string{"root", v.Root}, [2]string{"group root", cmp.Or(v.GroupRoot, "none approved")},
		[2]string{"code", cmp.Or(v.Authority, "not asked")})
	approvals := root.Add("approvals (%d needed)", v.Quorum)
	for _, p := range v.Parties {
		approvals.Add("%-12s %s%s, key %s", p.Name, p.Status, until(p), p.Fingerprint)
	}
	roles := root.Add("roles")
	for _, r := range v.Roles {
		role := roles.Add("%s, calls %s", r.Name, cmp.Or(strings.Join(r.Calls, ", "), "none"))
		for _, m := range r.Members {
			member := role.Add("%s: task %s release %s, identity %s", m.Party, m.Task, m.Release, m.Identity)
			if m.Dynamic {
				member.AddLine("dynamic: loads code that is not measured")
			}
			for _, platform := range m.Platforms {
				member.AddLine("%s", platform)
			}
		}
	}
	return root.Drawn()
}
