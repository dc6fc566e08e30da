package authority

import (
	"encoding/json"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"filippo.io/age"
	"filippo.io/age/agessh"
	"github.com/cohort-tee/cohort/attest/attesttest"
	"github.com/cohort-tee/cohort/internal/api"
	"github.com/cohort-tee/cohort/internal/authority/sealed"
	"github.com/cohort-tee/cohort/internal/authority/store"
	"github.com/cohort-tee/cohort/internal/backup"
	"github.com/cohort-tee/cohort/internal/testworld"
	"github.com/cohort-tee/cohort/internal/wire"
	"github.com/cohort-tee/cohort/policy"
	"github.com/cohort-tee/cohort/policy/sshsig"
)

// ask returns an owner's request for a backup under the policy in force.
func (w *world) ask(a *Authority, owner string) api.BackupRequest {
	w.T.Helper()
	statement := policy.BackupStatement(a.inForce().approved)
	return api.BackupRequest{Statement: statement, Signature: w.Signature(owner, sshsig.ForBackup, string(statement))}
}

// split makes a backup without confirming that its shares were kept.
func (w *world) split(a *Authority) []backup.Share {
	w.T.Helper()
	made := testworld.Must(a.backup(w.ask(a, "ana")))
	shares := make([]backup.Share, len(made.Shares))
	for i, b := range made.Shares {
		shares[i] = testworld.Must(backup.Parse(b))
	}
	return shares
}

// identity returns the age identity that opens an owner's shares.
func (w *world) identity(name string) age.Identity {
	w.T.Helper()
	return testworld.Must(agessh.NewEd25519Identity(w.Keys[name].Private))
}

// restoration is a TEE that requests shares, and the store that it restores into.
type restoration struct {
	w      *world
	config RestoreConfig
}

func (w *world) restoration(a *Authority, program string) *restoration {
	w.T.Helper()
	dsn := "sqlite:" + filepath.Join(w.T.TempDir(), "restored.db")
	db := testworld.Must(store.Create(w.T.Context(), dsn))
	w.T.Cleanup(func() { db.Close() })
	tee := w.Vendor.Chip().Attester(attesttest.Measure(program))
	request := testworld.Must(sealed.AskRestore(w.T.Context(), tee, tee))
	w.dsn = dsn
	return &restoration{w, RestoreConfig{
		Store: db, Attester: tee, Sealer: tee, Verifier: attesttest.Verifier(), Clock: w.clock.Read,
		Genesis: a.Genesis(), History: a.history.Current().StepsFrom(0).Entries, Request: request,
	}}
}

// unlock returns the share that an owner unlocks for the request.
func (r *restoration) unlock(a *Authority, s backup.Share) (backup.Share, error) {
	at, _ := r.w.clock.Read()
	return backup.Unlock(s, r.w.identity(s.Owner), backup.RestoringTEE{
		Request: r.config.Request, Approved: a.inForce().approved, Verifier: attesttest.Verifier(), At: at,
	})
}

// TestRestore: an authority's machine is lost. Every pair of owners restores the root on another
// machine.
func TestRestore(t *testing.T) {
	w := newWorld(t)
	a := w.open()
	shares := w.split(a)
	before, err := w.scoring().enrol(direct{a})
	if err != nil {
		t.Fatal(err)
	}
	if got := testworld.Must(a.backupState(t.Context())); got.State != api.BackupNone {
		t.Errorf("got state %q before a share was shown, want none", got.State)
	}
	if got := testworld.Must(a.backupKept(t.Context(), api.BackupKept{Share: shares[1].Bytes()})); got.State != api.BackupCurrent || got.ID != shares[0].ID {
		t.Errorf("got %+v, want the backup %s, current", got, shares[0].ID)
	}
	for _, pair := range [][2]int{{0, 1}, {2, 0}, {1, 2}} {
		r := w.restoration(a, "authority")
		for _, i := range pair {
			r.config.Shares = append(r.config.Shares, testworld.Must(r.unlock(a, shares[i])))
		}
		root, err := Restore(t.Context(), r.config)
		if err != nil || root != w.root {
			t.Fatalf("owners %v: got root %v, %v, want %v", pair, root, err, w.root)
		}
		w.Chip = w.Vendor.Chip()
		tee := r.config.Attester.(*attesttest.Device)
		config := w.config("authority")
		config.Attester, config.Sealer, config.Genesis = tee, tee, nil
		restored := testworld.Must(Open(t.Context(), config))
		if got := testworld.Must(restored.backupState(t.Context())); got.State != api.BackupCurrent {
			t.Errorf("got state %q in the restored store, want current", got.State)
		}
		after, err := w.scoring().enrol(direct{restored})
		if err != nil || string(after.Leaf) != string(before.Leaf) || string(after.Authority) != string(before.Authority) {
			t.Errorf("got another report, %v, want the same shared leaf under the same root", err)
		}
		if _, err := Restore(t.Context(), r.config); err == nil {
			t.Error("got no error of a second root in one store")
		}
	}
}

