package systest

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"filippo.io/age/agessh"
	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/attest/attesttest"
	"github.com/cohort-tee/cohort/internal/api"
	"github.com/cohort-tee/cohort/internal/authority"
	"github.com/cohort-tee/cohort/internal/authority/sealed"
	"github.com/cohort-tee/cohort/internal/authority/store"
	"github.com/cohort-tee/cohort/internal/authority/trustedclock"
	"github.com/cohort-tee/cohort/internal/backup"
	"github.com/cohort-tee/cohort/internal/cli"
	"github.com/cohort-tee/cohort/internal/testworld"
	"github.com/cohort-tee/cohort/internal/wire"
	"github.com/cohort-tee/cohort/policy"
	"github.com/cohort-tee/cohort/policy/policyfile"
	"github.com/cohort-tee/cohort/policy/sshsig"
	"github.com/cohort-tee/cohort/unit"
	"golang.org/x/crypto/ssh"
)

// TestCohort is the entry point of the command line in a process of its own. In an ordinary
// test run it does nothing.
func TestCohort(t *testing.T) {
	if os.Getenv(roleVariable) != "cohort" {
		return
	}
	os.Args = append([]string{"cohort"}, asked[[]string](t)...)
	os.Exit(cli.Main())
}

// shown returns the standard output and error of a command about the cluster's authority.
func (c *Cluster) shown(args ...string) string {
	c.t.Helper()
	args = append(args, "--authority", c.URL(), "--genesis", c.Genesis.Hex(), "--state", filepath.Join(c.t.TempDir(), "seen.json"))
	cmd := exec.CommandContext(c.t.Context(), testworld.Must(os.Executable()), "-test.run=^TestCohort$")
	cmd.Env = append(os.Environ(), roleVariable+"=cohort", "SYSTEST_CONFIG="+string(testworld.Must(json.Marshal(args))))
	out, err := cmd.CombinedOutput()
	if err != nil {
		c.t.Fatalf("cohort %v: %v\n%s", args, err, out)
	}
	return string(out)
}

// wantShown requires lines in a command's output.
func (c *Cluster) wantShown(when, command string, lines ...string) {
	c.t.Helper()
	got := c.shown(strings.Fields(command)...)
	for _, line := range lines {
		if !strings.Contains(got, line) {
			c.t.Errorf("%s: cohort %s has no %q:\n%s", when, command, line, got)
		}
	}
}

const groupStatus = "group status trial"

// cleanRoom is the group of docs/how-to/clean-room.md, with one unit that runs from the
// beginning.
type cleanRoom struct {
	*Cluster
	t       *testing.T
	vendor  *attesttest.Vendor
	parties Parties
	bank    *Replica
}

// newCleanRoom starts a clean room that its parties have approved. The given programs may
// have the group's root; without any, those of the trust domain may.
func newCleanRoom(t *testing.T, programs ...string) *cleanRoom {
	t.Helper()
	task := func(name string) Task {
		return Task{Name: name, KeyMode: policyfile.Shared, Life: time.Hour, Programs: []string{name + " 1"}}
	}
	vendor, more := attesttest.NewVendor(), ""
	if len(programs) > 0 {
		more = authorities(vendor, programs...)
	}
	r := &cleanRoom{Cluster: NewOnVendor(t, vendor, task("bank"), task("joiner")), t: t, vendor: vendor}
	r.parties = r.FormGroup(Group{
		Name: "trial", KeyMode: policyfile.Shared, Life: time.Hour, Quorum: 2, Roles: []string{"bank", "joiner"},
		Calls: map[string][]string{"joiner": {"bank"}}, More: more,
	})
	r.ApproveGroup("trial", r.parties)
	r.bank = r.StartMember("trial", "bank", "bank 1", whoCalled)
	return r
}

func (r *cleanRoom) root() attest.Digest {
	r.t.Helper()
	return r.groupRoot(r.Approved().GroupByName("trial"))
}

// goesOn requires that the group has its root: a new unit of the group starts and calls the
// unit that runs from the beginning, and the status of group and authority shows no fault.
func (r *cleanRoom) goesOn(when string, root attest.Digest) {
	r.t.Helper()
	if got := r.root(); got != root {
		r.t.Errorf("%s: got group root %v, want %v", when, got, root)
	}
	joiner := r.StartMember("trial", "joiner", "joiner 1", whoCalled)
	testworld.Within(r.t, 20*time.Second, when+": a call of the unit that has run", func() bool {
		got, err := callPeer(joiner, "trial", "bank", r.bank)
		return err == nil && got == "joiner"
	})
	joiner.Stop()
	r.wantShown(when, groupStatus, "trial of test.example: agreed until", "root     "+root.String(), "bank         approves until", "joiner       approves until")
	if got := r.shown("status"); strings.Contains(got, "no root of group") {
		r.t.Errorf("%s: cohort status:\n%s", when, got)
	}
}

