package cli

import (
	"bytes"
	"context"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/client"
	"github.com/cohort-tee/cohort/internal/api"
	"github.com/cohort-tee/cohort/internal/wire"
	"github.com/cohort-tee/cohort/policy"
)

// devJoint is the example of three companies, and the name of its group.
const devJoint = "jointrisk"

// Rows of each table, where --rows says nothing.
const (
	jointRows      = 1_000_000
	jointCheckRows = 20_000
)

// jointMember is a role of the group, and its program's and task's name.
type jointMember struct {
	role, party string
	calls       []string
}

// jointMembers are in the order of their roles; the units of the cluster too.
var jointMembers = []jointMember{
	{"bank", "north", nil},
	{"insurer", "south", nil},
	{"joiner", "east", []string{"bank", "insurer"}},
}

// Places of roles in jointMembers.
const (
	bank = iota
	insurer
	joiner
)

// tables is the folder of the tables of so many rows.
func (f devFlags) tables(dir string) string {
	rows := f.rows
	switch {
	case rows == 0 && f.checking:
		rows = jointCheckRows
	case rows == 0:
		rows = jointRows
	}
	return filepath.Join(dir, fmt.Sprintf("tables-%d", rows))
}

// rowsOf is how many rows the tables of a folder have.
func rowsOf(tables string) string { return strings.TrimPrefix(filepath.Base(tables), "tables-") }

// joint finds the programs of the three companies, and makes their tables once.
func (b binaries) joint(ctx context.Context, self, dir string) (binaries, error) {
	var err error
	if b.generate, err = exampleProgram(ctx, devJoint+"/generate", self, dir); err != nil {
		return b, err
	}
	for _, m := range jointMembers {
		path, err := exampleProgram(ctx, devJoint+"/"+m.role, self, dir)
		if err != nil {
			return b, err
		}
		program := []string{path}
		for _, called := range m.calls {
			program = append(program, "-"+called, "{peer."+called+"}")
		}
		if len(m.calls) == 0 {
			program = append(program, "-table", filepath.Join(b.tables, m.role+".csv"))
		}
		b.members = append(b.members, program)
	}
	b.program = b.members[joiner]
	return b, b.makeTables(ctx)
}

// makeTables generates the tables, unless they are there.
func (b binaries) makeTables(ctx context.Context) error {
	if _, err := os.Stat(b.tables); err == nil {
		return nil
	}
	unfinished, err := os.MkdirTemp(filepath.Dir(b.tables), "unfinished-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(unfinished)
	rows := rowsOf(b.tables)
	if out, err := exec.CommandContext(ctx, b.generate, "-dir", unfinished, "-rows", rows).CombinedOutput(); err != nil {
		return fmt.Errorf("making tables of %s rows: %w: %s", rows, err, bytes.TrimSpace(out))
	}
	return os.Rename(unfinished, b.tables)
}

// pooled is the statistic as one computes it who holds both tables.
func (b binaries) pooled(ctx context.Context) ([]byte, error) {
	out, err := exec.CommandContext(ctx, b.generate, "-pooled", "-dir", b.tables).Output()
	if err != nil {
		return nil, fmt.Errorf("computing on both tables: %w", err)
	}
	return out, nil
}

// parties are the SSH keys of the three companies, in the order of their names.
// They stand beside the clusters' states, so that one can bring keys of his own,
// or public keys only: then the party approves by itself.
func (d *dev) parties() ([]owner, error) {
	return sshKeys(filepath.Join(d.dir, "parties"), "east", "north", "south")
}

// withGroup is the first policy with the other tasks and the group.
func (d *dev) withGroup(first draft) ([]byte, error) {
	parties, err := d.parties()
	if err != nil {
		return nil, err
	}
	var b strings.Builder
	line := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }
	first.task.names = []string{first.task.name + "." + devDomain}
	b.WriteString(first.text())
	if err := d.writeTasks(line, first.task); err != nil {
		return nil, err
	}
	line("\n[group.%s]\nkey_mode = %q\nquorum = %d # of the parties, not of the owners", devJoint, d.cluster.KeyMode, len(parties))
	line("until = %s\nlifetime = \"1h\"\nnames = %s\nparty = [", rfc3339(first.created.Add(30*24*time.Hour)), quoted([]string{d.cluster.ServerName}))
	for _, p := range parties {
		keys, err := ownerLines([]string{p.name + "=" + p.path + ".pub"})
		if err != nil {
			return nil, err
		}
		line("  { name = %q, ssh = %q },", p.name, keys[0].ssh)
	}
	line("]\n[group.%s.role]", devJoint)
	for _, m := range jointMembers {
		line("%s = { members = [ { party = %q, task = %q, release = \"1\" } ], calls = %s }", m.role, m.party, m.role, quoted(m.calls))
	}
	return policy.CopyAuthority([]byte(b.String()))
}