// TestBackupRefusals: requests for backups that the authority must refuse.
func TestBackupRefusals(t *testing.T) {
	w := newWorld(t)
	a := w.open()
	w.Keys["mallory"] = testworld.NewKey()
	good := w.ask(a, "ana")
	stranger, another, other := w.ask(a, "mallory"), good, good
	another.Signature = w.Signature("ana", sshsig.ForPolicy, string(good.Statement))
	other.Statement = []byte(strings.Replace(string(good.Statement), "clinic", "klinik", 1))
	rows := []struct {
		name string
		r    api.BackupRequest
		want wire.Reason
	}{
		{"nobody", api.BackupRequest{}, wire.Malformed},
		{"a stranger", stranger, wire.NotOwner},
		{"a signature of another kind", another, wire.BadSignature},
		{"another statement", other, wire.Malformed},
	}
	for _, r := range rows {
		t.Run(r.name, func(t *testing.T) {
			made, err := a.backup(r.r)
			testworld.Refused(t, err, r.want)
			if len(made.Shares) > 0 {
				t.Error("got shares with an error")
			}
		})
	}
	if _, err := a.backup(good); err != nil {
		t.Errorf("the good request: %v", err)
	}
	forged := w.split(a)[0]
	forged.ID = strings.Repeat("0", 32)
	_, err := a.backupKept(t.Context(), api.BackupKept{Share: forged.Bytes()})
	testworld.Refused(t, err, wire.BadShare)
	if got := testworld.Must(a.backupState(t.Context())); got.State != api.BackupNone {
		t.Errorf("got state %q, want none", got.State)
	}
}

// TestRestoreRefusals: each row changes one thing in a good restoration, and it is refused.
func TestRestoreRefusals(t *testing.T) {
	w := newWorld(t)
	a := w.open()
	shares, second := w.split(a), w.split(a)
	good := func(r *restoration, i int) backup.Share { return testworld.Must(r.unlock(a, shares[i])) }
	rows := []struct {
		name  string
		spoil func(r *restoration)
		want  wire.Reason
		named string
	}{
		{"one share", func(r *restoration) { r.config.Shares = r.config.Shares[:1] }, wire.NoQuorum, ""},
		{"one share twice", func(r *restoration) { r.config.Shares[1] = r.config.Shares[0] }, wire.BadShare, "ana"},
		{"a share of another backup", func(r *restoration) { r.config.Shares[1] = testworld.Must(r.unlock(a, second[1])) }, wire.BadShare, "ben"},
		{"a share that is still sealed", func(r *restoration) { r.config.Shares[1] = shares[1] }, wire.BadShare, "ben"},
		{"a share under another's name", func(r *restoration) { r.config.Shares[1].Owner = "eva" }, wire.BadShare, "eva"},
		{"a share changed by one bit", func(r *restoration) { r.config.Shares[1].Sealed[9] ^= 1 }, wire.BadShare, "ben"},
		{"a share under another header", func(r *restoration) { r.config.Shares[1].Owners[0] ^= 1 }, wire.BadShare, "ben"},
		{"shares under another draft", func(r *restoration) {
			for i := range r.config.Shares {
				r.config.Shares[i].Draft[0] ^= 1
			}
		}, wire.BadShare, "ana"},
		{"a history of another draft", func(r *restoration) {
			g := w.SignPolicy(w.text("lifetime = \"30m\"", "lifetime = \"31m\""), "ana", "ben")
			r.config.Genesis, r.config.History = wire.Sum(g.Policy), []api.HistoryEntry{{Policy: g.Policy, Signatures: g.Signatures}}
		}, wire.WrongDraft, "ana"},
		{"a history that has moved to other owners", func(r *restoration) {
			step := w.SignPolicy(w.NextText(a.inForce().approved, "quorum = 2", "quorum = 1"), "ana", "ben")
			r.config.History = append(slices.Clip(r.config.History), api.HistoryEntry{Policy: step.Policy, Signatures: step.Signatures})
		}, wire.StaleShare, "ana"},
		{"shares unlocked for another request", func(r *restoration) { r.config.Request = w.restoration(a, "authority").config.Request }, "", ""},
		{"another genesis", func(r *restoration) { r.config.Genesis[0] ^= 1 }, wire.WrongGenesis, ""},
		{"a history without its mark", func(r *restoration) { r.config.History[0].Adopted = nil }, wire.BadSignature, ""},
		{"marks that were forged in all", func(r *restoration) {
			for i := range r.config.Shares {
				r.config.Shares[i].Mark = make([]byte, 32)
			}
		}, wire.BadShare, ""},
	}
	for _, row := range rows {
		t.Run(row.name, func(t *testing.T) {
			r := w.restoration(a, "authority")
			r.config.Shares = []backup.Share{good(r, 0), good(r, 1)}
			row.spoil(r)
			_, err := Restore(t.Context(), r.config)
			if row.want != "" {
				testworld.Refused(t, err, row.want)
			}
			if err == nil || !strings.Contains(err.Error(), row.named) {
				t.Errorf("got %v, want an error that names %q", err, row.named)
			}
			if _, err := r.config.Store.RootRow(t.Context()); err == nil {
				t.Error("a refused restore left a root")
			}
		})
	}
}