// noUnit requires that no unit of the group gets a certificate. A unit retries until its
// deadline, so the deadline is short, and longer where no refusal came by then.
func (r *cleanRoom) noUnit(when string, want wire.Reason) {
	r.t.Helper()
	var err error
	for patience := 500 * time.Millisecond; patience < 20*time.Second && !errors.Is(err, want); patience *= 2 {
		ctx, cancel := context.WithTimeout(r.t.Context(), patience)
		var u *unit.Unit
		u, err = unit.Start(ctx, r.MemberConfig("trial", "joiner", "joiner 1"))
		cancel()
		if err == nil {
			u.Close()
			break
		}
	}
	if !errors.Is(err, want) {
		r.t.Errorf("%s: a unit of the group: got %v, want %q", when, err, want)
	}
}

// ended requires that this authority does not have the group's root, and that the status of
// the authority and of the group report it.
func (r *cleanRoom) ended(when string) {
	r.t.Helper()
	r.noUnit(when, wire.GroupElsewhere)
	r.wantShown(when, groupStatus, "note: the root of group trial: ", string(wire.GroupElsewhere))
	r.wantShown(when, "status", "WARNING: no root of group trial")
}

// anotherRoot requires that the group has a different root than its parties approved, which
// takes effect once they approve again.
func (r *cleanRoom) anotherRoot(when string, approved attest.Digest) {
	r.t.Helper()
	if got := r.root(); got == approved {
		r.t.Errorf("%s: got the group root %v that was lost", when, got)
	}
	r.noUnit(when, wire.NoQuorum)
	r.wantShown(when, groupStatus, "trial of test.example: not agreed", "root     "+r.root().String(), "bank         group-root: approved root "+approved.String())
	r.ApproveGroup("trial", r.parties)
	r.goesOn(when+", approved again", r.root())
}

// TestGroupOverRestarts: a group keeps its root over three restarts of the authority, and
// at a second authority on the store after the first ends.
func TestGroupOverRestarts(t *testing.T) {
	r := newCleanRoom(t)
	root := r.root()
	for i := range 3 {
		r.KillAuthority()
		r.StartAuthority()
		r.goesOn(fmt.Sprint("restart ", i+1), root)
	}
	url, _ := r.StartReplica()
	r.StopAuthority()
	r.addr = strings.TrimPrefix(url, "https://")
	r.goesOn("another authority", root)
}

// kept is the owners' copy of the authority: a share of its root, and its history.
type kept struct {
	share   backup.Share
	history []api.HistoryEntry
}

func (r *cleanRoom) backUp() kept {
	r.t.Helper()
	statement := policy.BackupStatement(r.Approved())
	signature := testworld.Must(sshsig.Sign(r.owner, sshsig.ForBackup, statement))
	made := testworld.Must(authorityOf(r.t, r.Cluster).MakeBackup(r.t.Context(), api.BackupRequest{Statement: statement, Signature: signature}))
	return kept{testworld.Must(backup.Parse(made.Shares[0])), testworld.Must(authorityOf(r.t, r.Cluster).History(r.t.Context(), 0)).Entries}
}

// restore restores the root of the trust domain on a machine, into a store without one.
func (r *cleanRoom) restore(k kept, on *attesttest.Chip, dsn string) {
	r.t.Helper()
	approved := r.Approved()
	r.StopAuthority()
	r.Chip, r.dsn = on, dsn
	db := testworld.Must(store.Create(r.t.Context(), dsn))
	defer db.Close()
	request := testworld.Must(sealed.AskRestore(r.t.Context(), r.device(), r.device()))
	unlocked, err := backup.Unlock(k.share, testworld.Must(agessh.NewEd25519Identity(r.owner.Private)), backup.RestoringTEE{
		Request: request, Approved: approved, Verifier: attesttest.Verifier(), At: time.Now(),
	})
	if err != nil {
		r.t.Fatal(err)
	}
	root, err := authority.Restore(r.t.Context(), authority.RestoreConfig{
		Store: db, Attester: r.device(), Sealer: r.device(), Verifier: attesttest.Verifier(), Clock: trustedclock.System(),
		Genesis: r.Genesis, History: k.history, Request: request, Shares: []backup.Share{unlocked},
	})
	if err != nil || root != r.Root {
		r.t.Fatalf("restoring: got root %v, %v, want %v", root, err, r.Root)
	}
	r.StartAuthority()
}

// loseRoot returns a copy of the store without the root of the trust domain.
func (r *cleanRoom) loseRoot() (dsn string) {
	r.t.Helper()
	dsn = r.copyStore()
	db := testworld.Must(sql.Open("sqlite", strings.TrimPrefix(dsn, "sqlite:")))
	defer db.Close()
	testworld.Must(db.Exec(`DELETE FROM root`))
	return dsn
}

