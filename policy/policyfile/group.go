package policyfile

import (
	"cmp"
	"maps"
	"net/url"
	"slices"
	"strings"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/internal/wire"
	"github.com/cohort-tee/cohort/policy/policytoml"
)

// DefaultTerm is how long after the policy's creation a group may end, where it
// states no term.
const DefaultTerm = 30 * 24 * time.Hour

// Group permits tasks of several parties to work together, each in its roles. The parties
// approve its roster (policy.Roster).
type Group struct {
	Name      string
	KeyMode   KeyMode
	Quorum    int       // of parties
	Until     time.Time // no certificate outlives it
	Names     []string  // DNS names its certificates carry
	Lifetime  time.Duration
	Parties   []Party // in the order of their names
	Roles     map[string]*Role
	Continues attest.Digest // identity of the group whose units continue meanwhile; zero is none
	Authority Custody       // authorities that may have its root
}

// Party is one company of a group and its SSH key.
type Party struct {
	Name string
	Key  ssh.PublicKey
}

// Role lists the releases whose units may act in a role of a group.
type Role struct {
	Name    string
	Members []Member // in the order of party, task, release
	Calls   []string // roles it may call, in the order of their names
}

// Member is a release that one party brings into a role.
type Member struct {
	Party, Task, Release string
}

// Hosts lists the hosts of requests inside the trusted channel of a task or, if group is not
// empty, of a group: its name, and the DNS names that the policy gives it.
func (d *Document) Hosts(task, group string) []string {
	name, names := d.namesOf(task, group)
	if name == "" {
		return nil
	}
	return append([]string{name}, names...)
}

// Serves reports whether an authority (host, or host:port) names one of [Document.Hosts].
func (d *Document) Serves(task, group, authority string) bool {
	name, names := d.namesOf(task, group)
	host := (&url.URL{Host: authority}).Hostname()
	return host != "" && (strings.EqualFold(host, name) || slices.ContainsFunc(names, func(n string) bool { return strings.EqualFold(host, n) }))
}

// namesOf returns the name and the DNS names of a task or group; no name if there is none.
func (d *Document) namesOf(task, group string) (name string, names []string) {
	if g := d.Groups[group]; g != nil {
		return group, g.Names
	}
	if t := d.Tasks[task]; t != nil && group == "" {
		return task, t.Names
	}
	return "", nil
}

// GroupNames lists the groups in the order of their names.
func (d *Document) GroupNames() []string { return slices.Sorted(maps.Keys(d.Groups)) }

// RoleNames lists the roles of a group in the order of their names.
func (g *Group) RoleNames() []string { return slices.Sorted(maps.Keys(g.Roles)) }

// MayCall reports whether units of one role may call units of another.
func (g *Group) MayCall(caller, callee string) bool {
	r := g.Roles[caller]
	return r != nil && slices.Contains(r.Calls, callee)
}

// Silence returns how long a unit of the group may continue without a proved head of the
// history.
func (d *Document) Silence(g *Group) time.Duration {
	if d.MaxSilence > 0 {
		return d.MaxSilence
	}
	return g.Lifetime / 2
}

func (g *Group) party(name string) (Party, bool) {
	i := slices.IndexFunc(g.Parties, func(p Party) bool { return p.Name == name })
	if i < 0 {
		return Party{}, false
	}
	return g.Parties[i], true
}

func (d *Document) readGroups(root policytoml.Table, measured measuredNames) {
	d.Groups = map[string]*Group{}
	for _, t := range root.ReadNamedTables("group", wantName, wire.ValidName) {
		d.Groups[t.Name] = readGroup(t, d.Created)
		d.Groups[t.Name].Authority = readGroupCustody(t, measured, domainCustody(root.Values, measured))
		t.RejectUnknown()
	}
}

func readGroup(t policytoml.NamedTable, created time.Time) *Group {
	t.Require("key_mode", "quorum", "until", "party", "role")
	g := &Group{
		Name:     t.Name,
		KeyMode:  KeyMode(t.ReadText("key_mode", "shared or unit", policytoml.OneOf([]string{string(Shared), string(PerUnit)}))),
		Until:    t.ReadTime("until"),
		Names:    t.ReadSet("names", "a DNS name in lower case, without wildcard", dnsNameOK),
		Lifetime: DefaultLifetime,
		Roles:    map[string]*Role{},
	}
	if t.HasKey("lifetime") {
		g.Lifetime = t.ReadDuration("lifetime", wire.MinLifetime, wire.MaxLifetime)
	}
	t.ReadText("continues", policytoml.WantDigest, func(s string) bool { return policytoml.DecodeDigest(&g.Continues, s) })
	for _, p := range t.ReadTables("party") {
		g.Parties = append(g.Parties, readParty(p))
	}
	g.Quorum = int(t.ReadNumber("quorum", 1, int64(len(g.Parties))))
	for _, r := range t.ReadNamedTables("role", wantName, wire.ValidName) {
		g.Roles[r.Name] = readRole(r)
	}
	g.checkTerm(t, created)
	return g
}

func readParty(t policytoml.Table) Party {
	t.Require("name", "ssh")
	p := Party{Name: t.ReadText("name", wantName, wire.ValidName), Key: readSSHKey(t)}
	t.RejectUnknown()
	return p
}

