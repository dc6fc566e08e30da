package sealed

import (
	"context"
	"crypto/hpke"
	"encoding/json"
	"fmt"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/internal/backup"
	"github.com/cohort-tee/cohort/internal/wire"
)

// AskRestore makes the request that owners respond to with their shares. It seals the request's
// key to its own measurement, so that the process may end before the shares arrive.
func AskRestore(ctx context.Context, attester attest.Attester, sealer attest.Sealer) (backup.Request, error) {
	r := backup.Request{Schema: backup.SchemaRequest}
	key, err := hpke.MLKEM768X25519().GenerateKey()
	if err != nil {
		return r, fmt.Errorf("making the request's key: %w", err)
	}
	private, err := key.Bytes()
	if err != nil {
		return r, fmt.Errorf("making the request's key: %w", err)
	}
	defer clear(private)
	r.Key = key.PublicKey().Bytes()
	if tee, ok := attester.(attest.CredentialActivator); ok {
		kept := tee.ExportKey()
		private = wire.Frame(wire.LabelRestoreKey, private, kept)
		clear(kept)
		defer clear(private)
	}
	if r.SealedKey, err = sealer.Seal(ctx, private, nil); err != nil {
		return r, fmt.Errorf("sealing the request's key: %w", err)
	}
	evidence, err := attester.Attest(ctx, r.ReportData())
	if err != nil {
		return r, fmt.Errorf("attesting the request's key: %w", err)
	}
	r.Evidence, err = json.Marshal(evidence)
	return r, err
}

// Restore opens shares with the request's key, which only this TEE can unseal, and combines them
// into the root.
func Restore(ctx context.Context, attester attest.Attester, sealer attest.Sealer, r backup.Request, shares []backup.Share) (Root, error) {
	sealed, err := sealer.Unseal(ctx, r.SealedKey)
	defer clear(sealed)
	if err != nil {
		return Root{}, fmt.Errorf("unsealing the request's key: %w", err)
	}
	private, keys := sealed, backup.Keys{}
	if tee, ok := attester.(attest.CredentialActivator); ok {
		f, err := wire.Unframe(wire.LabelRestoreKey, sealed, 2)
		if err != nil {
			return Root{}, fmt.Errorf("reading the request's key: %w", err)
		}
		private = f[0]
		keys.Open = func(credential []byte) ([]byte, error) { return tee.ActivateCredential(ctx, f[1], credential) }
	}
	if keys.Private, err = hpke.MLKEM768X25519().NewPrivateKey(private); err != nil {
		return Root{}, fmt.Errorf("reading the request's key: %w", err)
	}
	secret, header, err := backup.Combine(shares, keys)
	if err != nil {
		return Root{}, err
	}
	return newRoot(secret, header.Draft)
}
