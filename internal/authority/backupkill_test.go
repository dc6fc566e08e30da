package authority

import (
	"context"
	"testing"
	"time"

	"github.com/cohort-tee/cohort/internal/api"
	"github.com/cohort-tee/cohort/internal/authority/store"
	"github.com/cohort-tee/cohort/internal/backup"
	"github.com/cohort-tee/cohort/internal/testworld"
)

// owned are the backups of one root, as the owner who requested them has them.
type owned struct {
	w      *world
	shares map[string][]backup.Share // by backup id
	record string                    // id of the backup on record before this run of the child, or empty
	made   string                    // id of the backup made in this run
	kept   bool                      // that backup was acknowledged
	lives  int
}

// TestBackupKilledAnywhere kills an authority at one point after the other while it makes and
// records a backup. Afterwards the record is the old one or the new one, whole; an acknowledged
// backup is on record; and the backup on record restores the root.
func TestBackupKilledAnywhere(t *testing.T) {
	vendor, chip := sameChip(t)
	w := newWorldOf(t, vendor, chip)
	o := &owned{w: w, shares: map[string][]backup.Share{}}
	o.on(func(*Authority) {})
	w.killAnywhere(32, o.live, o.check)
	o.on(o.restores)
}

// on calls do with an authority in this process.
func (o *owned) on(do func(*Authority)) {
	o.w.T.Helper()
	db := testworld.Must(store.Open(o.w.T.Context(), o.w.dsn))
	defer db.Close()
	do(testworld.Must(Open(o.w.T.Context(), o.w.configOn(db, "authority"))))
}

// live runs an authority that dies at its n-th point, and requests a backup from it. In every
// other run it first deletes the backup record.
func (o *owned) live(n int) *child {
	o.w.T.Helper()
	if o.made, o.kept = "", false; o.lives%2 == 0 {
		exec(o.w.T, o.w.dsn, `DELETE FROM backup`)
		o.record = ""
	}
	o.lives++
	c, before := o.w.startOf(n)
	if c.Authority != nil {
		ctx, cancel := context.WithTimeout(o.w.T.Context(), 20*time.Second)
		defer cancel()
		o.ask(ctx, c, before)
	}
	if n == 0 {
		if err := c.stop(); err != nil || !o.kept {
			o.w.T.Fatalf("an authority that is not killed: %v, kept %v\n%s", err, o.kept, o.w.log)
		}
		o.check()
	}
	return c
}

// ask requests shares, and confirms the backup with one of them.
func (o *owned) ask(ctx context.Context, c *child, before *Authority) {
	o.w.T.Helper()
	response, err := c.MakeBackup(ctx, o.w.ask(before, "ana"))
	if err != nil {
		return
	}
	o.made = o.note(before, response)
	if known, err := c.ConfirmBackup(ctx, api.BackupKept{Share: response.Shares[0]}); err == nil {
		o.kept = true
		o.same(known, o.made)
	}
	if known, err := c.Backup(ctx); err == nil && o.kept {
		o.same(known, o.made)
	}
}

// note demands a whole backup and stores its shares.
func (o *owned) note(a *Authority, response api.BackupShares) (id string) {
	o.w.T.Helper()
	if len(response.Shares) != len(o.w.Owners) {
		o.w.T.Fatalf("got %d shares, want %d", len(response.Shares), len(o.w.Owners))
	}
	for _, b := range response.Shares {
		s := testworld.Must(backup.Parse(b))
		if err := s.CheckPolicy(a.inForce().approved); err != nil {
			o.w.T.Error(err)
		}
		id = s.ID
		o.shares[id] = append(o.shares[id], s)
	}
	return id
}

// same demands that told is the whole record of the backup id, or no backup if id is empty.
func (o *owned) same(told api.Backup, id string) {
	o.w.T.Helper()
	want := api.Backup{State: api.BackupNone}
	if id != "" {
		of := o.shares[id][0]
		want = api.Backup{State: api.BackupCurrent, ID: id, Created: &of.Created, Head: of.Head}
	}
	if told.State != want.State || told.ID != want.ID || told.Head != want.Head ||
		(told.Created == nil) != (want.Created == nil) || told.Created != nil && !told.Created.Equal(*want.Created) {
		o.w.T.Errorf("got %+v on record, want %+v", told, want)
	}
}

// check compares the backup record after a run with the responses in that run, and then makes a
// new backup.
func (o *owned) check() {
	o.w.T.Helper()
	o.on(func(a *Authority) {
		told := testworld.Must(a.backupState(o.w.T.Context()))
		if o.kept || o.made != "" && told.ID == o.made {
			o.record = o.made
		}
		o.same(told, o.record)
		o.w.clock.Advance(time.Minute) // a backup of the same second does not count as newer
		next := testworld.Must(a.backup(o.w.ask(a, "ben")))
		o.record = o.note(a, next)
		o.same(testworld.Must(a.backupKept(o.w.T.Context(), api.BackupKept{Share: next.Shares[2]})), o.record)
		o.w.clock.Advance(time.Minute)
	})
}

// restores restores the root from the backup on record.
func (o *owned) restores(a *Authority) {
	o.w.T.Helper()
	r := o.w.restoration(a, "authority")
	for _, s := range o.shares[testworld.Must(a.backupState(o.w.T.Context())).ID][:2] {
		r.config.Shares = append(r.config.Shares, testworld.Must(r.unlock(a, s)))
	}
	if root, err := Restore(o.w.T.Context(), r.config); err != nil || root != o.w.root {
		o.w.T.Errorf("got root %v, %v, want %v", root, err, o.w.root)
	}
}