// checkTerm refuses an end after the term, so that a group ends unless its parties approve
// it again.
func (g *Group) checkTerm(t policytoml.NamedTable, created time.Time) {
	term := DefaultTerm
	if t.HasKey("term") {
		term = t.ReadDuration("term", time.Hour, longestWait)
	}
	if latest := created.Add(term); g.Until.After(latest) {
		t.AddFault("until", "term", g.Until.Format(time.RFC3339), "not after "+latest.Format(time.RFC3339)+", or a longer term")
	}
}

func readRole(t policytoml.NamedTable) *Role {
	t.Require("members")
	r := &Role{Name: t.Name, Calls: t.ReadSet("calls", "the name of a role", wire.ValidName)}
	for _, m := range t.ReadTables("members") {
		m.Require("party", "task", "release")
		r.Members = append(r.Members, Member{
			Party:   m.ReadText("party", wantName, wire.ValidName),
			Task:    m.ReadText("task", wantName, wire.ValidName),
			Release: m.ReadText("release", "the name of a release", wire.ValidReleaseName),
		})
		m.RejectUnknown()
	}
	if t.HasKey("members") && len(r.Members) == 0 {
		t.AddFault("members", "number of members", 0, "at least 1")
	}
	if !slices.IsSorted(r.Calls) {
		t.AddFault("calls", "order", strings.Join(r.Calls, ", "), "the order of the names")
	}
	t.RejectUnknown()
	return r
}

// checkGroups adds the faults of groups that no single table shows.
func (d *Document) checkGroups(faults *policytoml.Faults) {
	checkConfusable(faults, "group", d.GroupNames())
	for _, name := range d.GroupNames() {
		g, path := d.Groups[name], policytoml.JoinPath("group", name)
		d.checkCustody(faults, path+".authority", g.Authority)
		g.checkParties(faults, path+".party")
		checkConfusable(faults, path+".role", g.RoleNames())
		if len(g.Roles) == 0 {
			faults.Add(path+".role", "number of roles", 0, "at least 1")
		}
		for _, role := range g.RoleNames() {
			d.checkRole(faults, policytoml.JoinPath(path+".role", role), g, g.Roles[role])
		}
	}
}

// checkParties refuses a name or a key that occurs twice, confusable names, and every
// order but that of the names: another order would be another file for the same group.
func (g *Group) checkParties(faults *policytoml.Faults, path string) {
	var names []string
	keys := map[string]string{}
	for _, p := range g.Parties {
		if p.Name == "" || p.Key == nil {
			continue // already a fault
		}
		if slices.Contains(names, p.Name) {
			faults.Add(path, "party twice", p.Name, "each name once")
		}
		names = append(names, p.Name)
		id := keyID(p.Key)
		if other, taken := keys[id]; taken {
			faults.Add(path, "key twice", other+" and "+p.Name, "each key once")
		}
		keys[id] = p.Name
	}
	if !slices.IsSorted(names) {
		faults.Add(path, "order", strings.Join(names, ", "), "the order of the names")
	}
	checkConfusable(faults, path, slices.Compact(names))
}

// checkRole refuses members and calls that are unknown, repeated, or out of order.
func (d *Document) checkRole(faults *policytoml.Faults, path string, g *Group, r *Role) {
	for i, m := range r.Members {
		task := d.Tasks[m.Task]
		switch _, known := g.party(m.Party); {
		case !known:
			faults.Add(path+".members", "party", m.Party, "a party of this group")
		case task == nil:
			faults.Add(path+".members", "task", m.Task, "a task of this policy, as "+policytoml.Nearest(m.Task, d.TaskNames()))
		case task.Releases[m.Release] == nil:
			faults.Add(path+".members", "release", m.Release, "a release of the task, as "+policytoml.Nearest(m.Release, task.ReleaseNames()))
		case i > 0 && r.Members[i-1].Compare(m) >= 0:
			faults.Add(path+".members", "order", m, "each once, in the order of party, task, release")
		}
	}
	for _, call := range r.Calls {
		if g.Roles[call] == nil {
			faults.Add(path+".calls", "role", call, "a role of this group, as "+policytoml.Nearest(call, g.RoleNames()))
		}
	}
}

// Compare orders members by party, task and release.
func (m Member) Compare(other Member) int {
	return cmp.Or(strings.Compare(m.Party, other.Party), strings.Compare(m.Task, other.Task), strings.Compare(m.Release, other.Release))
}

// checkConfusable refuses two names that people could confuse.
func checkConfusable(faults *policytoml.Faults, path string, names []string) {
	seen := map[string]string{}
	for _, name := range names {
		look := lookOf(name)
		if other, taken := seen[look]; taken {
			faults.Add(path, "names alike", other+" and "+name, "names that people do not confuse")
		}
		seen[look] = name
	}
}

// Confusable reports whether people could confuse two of the names.
func Confusable(names []string) bool {
	var faults policytoml.Faults
	checkConfusable(&faults, "", names)
	return len(faults) > 0
}

// lookalikes maps characters that look alike in common fonts to one of them.
var lookalikes = strings.NewReplacer("0", "o", "1", "l", "i", "l", "5", "s", "rn", "m", "vv", "w", "cl", "d", "-", "")

// lookOf returns the name after lookalikes are mapped.
func lookOf(name string) string { return lookalikes.Replace(name) }
