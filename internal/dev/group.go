package dev

import (
	"context"
	"fmt"
	"net/http"
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
	"github.com/cohort-tee/cohort/policy/policyfile"
	"github.com/cohort-tee/cohort/policy/sshsig"
)

// Parties returns the SSH keys of the parties, in the order of their names. Their folder is not
// part of a cluster's state, so that a user can provide other keys, or only public keys: then
// the party itself approves.
func (d *Cluster) Parties() ([]sshkey.Pair, error) {
	return sshkey.Pairs(filepath.Join(d.Dir, "parties"), d.Bin.Example.Parties()...)
}

// withGroup returns the draft of the first policy with the tasks of the other roles and the
// group.
func (d *Cluster) withGroup(first drafttext.Draft) ([]byte, error) {
	parties, err := d.Parties()
	if err != nil {
		return nil, err
	}
	var b strings.Builder
	line := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }
	first.Task.Names = []string{first.Task.Name + "." + Domain}
	b.WriteString(first.PolicyText())
	if err := d.writeTasks(line, first.Task); err != nil {
		return nil, err
	}
	line("\n[group.%s]\nkey_mode = %q\nquorum = %d # of the parties, not of the owners", d.Doc.Group, d.Doc.KeyMode, len(parties))
	line("until = %s\nlifetime = \"1h\"\nnames = %s\nparty = [", frame.RFC3339(first.Created.Add(30*24*time.Hour)), localtee.Quoted([]string{d.Doc.ServerName}))
	for _, p := range parties {
		keys, err := drafttext.Owners([]string{p.Name + "=" + p.Path + ".pub"})
		if err != nil {
			return nil, err
		}
		line("  { name = %q, ssh = %q },", p.Name, keys[0].SSH)
	}
	line("]\n[group.%s.role]", d.Doc.Group)
	for _, m := range d.Bin.Example.Roles {
		line("%s = { members = [ { party = %q, task = %q, release = \"1\" } ], calls = %s }", m.Name, m.Party, m.Name, localtee.Quoted(m.Calls))
	}
	return policyfile.CopyAuthority([]byte(b.String()))
}

// writeTasks writes the tasks of all roles except that of the draft.
func (d *Cluster) writeTasks(line func(string, ...any), like drafttext.Task) error {
	for i, m := range d.Bin.Example.Roles {
		if i == d.Bin.Example.Asked() {
			continue
		}
		measured, err := localtee.Measure(d.Bin.Cohort, d.Bin.Members[i])
		if err != nil {
			return err
		}
		t := like
		t.Name, t.Names = m.Name, []string{m.Name + "." + Domain}
		t.References, t.Dynamic = []string{measured.Reference}, measured.Dynamic
		t.Write(line)
	}
	return nil
}

// roles describes each unit of a group as a service of its role.
func (d *Cluster) roles(c Description) []service {
	all := make([]service, len(c.Units))
	for i, u := range c.Units {
		all[i] = service{d.Bin.Example.Roles[i].Name, c.ServerName, c.Root, []Unit{u}}
	}
	return all
}

// SubmitStatement signs a statement of a party and submits it to the authority.
func (d *Cluster) SubmitStatement(ctx context.Context, party sshkey.Pair, ns sshsig.Namespace) error {
	c, err := authorityclient.Dial(ctx, d.App, d.ClientPins())
	if err != nil {
		return err
	}
	defer c.Close()
	pact, err := partystatement.PactOf(c.Approved, d.Doc.Group, "")
	if err != nil {
		return err
	}
	if ns == sshsig.ForApprove && d.approves(pact, party.Name) {
		return nil // approved in an earlier run on this state
	}
	s := partystatement.Flags{Digest: pact.ID().String(), Party: party.Name, Key: party.Path, Kept: filepath.Join(d.State, "statements")}
	_, _, err = partystatement.Submit(ctx, d.App, c, d.Doc.Group, s, ns)
	return err
}

// approves reports whether a party currently approves the group p under one of its roots.
func (d *Cluster) approves(p *policy.GroupState, party string) bool {
	return slices.ContainsFunc(p.Roots(d.App.Now()), func(root attest.Digest) bool {
		return slices.Contains(p.ApprovalStatus(root, d.App.Now()).Approved, party)
	})
}

// startMembers submits the approvals of all parties whose private keys are on this machine (with
// --check, of all but the last) and starts a unit of each role. The units wait until all parties
// have approved.
func (d *Cluster) startMembers(ctx context.Context) error {
	parties, err := d.Parties()
	if err != nil {
		return err
	}
	approve := slices.DeleteFunc(slices.Clone(parties), func(p sshkey.Pair) bool { return !p.HasPrivateKey() })
	if d.checking {
		approve = parties[:len(parties)-1]
	}
	for _, p := range approve {
		if err := d.SubmitStatement(ctx, p, sshsig.ForApprove); err != nil {
			return fmt.Errorf("party %s: %w", p.Name, err)
		}
	}
	for i, u := range d.Doc.Units {
		c := d.NewChild("unit-"+d.Bin.Example.Roles[i].Name, d.Measured(localtee.Launch{Agent: d.Bin.Cohort, Program: d.Bin.Members[i]}, d.MemberArgs(i, u)))
		c.started = func(pid int) { d.UpdateDescription(func(c *Description) { c.Units[i].PID = pid }) }
		d.members = append(d.members, c)
		d.supervise(ctx, c)
	}
	if len(approve) < len(parties) {
		return d.await(ctx, func(ctx context.Context, u Unit) error { _, err := healthStatus(ctx, u.Health); return err })
	}
	return d.agreed(ctx)
}

