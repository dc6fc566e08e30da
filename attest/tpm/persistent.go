//go:build linux

package tpm

import (
	"bytes"
	"fmt"

	"github.com/cohort-tee/cohort/internal/wire"
	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"
)

// ReadNV reads an index of NV memory whole, as its own reader or the owner's. It
// refuses with "not-this-device" where there is no such index.
func (m Machine) ReadNV(index uint32) (content []byte, err error) {
	err = m.withTPM(func(t transport.TPM) error {
		if content, err = readNV(t, tpm2.TPMHandle(index)); err == nil && content == nil {
			err = absent(fmt.Errorf("it has no NV index %#x", index))
		}
		return err
	})
	return content, err
}

// Quoted is what a key of a TPM states about PCRs of the SHA-256 bank.
type Quoted struct {
	Quote     []byte // TPMS_ATTEST, for [VerifyQuote]
	Signature []byte // TPMT_SIGNATURE, for [ParseSignature]
	Values    []byte // of the PCRs, 32 bytes each
}

// quoteTries is how often a quote is asked for whose PCRs change meanwhile.
const quoteTries = 3

// QuoteBy asks the key that is persistent at a handle, without a password, for a
// quote over PCRs, in ascending order, and extra data of at most 32 bytes. It
// refuses with "not-this-device" where no such key quotes.
func (m Machine) QuoteBy(handle uint32, pcrs []int, extra []byte) (got Quoted, err error) {
	err = m.withTPM(func(t transport.TPM) error {
		key, err := tpm2.ReadPublic{ObjectHandle: tpm2.TPMHandle(handle)}.Execute(t)
		if err != nil {
			return absent(fmt.Errorf("reading the key at %#x: %w", handle, err))
		}
		for range quoteTries {
			if got, err = quoteBy(t, tpm2.AuthHandle{Handle: tpm2.TPMHandle(handle), Name: key.Name, Auth: tpm2.PasswordAuth(nil)}, pcrs, extra); err != nil {
				return err
			}
			quote, err := UnverifiedQuote(got.Quote)
			if err == nil && quote.Covers(algSHA256, pcrs, got.Values) == nil {
				return nil
			}
		}
		return wire.Refuse(wire.Unavailable, "tpm: PCRs while they are quoted", "values that change", "the same before and after")
	})
	return got, err
}

func quoteBy(t transport.TPM, key tpm2.AuthHandle, pcrs []int, extra []byte) (got Quoted, err error) {
	if got.Values, err = readPCRs(t, pcrs); err != nil {
		return got, err
	}
	q, err := tpm2.Quote{
		SignHandle: key, QualifyingData: tpm2.TPM2BData{Buffer: extra},
		InScheme: tpm2.TPMTSigScheme{Scheme: tpm2.TPMAlgNull}, PCRSelect: selectPCRs(pcrs),
	}.Execute(t)
	if err != nil {
		return got, absent(fmt.Errorf("quoting: %w", err))
	}
	got.Quote, got.Signature = bytes.Clone(q.Quoted.Bytes()), tpm2.Marshal(q.Signature)
	return got, nil
}
