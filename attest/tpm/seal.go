//go:build linux

package tpm

import (
	"bytes"
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"crypto/sha256"
	"fmt"
	"slices"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/attest/tpm/tpmrules"
	"github.com/cohort-tee/cohort/internal/wire"
	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"
)

// maxBranches is how many sets of boot PCRs TPM2_PolicyOR takes.
const maxBranches = 8

// branch is one set of boot PCRs that a key is sealed to.
type branch struct {
	pcrs   []int
	digest []byte // over their values
}

// branchOf is the part of a reference value that the TPM itself checks.
func branchOf(r attest.ReferenceValue) (branch, error) {
	if r.Platform != attest.TPM || len(r.Registers) != len(tpmrules.Rules.Registers) {
		return branch{}, wire.Refuse(wire.NotMeasured, "tpm: reference value to seal to", r.Platform, attest.TPM)
	}
	var b branch
	h := sha256.New()
	for i, pcr := range bootPCRs {
		if register := r.Registers[i]; !register.Any {
			b.pcrs = append(b.pcrs, pcr)
			h.Write(register.Value)
		}
	}
	b.digest = h.Sum(nil)
	return b, nil
}

// policy is what TPM2_PolicyPCR makes of the branch.
func (b branch) policy() ([]byte, error) {
	c, err := tpm2.NewPolicyCalculator(tpm2.TPMAlgSHA256)
	if err != nil {
		return nil, err
	}
	if err := (tpm2.PolicyPCR{PcrDigest: tpm2.TPM2BDigest{Buffer: b.digest}, Pcrs: selectPCRs(b.pcrs)}).Update(c); err != nil {
		return nil, err
	}
	return c.Hash().Digest, nil
}

// policies are the different branches of the reference values.
func policies(to []attest.ReferenceValue) (branches []branch, all tpm2.TPMLDigest, err error) {
	for _, r := range to {
		b, err := branchOf(r)
		if err != nil {
			return nil, all, err
		}
		digest, err := b.policy()
		if err != nil {
			return nil, all, err
		}
		if !slices.ContainsFunc(all.Digests, func(d tpm2.TPM2BDigest) bool { return bytes.Equal(d.Buffer, digest) }) {
			branches, all.Digests = append(branches, b), append(all.Digests, tpm2.TPM2BDigest{Buffer: digest})
		}
	}
	if len(branches) == 0 || len(branches) > maxBranches {
		return nil, all, wire.Refuse(wire.TooLarge, "tpm: different sets of boot PCRs to seal to", len(branches), "1 to 8")
	}
	if len(branches) == 1 {
		all.Digests = append(all.Digests, all.Digests[0]) // PolicyOR takes two at least
	}
	return branches, all, nil
}

// Seal encrypts a secret under a key that the TPM gives out only while the boot
// PCRs are those of one of the reference values. That the program is theirs too
// is checked by Unseal, which is part of the agent that the boot PCRs vouch for.
func (d *Device) Seal(ctx context.Context, secret []byte, to []attest.ReferenceValue) ([]byte, error) {
	if len(secret) > wire.MaxSealed {
		return nil, wire.Refuse(wire.TooLarge, "sealing: size in bytes", len(secret), wire.MaxSealed)
	}
	if len(to) == 0 {
		own, err := d.ownMeasurement()
		if err != nil {
			return nil, err
		}
		to = []attest.ReferenceValue{own}
	}
	to = slices.DeleteFunc(slices.Clone(to), func(r attest.ReferenceValue) bool { return r.Platform != attest.TPM })
	_, all, err := policies(to)
	if err != nil {
		return nil, err
	}
	key := make([]byte, 32)
	rand.Read(key)
	defer clear(key)
	var private, public []byte
	err = d.machine.withTPM(func(t transport.TPM) (err error) {
		private, public, err = d.sealKey(t, key, all)
		return err
	})
	if err != nil {
		return nil, err
	}
	references := frameReferences(to)
	aead, err := sealingCipher(key)
	if err != nil {
		return nil, err
	}
	return wire.Frame(wire.LabelTPMSeal, private, public, references, aead.Seal(nil, nil, secret, references)), nil
}

func frameReferences(to []attest.ReferenceValue) []byte {
	var fields [][]byte
	for _, r := range to {
		fields = append(fields, r.Bytes())
	}
	return wire.Frame(wire.LabelTPMSealed, fields...)
}

func sealingCipher(key []byte) (cipher.AEAD, error) {
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, fmt.Errorf("making the sealing cipher: %w", err)
	}
	return cipher.NewGCMWithRandomNonce(block)
}

// ownMeasurement is the measurement of this launch.
func (d *Device) ownMeasurement() (attest.Measurement, error) {
	return d.machine.BootMeasurement(d.launch)
}

