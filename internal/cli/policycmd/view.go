package policycmd

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/attest/platforms"
	"github.com/cohort-tee/cohort/internal/cli/drafttext"
	"github.com/cohort-tee/cohort/internal/cli/tree"
	"github.com/cohort-tee/cohort/policy/policyfile"
	"golang.org/x/crypto/ssh"
)

// PolicyView is the content of a policy file, as people and programs read it.
type PolicyView struct {
	Digest      string        `json:"digest,omitempty"` // none yet, in a draft
	Draft       string        `json:"draft,omitempty"`  // of the first policy
	TrustDomain string        `json:"trust_domain"`
	Sequence    uint64        `json:"sequence"`
	Previous    string        `json:"previous,omitempty"`
	Created     time.Time     `json:"created"`
	Development bool          `json:"development"`
	Quorum      int           `json:"quorum"`
	Delay       string        `json:"delay"`
	Owners      []ownerView   `json:"owners"`
	Platforms   []platformRow `json:"platforms"`
	Root        string        `json:"authority_root,omitempty"`
	Machines    []string      `json:"authority_machines"` // "any" alone, or chips
	Authority   []string      `json:"authority_references"`
	Upgrades    []string      `json:"authority_upgrades"` // how another build gets the root, for each platform
	Tasks       []taskView    `json:"tasks"`
	Groups      []groupRow    `json:"groups,omitempty"`
	Warnings    []string      `json:"warnings,omitempty"` // cut-offs and floors that are void
}

type ownerView struct {
	Name string `json:"name"`
	Key  string `json:"key"`
}

type platformRow struct {
	Platform string   `json:"platform"`
	Roots    []string `json:"roots"`
	Debug    bool     `json:"debug,omitempty"`
	Bits     []string `json:"bits,omitempty"`  // demands on what hosts and launchers set
	Notes    []string `json:"notes,omitempty"` // what the rules let in, or keep out, beyond their words
}

type taskView struct {
	Name     string        `json:"name"`
	KeyMode  string        `json:"key_mode"`
	Names    []string      `json:"names"`
	Lifetime string        `json:"lifetime"`
	Units    int           `json:"units,omitempty"` // left out: any number
	Calls    []string      `json:"calls,omitempty"`
	Releases []releaseView `json:"releases"`
}

type releaseView struct {
	Name       string   `json:"name"`
	References []string `json:"references"`
	Continues  string   `json:"continues,omitempty"`
	Dynamic    bool     `json:"dynamic,omitempty"`
	Retired    bool     `json:"retired,omitempty"`

	Devices map[attest.Platform]int `json:"devices,omitempty"`
}

// groupRow is a group as the file has it, without approvals.
type groupRow struct {
	Name     string      `json:"name"`
	KeyMode  string      `json:"key_mode"`
	Names    []string    `json:"names"`
	Lifetime string      `json:"lifetime"`
	Silence  string      `json:"max_silence"` // how long its units go on without a proved head
	Until    time.Time   `json:"until"`
	Quorum   int         `json:"quorum"`
	Parties  []ownerView `json:"parties"`
	Roles    []roleRow   `json:"roles"`
}

type roleRow struct {
	Name    string   `json:"name"`
	Members []string `json:"members"` // party, task and release of each
	Calls   []string `json:"calls,omitempty"`
}

// Describe is the view of a document.
func Describe(doc *policyfile.Document) PolicyView {
	v := PolicyView{
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
		row := platformRow{Platform: string(name), Debug: doc.Platforms[name].Debug, Bits: demands(name, doc.Platforms[name])}
		for _, root := range doc.Platforms[name].Roots {
			row.Roots = append(row.Roots, root.String())
		}
		if p, _ := platforms.Supported().Lookup(name); p.Note != nil {
			row.Notes = append(row.Notes, p.Note(doc.Platforms[name]))
		}
		v.Platforms = append(v.Platforms, row)
	}
	if v.Machines = doc.Authority.Machines.Chips; doc.Authority.Machines.Any {
		v.Machines = []string{drafttext.AnyMachine}
	}
	for _, ref := range doc.Authority.References {
		v.Authority = append(v.Authority, ref.String())
	}
	v.Upgrades = upgrades(doc)
	for _, name := range doc.TaskNames() {
		v.Tasks = append(v.Tasks, describeTask(doc.Tasks[name]))
	}
	for _, name := range doc.GroupNames() {
		v.Groups = append(v.Groups, describeGroup(doc, doc.Groups[name]))
	}
	for _, w := range append(doc.Warnings(), policyfile.GroupsEnded(nil, doc)...) {
		v.Warnings = append(v.Warnings, w.String())
	}
	return v
}

// demands lists the bits that a platform's rules demand, those that they demand
// without notice included.
func demands(name attest.Platform, rules attest.Rules) []string {
	words := map[attest.Demand]string{attest.DemandSet: "set", attest.DemandClear: "clear"}
	p, _ := platforms.Supported().Lookup(name)
	var all []string
	for _, k := range p.Keys {
		if k.Kind != attest.KeyBits {
			continue
		}
		bits := *k.Bits(&rules)
		for _, bit := range k.Field.Names() {
			demand := bits[bit]
			if demand == 0 {
				demand = k.Field.Default(bit)
			}
			if words[demand] != "" {
				all = append(all, k.Field.Key+"."+bit+" "+words[demand])
			}
		}
	}
	return all
}

