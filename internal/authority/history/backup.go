package history

import (
	"context"
	"time"

	"github.com/cohort-tee/cohort/internal/authority/records"
	"github.com/cohort-tee/cohort/internal/authority/store"
	"github.com/cohort-tee/cohort/internal/backup"
	"github.com/cohort-tee/cohort/internal/wire"
)

// Backup is the record of the newest backup in the store.
type Backup struct {
	ID      string
	Created time.Time
	Head    wire.Digest
	Owners  wire.Digest
}

// BackupRecord reads the record of the newest backup, the zero Row where there is none.
func (h *History) BackupRecord(ctx context.Context) (row store.Row, known Backup, err error) {
	if row, err = h.store.Backup(ctx); err == nil && row.MAC != nil {
		fault := h.records.Open(records.TableBackup, row, &known)
		h.damage.Report(h.log, records.TableBackup, records.Faults(fault))
		if fault != nil {
			known = Backup{} // treat as no record; the next backup replaces it
		}
	}
	return row, known, err
}

// RecordBackup records a backup, unless the store has the record of a newer one.
func (h *History) RecordBackup(ctx context.Context, header backup.Header) error {
	now, err := h.clock.Now()
	if err != nil {
		return err
	}
	old, known, err := h.BackupRecord(ctx)
	// A record dated far in the future, from a wrong clock, does not block newer backups.
	if believed := !known.Created.After(now.Add(wire.MaxClockJump)); err != nil || old.MAC != nil && believed && !header.Created.After(known.Created) {
		return err
	}
	row, err := h.records.Seal(records.TableBackup, []byte(header.ID), Backup{ID: header.ID, Created: header.Created, Head: header.Head, Owners: header.Owners})
	if err != nil {
		return err
	}
	return h.store.SwapBackup(ctx, old, row)
}