// writeTasks writes the tasks that are not the draft's own, the joiner's.
func (d *dev) writeTasks(line func(string, ...any), like draftTask) error {
	for i, m := range jointMembers[:joiner] {
		measured, err := measure(d.bin.cohort, d.bin.members[i])
		if err != nil {
			return err
		}
		t := like
		t.name, t.names = m.role, []string{m.role + "." + devDomain}
		t.references, t.dynamic = []string{measured.Reference}, measured.Dynamic
		t.write(line)
	}
	return nil
}

// roles describes the units of a group, each as its role's.
func (c cluster) roles() []service {
	all := make([]service, len(c.Units))
	for i, u := range c.Units {
		all[i] = service{jointMembers[i].role, c.ServerName, c.Root, []clusterUnit{u}}
	}
	return all
}

// tell lets a party say something of the group to the authority.
func (d *dev) tell(ctx context.Context, party owner, ns policy.Namespace) error {
	c, err := d.app.authority(ctx, d.pins())
	if err != nil {
		return err
	}
	defer c.Close()
	pact, err := pactOf(c.policy, devJoint, "")
	if err != nil {
		return err
	}
	if ns == policy.ForApprove && d.approves(pact, party.name) {
		return nil // in an earlier run on this state
	}
	s := statementFlags{digest: pact.ID().String(), party: party.name, key: party.path, kept: filepath.Join(d.state, "statements")}
	_, _, err = d.app.sayOfGroup(ctx, c, devJoint, s, ns)
	return err
}

// approves reports whether a party approves the group that the policy has in force.
func (d *dev) approves(p *policy.Pact, party string) bool {
	return slices.ContainsFunc(p.Roots(d.app.now()), func(root attest.Digest) bool {
		return slices.Contains(p.Agreement(root, d.app.now()).Approved, party)
	})
}

// startMembers starts a unit of each role, and has those parties approve whose
// keys are here; with --check all but the last. Until all did the units wait.
func (d *dev) startMembers(ctx context.Context) error {
	parties, err := d.parties()
	if err != nil {
		return err
	}
	approve := slices.DeleteFunc(slices.Clone(parties), func(p owner) bool { return !p.here() })
	if d.checking {
		approve = parties[:len(parties)-1]
	}
	for _, p := range approve {
		if err := d.tell(ctx, p, policy.ForApprove); err != nil {
			return fmt.Errorf("party %s: %w", p.name, err)
		}
	}
	for i, u := range d.cluster.Units {
		c := d.newChild("unit-"+jointMembers[i].role, d.measured(launch{agent: d.bin.cohort, program: d.bin.members[i]}, d.memberArgs(i, u)))
		c.started = func(pid int) { d.note(func(c *cluster) { c.Units[i].PID = pid }) }
		d.members = append(d.members, c)
		d.supervise(ctx, c)
	}
	if len(approve) < len(parties) {
		return d.await(ctx, func(ctx context.Context, u clusterUnit) error { _, err := healthStatus(ctx, u.Health); return err })
	}
	return d.agreed(ctx)
}

// memberArgs is the command line of a unit in a role.
func (d *dev) memberArgs(role int, u clusterUnit) []string {
	m := jointMembers[role]
	as := []string{"--group", devJoint, "--role", m.role, "--party-key", d.partyKey(m.party)}
	for i, other := range jointMembers {
		if slices.Contains(m.calls, other.role) {
			as = append(as, "--peer", other.role+"="+d.cluster.Units[i].Address)
		}
		if slices.Contains(m.calls, other.role) || slices.Contains(other.calls, m.role) {
			as = append(as, "--peer-party", other.role+"="+d.partyKey(other.party))
		}
	}
	return d.unitArgs(u, as...)
}