// upgrades list for each platform of the authority how another build of it gets the
// root: by policy, where sealing is to a set of values, else from its owners.
func upgrades(doc *policyfile.Document) []string {
	found := map[string]bool{}
	for _, ref := range doc.Authority.References {
		if p, _ := platforms.Supported().Lookup(ref.Platform); p.SealsToOthers {
			found[fmt.Sprintf("on %s another build gets the root by policy: its value in, restart, the old value out", ref.Platform)] = true
		} else {
			found[fmt.Sprintf("on %s the root belongs to one build on one chip: another gets it from the owners' shares", ref.Platform)] = true
		}
	}
	return slices.Sorted(maps.Keys(found))
}

func describeGroup(doc *policyfile.Document, g *policyfile.Group) groupRow {
	v := groupRow{Name: g.Name, KeyMode: string(g.KeyMode), Names: g.Names, Lifetime: g.Lifetime.String(), Silence: doc.Silence(g).String(), Until: g.Until, Quorum: g.Quorum}
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

func describeTask(t *policyfile.Task) taskView {
	v := taskView{Name: t.Name, KeyMode: string(t.KeyMode), Names: t.Names, Lifetime: t.Lifetime.String(), Units: t.Units, Calls: t.Calls}
	for _, name := range t.ReleaseNames() {
		r := t.Releases[name]
		view := releaseView{Name: name, Continues: r.Continues, Dynamic: r.Dynamic, Retired: r.Retired, Devices: r.Devices}
		for _, ref := range r.References {
			view.References = append(view.References, ref.String())
		}
		v.Releases = append(v.Releases, view)
	}
	return v
}

// String is the view as indented lines.
func (v PolicyView) String() string {
	root := tree.New("policy %d of %s", v.Sequence, v.TrustDomain)
	if v.Development {
		root.Add("DEVELOPMENT: soft roots may vouch; nothing is protected from its host")
	}
	if v.Draft != "" {
		root.Add("draft     %s", v.Draft)
	}
	root.Add("digest    %s", cmp.Or(v.Digest, "none yet: the draft names no root"))
	root.Add("created   %s", v.Created.Format(time.RFC3339))
	owners := root.Add("owners    %d of %d sign; loosening waits %s", v.Quorum, len(v.Owners), v.Delay)
	for _, o := range v.Owners {
		owners.Add("%-12s %s", o.Name, o.Key)
	}
	for _, p := range v.Platforms {
		platform := root.Add("platform  %s, vouched for by %s", p.Platform, strings.Join(p.Roots, ", "))
		if p.Debug {
			platform.Add("debug: TEEs whose memory their host can read are accepted")
		}
		if len(p.Bits) > 0 {
			platform.Add("demands %s", strings.Join(p.Bits, ", "))
		}
		for _, note := range p.Notes {
			platform.Add("%s", note)
		}
	}
	v.addAuthority(root)
	for _, t := range v.Tasks {
		t.addTo(root)
	}
	for _, g := range v.Groups {
		g.addTo(root)
	}
	for _, w := range v.Warnings {
		root.Add("warning   %s", w)
	}
	return root.Indented()
}

func (v PolicyView) addAuthority(root *tree.Node) {
	authority := root.Add("authority root %s", cmp.Or(v.Root, "none yet: `cohort authority init --draft` makes it"))
	if slices.Equal(v.Machines, []string{drafttext.AnyMachine}) {
		authority.Add("machines: ANY: an attacker who can forge the evidence of one chip of these platforms has the root")
	} else {
		authority.Add("machines that may hold the root: %s", strings.Join(v.Machines, ", "))
	}
	for _, line := range slices.Concat(v.Authority, v.Upgrades) {
		authority.Add("%s", line)
	}
}

func (t taskView) addTo(root *tree.Node) {
	task := root.Add("task %s: key mode %s, names %s, lifetime %s, %s", t.Name, t.KeyMode, strings.Join(t.Names, " "), t.Lifetime, unitsText(t.Units))
	if len(t.Calls) > 0 {
		task.Add("may call %s", strings.Join(t.Calls, ", "))
	}
	for _, r := range t.Releases {
		release := task.Add("release %s%s%s", r.Name, map[bool]string{true: " (dynamic: loads code that is not measured)"}[r.Dynamic],
			map[bool]string{true: " (retired: no new certificates)"}[r.Retired])
		for _, p := range slices.Sorted(maps.Keys(r.Devices)) {
			release.Add("with at least %d %s beside the TEE", r.Devices[p], p)
		}
		for _, ref := range r.References {
			release.Add("%s", ref)
		}
	}
}

// unitsText is how many units of a task may hold a place at once.
func unitsText(n int) string {
	if n == 0 {
		return "any number of units: no `units` in the file, so nothing bounds them"
	}
	return fmt.Sprintf("at most %d units", n)
}

func (g groupRow) addTo(root *tree.Node) {
	group := root.Add("group %s: key mode %s, names %s, lifetime %s, until %s", g.Name, g.KeyMode, strings.Join(g.Names, " "), g.Lifetime, g.Until.Format(time.RFC3339))
	group.Add("its units go on for %s without a proved head of the history", g.Silence)
	parties := group.Add("%d of %d parties must approve", g.Quorum, len(g.Parties))
	for _, p := range g.Parties {
		parties.Add("%-12s %s", p.Name, p.Key)
	}
	for _, r := range g.Roles {
		group.Add("role %s: %s%s", r.Name, strings.Join(r.Members, ", "), map[bool]string{true: "; may call " + strings.Join(r.Calls, ", ")}[len(r.Calls) > 0])
	}
}
