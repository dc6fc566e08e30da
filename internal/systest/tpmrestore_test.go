package systest

import (
	"encoding/json"
	"path/filepath"
	"testing"

	"filippo.io/age"
	"filippo.io/age/agessh"
	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/attest/tpm"
	"github.com/cohort-tee/cohort/identity"
	"github.com/cohort-tee/cohort/internal/authority"
	"github.com/cohort-tee/cohort/internal/authority/sealed"
	"github.com/cohort-tee/cohort/internal/authority/store"
	"github.com/cohort-tee/cohort/internal/backup"
	"github.com/cohort-tee/cohort/internal/wire"
)

// backedUp is an estate on a TPM, a share of its root, and the identity that opens the
// share.
type backedUp struct {
	*estate
	share backup.Share
	owner age.Identity
}

// backUp splits the root as the authority does, with a quorum of one.
func (e *estate) backUp() backedUp {
	e.t.Helper()
	raw, err := e.unseal("authority")
	if err != nil {
		e.t.Fatal(err)
	}
	f, err := wire.Unframe(wire.LabelRoot, raw, 2)
	if err != nil {
		e.t.Fatal(err)
	}
	secret, err := identity.OpenSecret(f[0])
	if err != nil {
		e.t.Fatal(err)
	}
	shares, err := backup.Split(secret, wire.Digest(f[1]), e.trust().Policy(), e.wall())
	if err != nil {
		e.t.Fatal(err)
	}
	id, err := agessh.NewEd25519Identity(e.owner.Private)
	if err != nil {
		e.t.Fatal(err)
	}
	return backedUp{e, shares[0], id}
}

// ask returns the restore request of one start of a program; a later start continues it.
func (b backedUp) ask(program string) backup.Request {
	b.t.Helper()
	tee, _ := b.launch(program)
	r, err := sealed.AskRestore(b.t.Context(), tee, tee)
	if err != nil {
		b.t.Fatal(err)
	}
	return r
}

// unlock unlocks the owner's share for a request.
func (b backedUp) unlock(r backup.Request) (backup.Share, error) {
	return backup.Unlock(b.share, b.owner, backup.RestoringTEE{Request: r, Approved: b.trust().Policy(), Verifier: verifier(), At: b.wall()})
}

// restore restores the root in a new start of the authority's program, from the share.
func (b backedUp) restore(r backup.Request, s backup.Share) (wire.Digest, error) {
	b.t.Helper()
	db, err := store.Create(b.t.Context(), "sqlite:"+filepath.Join(b.t.TempDir(), "restored.db"))
	if err != nil {
		b.t.Fatal(err)
	}
	defer db.Close()
	history, err := authorityOf(b.t, b.Cluster).History(b.t.Context(), 0)
	if err != nil {
		b.t.Fatal(err)
	}
	tee, _ := b.launch("authority")
	return authority.Restore(b.t.Context(), authority.RestoreConfig{
		Store: db, Attester: tee, Sealer: tee, Verifier: verifier(), Clock: b.read,
		Genesis: b.Genesis, History: history.Entries, Request: r, Shares: []backup.Share{s},
	})
}

// testTPMRestore restores the root of an authority on its TPM. A share that an owner
// unlocks opens in the TPM whose certificate the request contains, and nowhere else.
func testTPMRestore(t *testing.T, e *estate) {
	b := e.backUp()
	request := b.ask("authority")
	share, err := b.unlock(request)
	if err != nil {
		t.Fatal(err)
	}
	if root, err := b.restore(request, share); err != nil || root != e.Root {
		t.Errorf("got root %v, %v, want %v", root, err, e.Root)
	}

	_, err = b.unlock(b.ask("scoring 1"))
	wantRule(t, err, wire.NotMeasured, "measurement: program")
	_, err = b.restore(b.ask("authority"), share)
	wantRule(t, err, wire.BadShare, "share of ana")

	// A key that is not in the TPM of the accompanying certificate.
	of, err := b.unlock(b.withOther(request))
	if err != nil {
		t.Fatal(err)
	}
	_, err = b.restore(request, of)
	wantRule(t, err, wire.WrongChip, "share of ana")
	of.Credential = nil
	_, err = b.restore(request, of)
	wantRule(t, err, wire.Malformed, "")
}

// withOther returns a request whose evidence contains the certificate of another TPM of the
// same maker.
func (b backedUp) withOther(r backup.Request) backup.Request {
	b.t.Helper()
	other := b.maker.TPM(b.t)
	other.Boot(b.t)
	tee, err := tpm.NewDevice(tpm.Config{Machine: tpm.Machine{Path: other.Path, Log: other.Log}, CA: b.maker.CA(b.t), Launch: tpm.Launch{Arguments: tpm.Arguments(nil)}})
	if err != nil {
		b.t.Fatal(err)
	}
	var e attest.Evidence
	if err := e.UnmarshalJSON(r.Evidence); err != nil {
		b.t.Fatal(err)
	}
	fields, err := wire.Unframe(wire.LabelTPMEvidence, e.Raw, -1)
	if err != nil {
		b.t.Fatal(err)
	}
	fields[0] = tee.TPMKeys().Device
	e.Raw = wire.Frame(wire.LabelTPMEvidence, fields...)
	if r.Evidence, err = json.Marshal(e); err != nil {
		b.t.Fatal(err)
	}
	return r
}
