package dev

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
	"github.com/cohort-tee/cohort/internal/authorityclient"
	"github.com/cohort-tee/cohort/internal/cli/drafttext"
	"github.com/cohort-tee/cohort/internal/cli/frame"
	"github.com/cohort-tee/cohort/internal/cli/localtee"
	"github.com/cohort-tee/cohort/internal/cli/partystatement"
	"github.com/cohort-tee/cohort/internal/cli/sshkey"
	"github.com/cohort-tee/cohort/internal/wire"
	"github.com/cohort-tee/cohort/policy"
)

// Joint is the example of three companies, and the name of its group.
const Joint = "jointrisk"

// Rows of each table, where --rows says nothing.
const (
	JointRows      = 1_000_000
	jointCheckRows = 20_000
)

// JointMember is a role of the group, and its program's and task's name.
type JointMember struct {
	Role, party string
	Calls       []string
}

// JointMembers are in the order of their roles; the units of the cluster too.
var JointMembers = []JointMember{
	{"bank", "north", nil},
	{"insurer", "south", nil},
	{"joiner", "east", []string{"bank", "insurer"}},
}

// Places of roles in jointMembers.
const (
	Bank = iota
	Insurer
	Joiner
)

// Tables is the folder of the tables of so many rows.
func (f Flags) Tables(dir string) string {
	rows := f.Rows
	switch {
	case rows == 0 && f.Checking:
		rows = jointCheckRows
	case rows == 0:
		rows = JointRows
	}
	return filepath.Join(dir, fmt.Sprintf("tables-%d", rows))
}

// RowsOf is how many rows the tables of a folder have.
func RowsOf(tables string) string { return strings.TrimPrefix(filepath.Base(tables), "tables-") }

// Joint finds the programs of the three companies, and makes their tables once.
func (b Binaries) Joint(ctx context.Context, self, dir string) (Binaries, error) {
	var err error
	if b.generate, err = exampleProgram(ctx, Joint+"/generate", self, dir); err != nil {
		return b, err
	}
	for _, m := range JointMembers {
		path, err := exampleProgram(ctx, Joint+"/"+m.Role, self, dir)
		if err != nil {
			return b, err
		}
		program := []string{path}
		for _, called := range m.Calls {
			program = append(program, "-"+called, "{peer."+called+"}")
		}
		if len(m.Calls) == 0 {
			program = append(program, "-table", filepath.Join(b.Tables, m.Role+".csv"))
		}
		b.Members = append(b.Members, program)
	}
	b.Program = b.Members[Joiner]
	return b, b.MakeTables(ctx)
}

// MakeTables generates the tables, unless they are there.
func (b Binaries) MakeTables(ctx context.Context) error {
	if _, err := os.Stat(b.Tables); err == nil {
		return nil
	}
	unfinished, err := os.MkdirTemp(filepath.Dir(b.Tables), "unfinished-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(unfinished)
	rows := RowsOf(b.Tables)
	if out, err := exec.CommandContext(ctx, b.generate, "-dir", unfinished, "-rows", rows).CombinedOutput(); err != nil {
		return fmt.Errorf("making tables of %s rows: %w: %s", rows, err, bytes.TrimSpace(out))
	}
	return os.Rename(unfinished, b.Tables)
}

// Pooled is the statistic as one computes it who holds both tables.
func (b Binaries) Pooled(ctx context.Context) ([]byte, error) {
	out, err := exec.CommandContext(ctx, b.generate, "-pooled", "-dir", b.Tables).Output()
	if err != nil {
		return nil, fmt.Errorf("computing on both tables: %w", err)
	}
	return out, nil
}

// Parties are the SSH keys of the three companies, in the order of their names.
// They stand beside the clusters' states, so that one can bring keys of his own,
// or public keys only: then the party approves by itself.
func (d *Cluster) Parties() ([]sshkey.Pair, error) {
	return sshkey.Pairs(filepath.Join(d.Dir, "parties"), "east", "north", "south")
}

// withGroup is the first policy with the other tasks and the group.
func (d *Cluster) withGroup(first drafttext.Draft) ([]byte, error) {
	parties, err := d.Parties()
	if err != nil {
		return nil, err
	}
	var b strings.Builder
	line := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }
	first.Task.Names = []string{first.Task.Name + "." + Domain}
	b.WriteString(first.Text())
	if err := d.writeTasks(line, first.Task); err != nil {
		return nil, err
	}
	line("\n[group.%s]\nkey_mode = %q\nquorum = %d # of the parties, not of the owners", Joint, d.Doc.KeyMode, len(parties))
	line("until = %s\nlifetime = \"1h\"\nnames = %s\nparty = [", frame.RFC3339(first.Created.Add(30*24*time.Hour)), localtee.Quoted([]string{d.Doc.ServerName}))
	for _, p := range parties {
		keys, err := drafttext.Owners([]string{p.Name + "=" + p.Path + ".pub"})
		if err != nil {
			return nil, err
		}
		line("  { name = %q, ssh = %q },", p.Name, keys[0].SSH)
	}
	line("]\n[group.%s.role]", Joint)
	for _, m := range JointMembers {
		line("%s = { members = [ { party = %q, task = %q, release = \"1\" } ], calls = %s }", m.Role, m.party, m.Role, localtee.Quoted(m.Calls))
	}
	return policy.CopyAuthority([]byte(b.String()))
}