// partyKey is the file of a party's public key.
func (d *dev) partyKey(party string) string { return filepath.Join(d.dir, "parties", party+".pub") }

// agree has the last party approve, and waits as agreed does.
func (d *dev) agree(ctx context.Context) error {
	parties, err := d.parties()
	if err != nil {
		return err
	}
	last := parties[len(parties)-1]
	if err := d.tell(ctx, last, policy.ForApprove); err != nil {
		return fmt.Errorf("party %s: %w", last.name, err)
	}
	return d.agreed(ctx)
}

// agreed waits until all units serve a group that its parties approve.
func (d *dev) agreed(ctx context.Context) error {
	if err := d.await(ctx, func(ctx context.Context, u clusterUnit) error { return ready(ctx, u.Health) }); err != nil {
		return err
	}
	t, err := d.groupTrust(ctx)
	if err != nil {
		return err
	}
	return replaceFile(d.cluster.Root, t.PEM())
}

// await waits until each member is as it should be.
func (d *dev) await(ctx context.Context, is func(context.Context, clusterUnit) error) error {
	for i, c := range d.members {
		u := d.cluster.Units[i]
		if err := c.await(ctx, func(ctx context.Context) error { return is(ctx, u) }); err != nil {
			return err
		}
	}
	return nil
}

// ready asks a unit's health pages, which must say so.
func ready(ctx context.Context, pages string) error {
	status, err := healthStatus(ctx, pages)
	if err == nil && status != http.StatusOK {
		err = fmt.Errorf("its health pages say: %d", status)
	}
	return err
}

// healthStatus is the status of a unit's health pages.
func healthStatus(ctx context.Context, pages string) (int, error) {
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, pages+api.PathReady, nil)
	if err != nil {
		return 0, err
	}
	answer, err := http.DefaultClient.Do(r)
	if err != nil {
		return 0, err
	}
	return answer.StatusCode, answer.Body.Close()
}

// groupTrust is what the bank's company makes of the description. It remembers nothing.
func (d *dev) groupTrust(ctx context.Context) (*client.Trust, error) {
	genesis, err := wire.ParseDigest(d.cluster.Genesis)
	if err != nil {
		return nil, err
	}
	keys, err := parsePartyKeys([]string{d.partyKey(jointMembers[bank].party)})
	if err != nil {
		return nil, err
	}
	return client.FetchTrust(ctx, client.TrustConfig{
		Authorities: []string{d.cluster.Authority}, Genesis: genesis, Group: devJoint, PartyKeys: keys, Verifier: verifier(), Clock: d.app.now,
	})
}

// away reports whether there is a party that approves by itself.
func (d *dev) away() bool {
	parties, err := d.parties()
	return err == nil && slices.ContainsFunc(parties, func(p owner) bool { return !p.here() })
}

// jointBanner says what runs of a group and what to try.
func (d *dev) jointBanner(c cluster) string {
	var b strings.Builder
	line := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }
	for i, u := range c.Units {
		line("%-10s https://%s  (party %s, pid %d, health %s)", jointMembers[i].role, u.Address, jointMembers[i].party, u.PID, u.Health)
	}
	pins := fmt.Sprintf("--authority %s --genesis %s", c.Authority, c.Genesis)
	if d.away() {
		line("\nthe units wait for the parties whose keys are not here; each says:\n  %s group approve %s --digest IDENTITY --ssh-key KEY %s", d.bin.cohort, devJoint, pins)
	}
	line("\ntry:\n  %s request https://%s/statistic --session --group %s --role joiner --party-key %s --gateway %s %s", d.bin.cohort, c.ServerName, devJoint, d.partyKey(jointMembers[bank].party), c.Gateway, pins)
	line("  %s -pooled -dir %s    # the same, from both tables at once", d.bin.generate, d.bin.tables)
	for _, verb := range []string{"status ", "verify ", "withdraw "} {
		key := map[string]string{"verify ": "--party-key " + d.partyKey("south") + " ", "withdraw ": "--ssh-key " + filepath.Join(d.dir, "parties", "south") + " "}[verb]
		line("  %s group %s%s %s%s", d.bin.cohort, verb, devJoint, key, pins)
	}
	line("\nCtrl-C stops everything. State: %s", d.dir)
	return b.String()
}