// TestUnlockRefusals: an owner unlocks no share for these TEEs and keys.
func TestUnlockRefusals(t *testing.T) {
	w := newWorld(t)
	a := w.open()
	shares := w.split(a)
	other := w.restoration(a, "mallory")
	_, err := other.unlock(a, shares[0])
	testworld.Refused(t, err, wire.NotMeasured)

	for _, spoilt := range []struct {
		want  wire.Reason
		field func(*backup.Share) *wire.Digest
	}{
		{wire.WrongDraft, func(s *backup.Share) *wire.Digest { return &s.Draft }},
		{wire.WrongGenesis, func(s *backup.Share) *wire.Digest { return &s.Genesis }},
		{wire.WrongRoot, func(s *backup.Share) *wire.Digest { return &s.Root }},
		{wire.Behind, func(s *backup.Share) *wire.Digest { return &s.Head }},
		{wire.StaleShare, func(s *backup.Share) *wire.Digest { return &s.Owners }},
	} {
		s := shares[0]
		spoilt.field(&s)[0] ^= 1
		_, err := w.restoration(a, "authority").unlock(a, s)
		testworld.Refused(t, err, spoilt.want)
	}

	r := w.restoration(a, "authority")
	r.config.Request.Key = other.config.Request.Key
	_, err = r.unlock(a, shares[0])
	testworld.Refused(t, err, wire.BadNonce)

	r = w.restoration(a, "authority")
	w.Keys["ana"] = testworld.NewKey()
	_, err = r.unlock(a, shares[0])
	testworld.Refused(t, err, wire.BadShare)
}

// TestStaleBackup: after the owners change, the old shares restore nothing, and the backup record
// is reported as stale.
func TestStaleBackup(t *testing.T) {
	w := newWorld(t, `delay = "1h"`, `delay = "0s"`)
	a := w.open()
	shares := w.split(a)
	testworld.Must(a.backupKept(t.Context(), api.BackupKept{Share: shares[0].Bytes()}))
	text := w.NextText(a.inForce().approved, "quorum = 2", "quorum = 1")
	step := w.SignPolicy(text, "ana", "ben")
	testworld.Must(a.history.Propose(t.Context(), api.ProposeRequest{Policy: step.Policy, Signatures: step.Signatures}))
	if got := testworld.Must(a.backupState(t.Context())); got.State != api.BackupStale {
		t.Errorf("got state %q, want stale", got.State)
	}
	_, err := w.restoration(a, "authority").unlock(a, shares[0])
	testworld.Refused(t, err, wire.StaleShare)
	w.clock.Advance(2 * time.Second)
	fresh := w.split(a)
	if got := testworld.Must(a.backupKept(t.Context(), api.BackupKept{Share: fresh[0].Bytes()})); got.State != api.BackupCurrent {
		t.Errorf("got state %q after a new backup, want current", got.State)
	}
	if got := testworld.Must(a.backupKept(t.Context(), api.BackupKept{Share: shares[0].Bytes()})); got.ID != fresh[0].ID {
		t.Errorf("got backup %s after an older one was shown, want %s", got.ID, fresh[0].ID)
	}
}

// TestRequestForm: malformed restore requests are refused.
func TestRequestForm(t *testing.T) {
	w := newWorld(t)
	good := testworld.Must(json.Marshal(w.restoration(w.open(), "authority").config.Request))
	if _, err := backup.ParseRequest(good); err != nil {
		t.Fatal(err)
	}
	for _, bad := range []string{"", "{}", string(good) + "{}", strings.Replace(string(good), "restore-request", "share", 1)} {
		_, err := backup.ParseRequest([]byte(bad))
		testworld.Refused(t, err, wire.Malformed)
	}
}
