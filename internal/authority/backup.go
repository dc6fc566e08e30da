package authority

import (
	"context"
	"crypto/hmac"
	"fmt"

	"github.com/cohort-tee/cohort/internal/api"
	"github.com/cohort-tee/cohort/internal/backup"
	"github.com/cohort-tee/cohort/internal/wire"
)

// backup makes shares of the root for the owners of the policy in force, when one of them sends a
// signed request. It records nothing: shares that no owner kept are no backup.
func (a *Authority) backup(r api.BackupRequest) (api.BackupShares, error) {
	if err := a.history.Behind(); err != nil {
		return api.BackupShares{}, err
	}
	snap := a.inForce()
	if snap.unnamed != nil {
		return api.BackupShares{}, wire.Refuse(wire.Unavailable, "authority", snap.unnamed, "an authority that policy names")
	}
	owner, err := snap.approved.AdmitBackup(r.Statement, r.Signature)
	if err != nil {
		return api.BackupShares{}, err
	}
	now, err := a.clock.Now()
	if err != nil {
		return api.BackupShares{}, err
	}
	shares, err := backup.Split(a.root.Secret, a.root.Draft, snap.approved, now)
	if err != nil {
		return api.BackupShares{}, err
	}
	var response api.BackupShares
	for _, s := range shares {
		response.Shares = append(response.Shares, s.Bytes())
	}
	a.log.Info("shares of the root made", "owner", owner, "backup", shares[0].ID, "shares", len(shares))
	return response, nil
}

// backupKept records a backup when an owner shows one of its shares: the mark in the share proves
// that it was made under this root. A backup older than the recorded one changes nothing.
func (a *Authority) backupKept(ctx context.Context, k api.BackupKept) (api.Backup, error) {
	share, err := backup.Parse(k.Share)
	if err != nil {
		return api.Backup{}, err
	}
	if !hmac.Equal(share.Mark, backup.MarkBackup(a.root.Keys, share.Header)) {
		return api.Backup{}, wire.Refuse(wire.BadShare, "backup: mark", fmt.Sprintf("%x", share.Mark), "a mark made under this root")
	}
	if err := a.history.RecordBackup(ctx, share.Header); err != nil {
		return api.Backup{}, err
	}
	a.log.Info("backup recorded", "backup", share.ID)
	return a.backupState(ctx)
}

// backupState returns the recorded backup and whether its owners are still those of the policy in
// force.
func (a *Authority) backupState(ctx context.Context) (api.Backup, error) {
	_, known, err := a.history.BackupRecord(ctx)
	if err != nil || known.ID == "" {
		return api.Backup{State: api.BackupNone}, err
	}
	state := api.BackupCurrent
	if known.Owners != a.inForce().document().Owners.Digest() {
		state = api.BackupStale
	}
	return api.Backup{State: state, ID: known.ID, Created: &known.Created, Head: known.Head}, nil
}