// MemberArgs returns the command line of a unit in a role.
func (d *Cluster) MemberArgs(role int, u Unit) []string {
	m := d.Bin.Example.Roles[role]
	as := []string{"--group", d.Doc.Group, "--role", m.Name, "--party-key", d.PartyKey(m.Party)}
	for i, other := range d.Bin.Example.Roles {
		if slices.Contains(m.Calls, other.Name) {
			as = append(as, "--peer", other.Name+"="+d.Doc.Units[i].Address)
		}
		if slices.Contains(m.Calls, other.Name) || slices.Contains(other.Calls, m.Name) {
			as = append(as, "--peer-party", other.Name+"="+d.PartyKey(other.Party))
		}
	}
	return d.unitArgs(u, as...)
}

// PartyKey returns the path of a party's public key.
func (d *Cluster) PartyKey(party string) string { return filepath.Join(d.Dir, "parties", party+".pub") }

// Agree submits the approval of the last party, and waits until all units serve.
func (d *Cluster) Agree(ctx context.Context) error {
	parties, err := d.Parties()
	if err != nil {
		return err
	}
	last := parties[len(parties)-1]
	if err := d.SubmitStatement(ctx, last, sshsig.ForApprove); err != nil {
		return fmt.Errorf("party %s: %w", last.Name, err)
	}
	return d.agreed(ctx)
}

// agreed waits until all units are ready, and writes the group's root file.
func (d *Cluster) agreed(ctx context.Context) error {
	if err := d.await(ctx, func(ctx context.Context, u Unit) error { return Ready(ctx, u.Health) }); err != nil {
		return err
	}
	t, err := d.GroupTrust(ctx)
	if err != nil {
		return err
	}
	return frame.ReplaceFile(d.Doc.Root, t.RootPEM())
}

// await waits until is returns nil for each member.
func (d *Cluster) await(ctx context.Context, is func(context.Context, Unit) error) error {
	for i, c := range d.members {
		u := d.Doc.Units[i]
		if err := c.Await(ctx, func(ctx context.Context) error { return is(ctx, u) }); err != nil {
			return err
		}
	}
	return nil
}

// Ready returns nil if a unit's health pages report that it is ready.
func Ready(ctx context.Context, pages string) error {
	status, err := healthStatus(ctx, pages)
	if err == nil && status != http.StatusOK {
		err = fmt.Errorf("its health pages: %d", status)
	}
	return err
}

// healthStatus returns the status of the response of a unit's health pages to a readiness
// request.
func healthStatus(ctx context.Context, pages string) (int, error) {
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, pages+api.PathReady, nil)
	if err != nil {
		return 0, err
	}
	response, err := http.DefaultClient.Do(r)
	if err != nil {
		return 0, err
	}
	return response.StatusCode, response.Body.Close()
}

// GroupTrust returns the verified trust of a client that pins the party of the first role. It
// stores no state.
func (d *Cluster) GroupTrust(ctx context.Context) (*client.Trust, error) {
	genesis, err := wire.ParseDigest(d.Doc.Genesis)
	if err != nil {
		return nil, err
	}
	keys, err := sshkey.ParsePartyKeys([]string{d.PartyKey(d.Bin.Example.Roles[0].Party)})
	if err != nil {
		return nil, err
	}
	return client.FetchTrust(ctx, client.TrustConfig{
		Authorities: []string{d.Doc.Authority}, Genesis: genesis, Group: d.Doc.Group, PartyKeys: keys, Verifier: localtee.Verifier(), Clock: d.App.Now,
	})
}

// hasSeparateParty reports whether the private key of a party is not on this machine.
func (d *Cluster) hasSeparateParty() bool {
	parties, err := d.Parties()
	return err == nil && slices.ContainsFunc(parties, func(p sshkey.Pair) bool { return !p.HasPrivateKey() })
}

// groupBanner returns a list of a group's programs and of commands to try.
func (d *Cluster) groupBanner(c Description) string {
	e := d.Bin.Example
	var b strings.Builder
	line := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }
	for i, u := range c.Units {
		line("%-10s https://%s  (party %s, pid %d, health %s)", d.Bin.Example.Roles[i].Name, u.Address, d.Bin.Example.Roles[i].Party, u.PID, u.Health)
	}
	pins := fmt.Sprintf("--authority %s --genesis %s", c.Authority, c.Genesis)
	if d.hasSeparateParty() {
		line("\nthe units wait for the parties whose keys are not here; each says:\n  %s group approve %s --digest IDENTITY --ssh-key KEY %s", d.Bin.Cohort, d.Doc.Group, pins)
	}
	line("\ntry:\n  %s request https://%s%s --session --group %s --role %s --party-key %s --gateway %s --genesis %s",
		d.Bin.Cohort, c.ServerName, e.Request.Path, d.Doc.Group, e.Request.Role, d.PartyKey(e.Roles[0].Party), c.Gateway, c.Genesis)
	line("  %s    # %s", strings.Join(d.Bin.requestCommand(), " "), e.Request.Note)
	second := e.Roles[min(1, len(e.Roles)-1)].Party
	for _, verb := range []string{"status ", "verify ", "withdraw "} {
		key := map[string]string{"verify ": "--party-key " + d.PartyKey(second) + " ", "withdraw ": "--ssh-key " + filepath.Join(d.Dir, "parties", second) + " "}[verb]
		line("  %s group %s%s %s%s", d.Bin.Cohort, verb, d.Doc.Group, key, pins)
	}
	line("\nCtrl-C stops everything. State: %s", d.Dir)
	return b.String()
}
