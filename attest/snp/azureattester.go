//go:build linux

package snp

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/attest/tpm"
	"github.com/cohort-tee/cohort/internal/wire"
)

// Where Azure's paravisor puts things into the TPM of a guest.
const (
	azureReportIndex = 0x01400001 // NV: its report
	azureKeyHandle   = 0x81000003 // the attestation key, without a password
)

// AzureAttester asks the TPM of a confidential machine on Azure: the report of the
// paravisor, which is in it since the machine booted, and a quote by the key
// that the report binds. It is safe for concurrent use. Endorsements come from the
// authority's collateral.
type AzureAttester struct{ machine tpm.Machine }

var _ attest.Attester = (*AzureAttester)(nil)

// NewAzureAttester finds the report. It refuses with "not-this-device" on every
// machine without one, and where the TPM may not be used.
func NewAzureAttester(m tpm.Machine) (*AzureAttester, error) {
	a := &AzureAttester{m}
	if _, _, err := a.report(); err != nil {
		return nil, wire.Refuse(wire.NotThisDevice, "snp on azure: not this machine", err, "a confidential machine of Azure's on SEV-SNP, and root")
	}
	return a, nil
}

// Attest makes evidence: the TPM responds within a second, and ctx is checked
// before the request.
func (a *AzureAttester) Attest(ctx context.Context, data attest.ReportData) (attest.Evidence, error) {
	if err := ctx.Err(); err != nil {
		return attest.Evidence{}, err
	}
	report, runtime, err := a.report()
	if err != nil {
		return attest.Evidence{}, err
	}
	extra := sha256.Sum256(data[:])
	quoted, err := a.machine.QuoteBy(azureKeyHandle, everyPCR(), extra[:])
	if err != nil {
		return attest.Evidence{}, err
	}
	e := azureEvidence{report: report, runtime: runtime, quote: quoted.Quote, signature: quoted.Signature, values: quoted.Values}
	return attest.Evidence{Platform: attest.AzureSNP, Raw: e.bytes()}, nil
}

func (a *AzureAttester) report() (report, runtime []byte, err error) {
	raw, err := a.machine.ReadNV(azureReportIndex)
	if err != nil {
		return nil, nil, err
	}
	return parseHCL(raw)
}

// The layout of the paravisor's report, little-endian: a header, the chip's
// report, and a header and the bytes of the runtime data. What follows is padding.
const (
	hclHeader     = 32
	hclKind       = 12 // offset of the kind of report
	runtimeHeader = 20
	hclSNP        = 2 // in both headers
	hclSHA256     = 1 // what the chip's report has of the runtime data
)

// parseHCL takes the paravisor's report apart. It refuses with "malformed" what is
// none of SEV-SNP.
func parseHCL(raw []byte) (report, runtime []byte, err error) {
	const end = hclHeader + reportSize
	if len(raw) < end+runtimeHeader || !bytes.HasPrefix(raw, []byte("HCLA")) {
		return nil, nil, wire.Refuse(wire.Malformed, "snp on azure: the paravisor's report", hex.EncodeToString(raw[:min(len(raw), 4)]), "HCLA, and a report")
	}
	number := func(at int) uint32 { return binary.LittleEndian.Uint32(raw[at:]) }
	kinds := [3]uint32{number(hclKind), number(end + 8), number(end + 12)}
	if want := [3]uint32{hclSNP, hclSNP, hclSHA256}; kinds != want {
		return nil, nil, wire.Refuse(wire.Malformed, "snp on azure: kinds of report, of runtime data, and of their digest", kinds, want)
	}
	size := number(end + 16)
	if rest := len(raw) - end - runtimeHeader; size == 0 || uint64(size) > uint64(min(rest, maxRuntime)) {
		return nil, nil, wire.Refuse(wire.Malformed, "snp on azure: size of the runtime data", size, min(rest, maxRuntime))
	}
	return raw[hclHeader:end], raw[end+runtimeHeader:][:size], nil
}