// sealKey makes a sealed object below the storage root key.
func (d *Device) sealKey(t transport.TPM, key []byte, to tpm2.TPMLDigest) (private, public []byte, err error) {
	calculator, err := tpm2.NewPolicyCalculator(tpm2.TPMAlgSHA256)
	if err != nil {
		return nil, nil, err
	}
	if err := (tpm2.PolicyOr{PHashList: to}).Update(calculator); err != nil {
		return nil, nil, err
	}
	template := tpm2.TPMTPublic{
		Type: tpm2.TPMAlgKeyedHash, NameAlg: tpm2.TPMAlgSHA256,
		ObjectAttributes: tpm2.TPMAObject{FixedTPM: true, FixedParent: true, NoDA: true},
		AuthPolicy:       tpm2.TPM2BDigest{Buffer: calculator.Hash().Digest},
		Parameters:       tpm2.NewTPMUPublicParms(tpm2.TPMAlgKeyedHash, &tpm2.TPMSKeyedHashParms{Scheme: tpm2.TPMTKeyedHashScheme{Scheme: tpm2.TPMAlgNull}}),
	}
	err = d.withStorageKey(t, func(parent tpm2.AuthHandle) error {
		made, err := tpm2.Create{
			ParentHandle: parent, InPublic: tpm2.New2B(template),
			InSensitive: tpm2.TPM2BSensitiveCreate{Sensitive: &tpm2.TPMSSensitiveCreate{
				Data: tpm2.NewTPMUSensitiveCreate(&tpm2.TPM2BSensitiveData{Buffer: key}),
			}},
		}.Execute(t)
		if err != nil {
			return absent(fmt.Errorf("sealing: %w", err))
		}
		private, public = made.OutPrivate.Buffer, made.OutPublic.Bytes()
		return nil
	})
	return private, public, err
}

// withStorageKey runs f with the storage root key.
func (d *Device) withStorageKey(t transport.TPM, f func(tpm2.AuthHandle) error) error {
	return withLoaded(t, d.storage, func(h tpm2.TPMHandle) error {
		read, err := tpm2.ReadPublic{ObjectHandle: h}.Execute(t)
		if err != nil {
			return absent(err)
		}
		return f(tpm2.AuthHandle{Handle: h, Name: read.Name, Auth: tpm2.PasswordAuth(nil)})
	})
}

// Unseal returns a secret. It refuses with "measurement" a launch that is none
// of the reference values, and a machine that booted otherwise; with "malformed"
// or "signature" what this TPM did not seal.
func (d *Device) Unseal(ctx context.Context, sealed []byte) ([]byte, error) {
	var f [4][]byte
	if err := wire.UnframeInto(f[:], wire.LabelTPMSeal, sealed); err != nil {
		return nil, err
	}
	to, err := parseReferences(f[2])
	if err != nil {
		return nil, err
	}
	own, err := d.ownMeasurement()
	if err != nil {
		return nil, err
	}
	at, err := matching(to, own)
	if err != nil {
		return nil, err
	}
	var key []byte
	err = d.machine.withTPM(func(t transport.TPM) (err error) {
		key, err = d.unsealKey(t, f[0], f[1], to, at)
		return err
	})
	if err != nil {
		return nil, err
	}
	defer clear(key)
	aead, err := sealingCipher(key)
	if err != nil {
		return nil, wire.Refuse(wire.BadSignature, "unsealing", fmt.Sprintf("a key of %d bytes", len(key)), "32 bytes")
	}
	secret, err := aead.Open(nil, nil, f[3], f[2])
	if err != nil {
		return nil, wire.Refuse(wire.BadSignature, "unsealing", "bytes this TPM did not seal", "its own")
	}
	return secret, nil
}

func parseReferences(b []byte) ([]attest.ReferenceValue, error) {
	fields, err := wire.Unframe(wire.LabelTPMSealed, b, -1)
	if err != nil {
		return nil, err
	}
	var to []attest.ReferenceValue
	for _, f := range fields {
		r, err := attest.ParseMeasurement(f)
		if err != nil {
			return nil, err
		}
		to = append(to, r)
	}
	return to, nil
}

// matching is the reference value that a measurement is.
func matching(to []attest.ReferenceValue, own attest.Measurement) (at attest.ReferenceValue, err error) {
	err = wire.Refuse(wire.Malformed, "unsealing: reference values", 0, "at least 1")
	for _, at = range to {
		if err = attest.Match(at, own); err == nil {
			return at, nil
		}
	}
	return at, err
}

// unsealKey lets the TPM check the boot PCRs and give the key out.
func (d *Device) unsealKey(t transport.TPM, private, public []byte, to []attest.ReferenceValue, at attest.ReferenceValue) (key []byte, err error) {
	_, all, err := policies(to)
	if err != nil {
		return nil, err
	}
	own, err := branchOf(at)
	if err != nil {
		return nil, err
	}
	foreign := func(err error) error {
		return wire.Refuse(wire.BadSignature, "unsealing", err, "what this TPM sealed to these reference values")
	}
	err = d.withStorageKey(t, func(parent tpm2.AuthHandle) error {
		object, err := tpm2.Load{ParentHandle: parent, InPrivate: tpm2.TPM2BPrivate{Buffer: private}, InPublic: tpm2.BytesAs2B[tpm2.TPMTPublic](public)}.Execute(t)
		if err != nil {
			return foreign(err)
		}
		defer flush(t, object.ObjectHandle)
		auth := tpm2.Policy(tpm2.TPMAlgSHA256, 16, own.satisfy(all))
		given, err := tpm2.Unseal{ItemHandle: tpm2.AuthHandle{Handle: object.ObjectHandle, Name: object.Name, Auth: auth}}.Execute(t)
		if err != nil {
			return foreign(err)
		}
		key = bytes.Clone(given.OutData.Buffer)
		return nil
	})
	return key, err
}

// satisfy shows the TPM that the branch is satisfied, and that it is one of all.
func (b branch) satisfy(all tpm2.TPMLDigest) tpm2.PolicyCallback {
	return func(t transport.TPM, session tpm2.TPMISHPolicy, _ tpm2.TPM2BNonce) error {
		if _, err := (tpm2.PolicyPCR{PolicySession: session, Pcrs: selectPCRs(b.pcrs)}).Execute(t); err != nil {
			return err
		}
		_, err := tpm2.PolicyOr{PolicySession: session, PHashList: all}.Execute(t)
		return err
	}
}