// TestGroupOverRestore: the owners' backup contains the root of the trust domain, but no
// group's root. A group continues if its row in the store and the machine that sealed it
// still exist. If the machine is different, the group ends; in a new store the group gets a
// different root, which its parties must approve.
func TestGroupOverRestore(t *testing.T) {
	waits(t)
	t.Run("the store is kept", func(t *testing.T) {
		r := newCleanRoom(t)
		root, k := r.root(), r.backUp()
		r.restore(k, r.Chip, r.loseRoot())
		r.goesOn("restored on the machine of the group's root", root)
		r.restore(k, r.vendor.Chip(), r.loseRoot())
		r.ended("restored on another machine")
	})
	t.Run("every machine is lost", func(t *testing.T) {
		r := newCleanRoom(t)
		root := r.root()
		r.restore(r.backUp(), r.vendor.Chip(), newDSN(t))
		r.anotherRoot("restored into a new store", root)
	})
}

// authorities returns the line of a group's table that names its authority programs.
func authorities(vendor *attesttest.Vendor, programs ...string) string {
	var references []string
	for _, p := range programs {
		references = append(references, Reference(p))
	}
	return fmt.Sprintf("authority = { machines = \"any\", platform = { soft = { roots = [%q] } }, reference = [ %s ] }\n", vendor.Root(), strings.Join(references, ", "))
}

// TestGroupAuthorityChanges: owners name a second program for the authority. A group whose
// roster names that program too continues there. A group whose roster does not ends with
// the last program that it names, and continues under a new roster that names the second
// program, once its parties approve it.
func TestGroupAuthorityChanges(t *testing.T) {
	waits(t)
	const second = "authority build 2"
	rebuild := func(r *cleanRoom) {
		const of = "machines = \"any\"\nreference = [ "
		r.Adopt(of, of+Reference(second)+", ")
		r.goesOn("the former program, the new one named by policy", r.root())
		r.StopAuthority()
		r.Rebuild(second)
		r.StartAuthority()
	}
	t.Run("the roster names it", func(t *testing.T) {
		r := newCleanRoom(t, FirstBuild, second)
		root := r.root()
		rebuild(r)
		r.goesOn("the new program", root)
	})
	t.Run("the roster does not", func(t *testing.T) {
		r := newCleanRoom(t, FirstBuild)
		rebuild(r)
		r.ended("the new program")
		r.Adopt(authorities(r.vendor, FirstBuild), authorities(r.vendor, FirstBuild, second))
		r.noUnit("a roster that names the new program", wire.NoQuorum)
		r.ApproveGroup("trial", r.parties)
		r.goesOn("a roster that names the new program, approved", r.root())
	})
}

// TestGroupPartyKeyChanges: a party changes its key, which makes a new roster. The new
// roster takes effect once all parties approve it and the former key does too; units that
// know both keys continue.
func TestGroupPartyKeyChanges(t *testing.T) {
	r := newCleanRoom(t)
	former, next := r.parties["bank"], testworld.NewKey()
	line := func(key ssh.Signer) string {
		return strings.TrimSpace(string(ssh.MarshalAuthorizedKey(key.PublicKey())))
	}
	config := r.MemberConfig("trial", "bank", "bank 1")
	config.PartyKeys = []attest.Digest{sshsig.KeyDigest(former.PublicKey()), sshsig.KeyDigest(next.PublicKey())}
	r.bank.Stop()
	r.bank = r.StartWith(config, whoCalled)
	old := r.Approved().GroupByName("trial").ID()
	r.Adopt(line(former), line(next), "[group.trial.role]\n", fmt.Sprintf("continues = %q\n[group.trial.role]\n", old))
	r.parties["bank"] = next
	r.ApproveGroup("trial", r.parties)
	r.wantShown("all of the new roster approve", groupStatus, "trial of test.example: not agreed", "bank         approves until", "joiner       approves until",
		"2 of the parties of the roster before must approve as well: joiner; missing bank", "continues:\n    group trial of test.example: agreed until")
	if got := r.bank.Unit.Identity().ID; got != old {
		t.Errorf("before the former key approves: a unit has identity %v, want %v", got, old)
	}
	if _, err := r.SubmitStatement("trial", "bank", former, func(s *policy.Statement) { s.Key, s.Number = sshsig.KeyDigest(former.PublicKey()), 1 }); err != nil {
		t.Fatal(err)
	}
	id := r.Approved().GroupByName("trial").ID()
	testworld.Within(t, 10*time.Second, "the unit to go on under the new roster", func() bool { return r.bank.Unit.Identity().ID == id })
	r.goesOn("the former key approves too", r.root())
}
