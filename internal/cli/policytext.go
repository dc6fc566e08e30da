package cli

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/policy"
	"golang.org/x/crypto/ssh"
)

// policyView is what a policy file says, as people and programs read it.
type policyView struct {
	Digest      string        `json:"digest"`
	TrustDomain string        `json:"trust_domain"`
	Sequence    uint64        `json:"sequence"`
	Previous    string        `json:"previous,omitempty"`
	Created     time.Time     `json:"created"`
	Development bool          `json:"development"`
	Quorum      int           `json:"quorum"`
	Delay       string        `json:"delay"`
	Owners      []ownerView   `json:"owners"`
	Platforms   []platformRow `json:"platforms"`
	Root        string        `json:"authority_root"`
	Authority   []string      `json:"authority_references"`
	Tasks       []taskView    `json:"tasks"`
	Groups      []groupRow    `json:"groups,omitempty"`
}

type ownerView struct {
	Name string `json:"name"`
	Key  string `json:"key"`
}

type platformRow struct {
	Platform string   `json:"platform"`
	Roots    []string `json:"roots"`
	Debug    bool     `json:"debug,omitempty"`
}

type taskView struct {
	Name     string        `json:"name"`
	KeyMode  string        `json:"key_mode"`
	Names    []string      `json:"names"`
	Life     string        `json:"life"`
	Units    int           `json:"units"`
	Calls    []string      `json:"calls,omitempty"`
	Releases []releaseView `json:"releases"`
}

type releaseView struct {
	Name       string   `json:"name"`
	References []string `json:"references"`
	Continues  string   `json:"continues,omitempty"`
	Dynamic    bool     `json:"dynamic,omitempty"`

	Devices map[attest.Platform]int `json:"devices,omitempty"`
}

// groupRow is a group as the file has it, which says nothing of approvals.
type groupRow struct {
	Name    string      `json:"name"`
	KeyMode string      `json:"key_mode"`
	Names   []string    `json:"names"`
	Life    string      `json:"life"`
	Until   time.Time   `json:"until"`
	Quorum  int         `json:"quorum"`
	Parties []ownerView `json:"parties"`
	Roles   []roleRow   `json:"roles"`
}

type roleRow struct {
	Name    string   `json:"name"`
	Members []string `json:"members"` // party, task and release of each
	Calls   []string `json:"calls,omitempty"`
}

// describe is the view of a document.
func describe(doc *policy.Document) policyView {
	v := policyView{
		Digest: doc.Digest().String(), TrustDomain: doc.TrustDomain, Sequence: doc.Sequence, Created: doc.Created,
		Development: doc.Development, Quorum: doc.Owners.Quorum, Delay: doc.Owners.Delay.String(), Root: doc.Authority.Root.String(),
	}
	if !doc.Previous.IsZero() {
		v.Previous = doc.Previous.String()
	}
	for _, o := range doc.Owners.Keys {
		v.Owners = append(v.Owners, ownerView{o.Name, ssh.FingerprintSHA256(o.Key)})
	}
	for _, name := range slices.Sorted(maps.Keys(doc.Platforms)) {
		row := platformRow{Platform: string(name), Debug: doc.Platforms[name].Debug}
		for _, root := range doc.Platforms[name].Roots {
			row.Roots = append(row.Roots, root.String())
		}
		v.Platforms = append(v.Platforms, row)
	}
	for _, ref := range doc.Authority.References {
		v.Authority = append(v.Authority, ref.String())
	}
	for _, name := range doc.TaskNames() {
		v.Tasks = append(v.Tasks, describeTask(doc.Tasks[name]))
	}
	for _, name := range doc.GroupNames() {
		v.Groups = append(v.Groups, describeGroup(doc.Groups[name]))
	}
	return v
}

func describeGroup(g *policy.Group) groupRow {
	v := groupRow{Name: g.Name, KeyMode: string(g.KeyMode), Names: g.Names, Life: g.Life.String(), Until: g.Until, Quorum: g.Quorum}
	for _, p := range g.Parties {
		v.Parties = append(v.Parties, ownerView{p.Name, ssh.FingerprintSHA256(p.Key)})
	}
	for _, name := range g.RoleNames() {
		row := roleRow{Name: name, Calls: g.Roles[name].Calls}
		for _, m := range g.Roles[name].Members {
			row.Members = append(row.Members, strings.Join([]string{m.Party, m.Task, m.Release}, " "))
		}
		v.Roles = append(v.Roles, row)
	}
	return v
}

func describeTask(t *policy.Task) taskView {
	v := taskView{Name: t.Name, KeyMode: string(t.KeyMode), Names: t.Names, Life: t.Life.String(), Units: t.Units, Calls: t.Calls}
	for _, name := range t.ReleaseNames() {
		r := t.Releases[name]
		view := releaseView{Name: name, Continues: r.Continues, Dynamic: r.Dynamic, Devices: r.Devices}
		for _, ref := range r.References {
			view.References = append(view.References, ref.String())
		}
		v.Releases = append(v.Releases, view)
	}
	return v
}

// String is the view as indented lines.
func (v policyView) String() string {
	var b strings.Builder
	line := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }
	line("policy %d of %s", v.Sequence, v.TrustDomain)
	if v.Development {
		line("  DEVELOPMENT: soft roots may vouch; nothing is protected from its host")
	}
	line("  digest    %s\n  created   %s", v.Digest, v.Created.Format(time.RFC3339))
	line("  owners    %d of %d sign; loosening waits %s", v.Quorum, len(v.Owners), v.Delay)
	for _, o := range v.Owners {
		line("    %-12s %s", o.Name, o.Key)
	}
	for _, p := range v.Platforms {
		line("  platform  %s, vouched for by %s", p.Platform, strings.Join(p.Roots, ", "))
		if p.Debug {
			line("    debug: TEEs whose memory their host can read are accepted")
		}
	}
	line("  authority root %s", v.Root)
	for _, ref := range v.Authority {
		line("    %s", ref)
	}
	for _, t := range v.Tasks {
		line("  task %s: key mode %s, names %s, life %s, up to %d units", t.Name, t.KeyMode, strings.Join(t.Names, " "), t.Life, t.Units)
		if len(t.Calls) > 0 {
			line("    may call %s", strings.Join(t.Calls, ", "))
		}
		for _, r := range t.Releases {
			line("    release %s%s", r.Name, map[bool]string{true: " (dynamic: loads libraries that are not measured)"}[r.Dynamic])
			for _, p := range slices.Sorted(maps.Keys(r.Devices)) {
				line("      with at least %d %s beside the TEE", r.Devices[p], p)
			}
			for _, ref := range r.References {
				line("      %s", ref)
			}
		}
	}
	for _, g := range v.Groups {
		g.write(line)
	}
	return b.String()
}

func (g groupRow) write(line func(string, ...any)) {
	line("  group %s: key mode %s, names %s, life %s, until %s", g.Name, g.KeyMode, strings.Join(g.Names, " "), g.Life, g.Until.Format(time.RFC3339))
	line("    %d of %d parties must approve", g.Quorum, len(g.Parties))
	for _, p := range g.Parties {
		line("      %-12s %s", p.Name, p.Key)
	}
	for _, r := range g.Roles {
		line("    role %s: %s%s", r.Name, strings.Join(r.Members, ", "), map[bool]string{true: "; may call " + strings.Join(r.Calls, ", ")}[len(r.Calls) > 0])
	}
}