// writeTasks writes the tasks that are not the draft's own, the joiner's.
func (d *Cluster) writeTasks(line func(string, ...any), like drafttext.Task) error {
	for i, m := range JointMembers[:Joiner] {
		measured, err := localtee.Measure(d.Bin.Cohort, d.Bin.Members[i])
		if err != nil {
			return err
		}
		t := like
		t.Name, t.Names = m.Role, []string{m.Role + "." + Domain}
		t.References, t.Dynamic = []string{measured.Reference}, measured.Dynamic
		t.Write(line)
	}
	return nil
}

// roles describes the units of a group, each as its role's.
func (c Description) roles() []service {
	all := make([]service, len(c.Units))
	for i, u := range c.Units {
		all[i] = service{JointMembers[i].Role, c.ServerName, c.Root, []Unit{u}}
	}
	return all
}

// Tell lets a party say something of the group to the authority.
func (d *Cluster) Tell(ctx context.Context, party sshkey.Pair, ns policy.Namespace) error {
	c, err := authorityclient.Dial(ctx, d.App, d.Pins())
	if err != nil {
		return err
	}
	defer c.Close()
	pact, err := partystatement.PactOf(c.Approved, Joint, "")
	if err != nil {
		return err
	}
	if ns == policy.ForApprove && d.approves(pact, party.Name) {
		return nil // in an earlier run on this state
	}
	s := partystatement.Flags{Digest: pact.ID().String(), Party: party.Name, Key: party.Path, Kept: filepath.Join(d.State, "statements")}
	_, _, err = partystatement.Say(ctx, d.App, c, Joint, s, ns)
	return err
}

// approves reports whether a party approves the group that the policy has in force.
func (d *Cluster) approves(p *policy.Pact, party string) bool {
	return slices.ContainsFunc(p.Roots(d.App.Now()), func(root attest.Digest) bool {
		return slices.Contains(p.Agreement(root, d.App.Now()).Approved, party)
	})
}

// startMembers starts a unit of each role, and has those parties approve whose
// keys are here; with --check all but the last. Until all did the units wait.
func (d *Cluster) startMembers(ctx context.Context) error {
	parties, err := d.Parties()
	if err != nil {
		return err
	}
	approve := slices.DeleteFunc(slices.Clone(parties), func(p sshkey.Pair) bool { return !p.Here() })
	if d.checking {
		approve = parties[:len(parties)-1]
	}
	for _, p := range approve {
		if err := d.Tell(ctx, p, policy.ForApprove); err != nil {
			return fmt.Errorf("party %s: %w", p.Name, err)
		}
	}
	for i, u := range d.Doc.Units {
		c := d.NewChild("unit-"+JointMembers[i].Role, d.Measured(localtee.Launch{Agent: d.Bin.Cohort, Program: d.Bin.Members[i]}, d.MemberArgs(i, u)))
		c.started = func(pid int) { d.Note(func(c *Description) { c.Units[i].PID = pid }) }
		d.members = append(d.members, c)
		d.supervise(ctx, c)
	}
	if len(approve) < len(parties) {
		return d.await(ctx, func(ctx context.Context, u Unit) error { _, err := healthStatus(ctx, u.Health); return err })
	}
	return d.agreed(ctx)
}

