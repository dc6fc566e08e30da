package snp

import (
	"encoding/hex"
	"fmt"
	"strings"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/attest/snp/snprules"
	"github.com/cohort-tee/cohort/internal/wire"
)

// source is AMD's key distribution service (AMD 57230).
var source = attest.Source{Name: "amd", Base: "https://kdsintf.amd.com", Usage: "AMD's service or a mirror of it"}

// Platform is AMD SEV-SNP.
func Platform() attest.PlatformInfo {
	return attest.PlatformInfo{
		PolicyRules: snprules.SNP,
		Title:       "AMD SEV-SNP",
		Appraiser:   func() attest.Appraiser { return new(reportAppraiser) },
		Sources:     []attest.Source{source},
		Documents:   func(e attest.Evidence) []attest.Document { return documents(e.Raw) },
		Recognize: attest.Recognizer(attest.SNP, func(raw []byte) bool {
			return len(raw) == reportSize && raw[0] >= minVersion && raw[0] <= maxVersion
		}),
		RawForm: "SNP report",
	}
}

// AzurePlatform is AMD SEV-SNP on Azure.
func AzurePlatform() attest.PlatformInfo {
	return attest.PlatformInfo{
		PolicyRules: snprules.Azure,
		Title:       "AMD SEV-SNP on Azure",
		Appraiser:   func() attest.Appraiser { return new(azureAppraiser) },
		Sources:     []attest.Source{source},
		Documents: func(e attest.Evidence) []attest.Document {
			fields, err := wire.Unframe(wire.LabelAzureEvidence, e.Raw, 5)
			if err != nil {
				return nil
			}
			return documents(fields[0])
		},
	}
}

// documents lists those of a report (docs/spec/evidence-snp.md). A VLEK comes with the
// evidence or not at all.
func documents(raw []byte) []attest.Document {
	r, err := parseReport(raw)
	if err != nil {
		return nil
	}
	product := unverifiedChain(r).current().product
	key := strings.ToLower(r.signer.String())
	folder, path := "snp/"+product+"/", "/"+key+"/v1/"+product
	all := []attest.Document{
		{Role: "ask_ark", Name: folder + key + "_chain.pem", Source: source.Name, Path: path + "/cert_chain"},
		{Role: "crl", Kind: attest.RevocationListDocument, Name: folder + "crl.der", Source: source.Name, Path: path + "/crl"},
	}
	if r.signer == signerVCEK && !r.hidden() {
		chip, levels := vcekQuery(product, r)
		tcb := tcbBytes(r.ReportedTCB)
		all = append(all, attest.Document{
			Role: "vcek", OfChip: true, Name: folder + chip + "-" + hex.EncodeToString(tcb[:]) + ".der",
			Source: source.Name, Path: path + "/" + chip + "?" + levels,
		})
	}
	return all
}

// vcekQuery is the chip id as AMD's service takes it, and the firmware levels of the
// reported TCB.
func vcekQuery(product string, r report) (chip, levels string) {
	tcb := tcbOf(product, r.ReportedTCB)
	rest := fmt.Sprintf("blSPL=%d&teeSPL=%d&snpSPL=%d&ucodeSPL=%d", tcb.Bootloader, tcb.TEE, tcb.SNP, tcb.Microcode)
	if product == turin {
		return hex.EncodeToString(r.ChipID[:8]), fmt.Sprintf("fmcSPL=%d&", tcb.FMC) + rest
	}
	return hex.EncodeToString(r.ChipID), rest
}
