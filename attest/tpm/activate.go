//go:build linux

package tpm

import (
	"context"
	"fmt"

	"github.com/cohort-tee/cohort/internal/wire"
	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"
)

// ExportKey is the attestation key as this TPM alone loads it, with its authorization:
// Frame("cohort tpm kept key v1", private, public, authorization).
func (d *Device) ExportKey() []byte {
	return wire.Frame(wire.LabelTPMKept, d.private, d.in.Key, d.auth)
}

// ActivateCredential returns the secret of a credential that was made for this device and a key
// that an earlier start kept.
func (d *Device) ActivateCredential(ctx context.Context, kept, credential []byte) (secret []byte, err error) {
	var f [3][]byte // private, public, authorization
	if err := wire.UnframeInto(f[:], wire.LabelTPMKept, kept); err != nil {
		return nil, err
	}
	object, encrypted, err := splitCredential(credential)
	if err != nil {
		return nil, err
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	err = d.machine.withTPM(func(t transport.TPM) error {
		h, err := loadKept(t, f[0], f[1])
		if err != nil {
			return err
		}
		defer flush(t, h)
		secret, err = d.activate(t, keyHandle(h, nameOf(f[1]), f[2]), object, encrypted)
		return err
	})
	return secret, err
}

// loadKept loads a key below the storage root key.
func loadKept(t transport.TPM, private, public []byte) (tpm2.TPMHandle, error) {
	root, err := tpm2.CreatePrimary{PrimaryHandle: tpm2.TPMRHOwner, InPublic: tpm2.New2B(tpm2.ECCSRKTemplate)}.Execute(t)
	if err != nil {
		return 0, absent(fmt.Errorf("making the storage root key: %w", err))
	}
	defer flush(t, root.ObjectHandle)
	key, err := tpm2.Load{
		ParentHandle: tpm2.AuthHandle{Handle: root.ObjectHandle, Name: root.Name, Auth: tpm2.PasswordAuth(nil)},
		InPrivate:    tpm2.TPM2BPrivate{Buffer: private}, InPublic: tpm2.BytesAs2B[tpm2.TPMTPublic](public),
	}.Execute(t)
	if err != nil {
		return 0, wire.Refuse(wire.WrongChip, "tpm: kept key", err, "one of this device")
	}
	return key.ObjectHandle, nil
}