// MemberArgs is the command line of a unit in a role.
func (d *Cluster) MemberArgs(role int, u Unit) []string {
	m := JointMembers[role]
	as := []string{"--group", Joint, "--role", m.Role, "--party-key", d.PartyKey(m.party)}
	for i, other := range JointMembers {
		if slices.Contains(m.Calls, other.Role) {
			as = append(as, "--peer", other.Role+"="+d.Doc.Units[i].Address)
		}
		if slices.Contains(m.Calls, other.Role) || slices.Contains(other.Calls, m.Role) {
			as = append(as, "--peer-party", other.Role+"="+d.PartyKey(other.party))
		}
	}
	return d.unitArgs(u, as...)
}

// PartyKey is the file of a party's public key.
func (d *Cluster) PartyKey(party string) string { return filepath.Join(d.Dir, "parties", party+".pub") }

// Agree has the last party approve, and waits as agreed does.
func (d *Cluster) Agree(ctx context.Context) error {
	parties, err := d.Parties()
	if err != nil {
		return err
	}
	last := parties[len(parties)-1]
	if err := d.Tell(ctx, last, policy.ForApprove); err != nil {
		return fmt.Errorf("party %s: %w", last.Name, err)
	}
	return d.agreed(ctx)
}

// agreed waits until all units serve a group that its parties approve.
func (d *Cluster) agreed(ctx context.Context) error {
	if err := d.await(ctx, func(ctx context.Context, u Unit) error { return Ready(ctx, u.Health) }); err != nil {
		return err
	}
	t, err := d.GroupTrust(ctx)
	if err != nil {
		return err
	}
	return frame.ReplaceFile(d.Doc.Root, t.PEM())
}

// await waits until each member is as it should be.
func (d *Cluster) await(ctx context.Context, is func(context.Context, Unit) error) error {
	for i, c := range d.members {
		u := d.Doc.Units[i]
		if err := c.Await(ctx, func(ctx context.Context) error { return is(ctx, u) }); err != nil {
			return err
		}
	}
	return nil
}

// Ready asks a unit's health pages, which must say so.
func Ready(ctx context.Context, pages string) error {
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

// GroupTrust is what the bank's company makes of the description. It remembers nothing.
func (d *Cluster) GroupTrust(ctx context.Context) (*client.Trust, error) {
	genesis, err := wire.ParseDigest(d.Doc.Genesis)
	if err != nil {
		return nil, err
	}
	keys, err := sshkey.ParsePartyKeys([]string{d.PartyKey(JointMembers[Bank].party)})
	if err != nil {
		return nil, err
	}
	return client.FetchTrust(ctx, client.TrustConfig{
		Authorities: []string{d.Doc.Authority}, Genesis: genesis, Group: Joint, PartyKeys: keys, Verifier: localtee.Verifier(), Clock: d.App.Now,
	})
}

// away reports whether there is a party that approves by itself.
func (d *Cluster) away() bool {
	parties, err := d.Parties()
	return err == nil && slices.ContainsFunc(parties, func(p sshkey.Pair) bool { return !p.Here() })
}

// jointBanner says what runs of a group and what to try.
func (d *Cluster) jointBanner(c Description) string {
	var b strings.Builder
	line := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }
	for i, u := range c.Units {
		line("%-10s https://%s  (party %s, pid %d, health %s)", JointMembers[i].Role, u.Address, JointMembers[i].party, u.PID, u.Health)
	}
	pins := fmt.Sprintf("--authority %s --genesis %s", c.Authority, c.Genesis)
	if d.away() {
		line("\nthe units wait for the parties whose keys are not here; each says:\n  %s group approve %s --digest IDENTITY --ssh-key KEY %s", d.Bin.Cohort, Joint, pins)
	}
	line("\ntry:\n  %s request https://%s/statistic --session --group %s --role joiner --party-key %s --gateway %s %s", d.Bin.Cohort, c.ServerName, Joint, d.PartyKey(JointMembers[Bank].party), c.Gateway, pins)
	line("  %s -pooled -dir %s    # the same, from both tables at once", d.Bin.generate, d.Bin.Tables)
	for _, verb := range []string{"status ", "verify ", "withdraw "} {
		key := map[string]string{"verify ": "--party-key " + d.PartyKey("south") + " ", "withdraw ": "--ssh-key " + filepath.Join(d.Dir, "parties", "south") + " "}[verb]
		line("  %s group %s%s %s%s", d.Bin.Cohort, verb, Joint, key, pins)
	}
	line("\nCtrl-C stops everything. State: %s", d.Dir)
	return b.String()
}
