package snp

import (
	"bytes"
	"crypto/rsa"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"math/big"
	"time"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/attest/internal/closed"
	"github.com/cohort-tee/cohort/attest/tpm"
	"github.com/cohort-tee/cohort/internal/wire"
)

const (
	azureKey   = "HCLAkPub" // what Azure's paravisor calls the attestation key of its TPM
	azureBank  = 0x000b     // TPM_ALG_SHA256
	azurePCRs  = 24         // of a PC's TPM, all of them
	pcrSize    = 32
	maxRuntime = 8 << 10 // bytes of runtime data; captured ones have 1110
	minModulus = 2048    // bits
)

// azureAppraiser appraises evidence of Azure's confidential virtual machines on SEV-SNP. Their
// reports are the paravisor's, who runs at privilege level 0 and gives the guest a
// TPM: a report binds the TPM's attestation key, and that key quotes the PCRs. It
// is safe for concurrent use; the zero Azure is ready. Endorsements and rules are
// those of [Platform].
//
// It trusts the paravisor, which the launch digest names: every guest that can
// ask for a report at level 0 can bind a key of its own.
type azureAppraiser struct {
	reports reportAppraiser
}

// Platform is [attest.AzureSNP].
func (*azureAppraiser) Platform() attest.Platform { return attest.AzureSNP }

// Genuine implements [attest.Appraiser].
func (a *azureAppraiser) Genuine() closed.Appraiser { return closed.VouchFor(a) }

// Appraise appraises evidence; it adds to the checks of a report those of the key,
// its quote and the PCR values.
func (a *azureAppraiser) Appraise(raw []byte, endorsed attest.Endorsements, rules attest.Rules, at time.Time) (attest.Claims, error) {
	e, err := parseAzure(raw)
	if err != nil {
		return attest.Claims{}, err
	}
	r, c, err := a.reports.genuine(e.report, endorsed, rules, at)
	if err != nil {
		return attest.Claims{}, err
	}
	quote, err := e.quoted(r)
	if err != nil {
		return attest.Claims{}, err
	}
	if err := permitted(r, c, rules); err != nil {
		return attest.Claims{}, err
	}
	return e.claims(r, c, quote), nil
}

// UnverifiedClaims are what evidence states about itself.
func (a *azureAppraiser) UnverifiedClaims(raw []byte) (attest.Claims, error) {
	e, err := parseAzure(raw)
	if err != nil {
		return attest.Claims{}, err
	}
	r, err := parseReport(e.report)
	if err != nil {
		return attest.Claims{}, err
	}
	quote, err := tpm.UnverifiedQuote(e.quote)
	return e.claims(r, unverifiedChain(r), quote), err
}

// azureEvidence is evidence in its parts. Nothing in it is checked yet but its
// form.
type azureEvidence struct {
	report    []byte // 1184 bytes
	runtime   []byte // JSON, with the attestation key as a JWK
	quote     []byte // TPMS_ATTEST
	signature []byte // TPMT_SIGNATURE
	values    []byte // of PCR 0 to 23, 32 bytes each
}

// parseAzure reads the one encoding; every other is refused with reason "malformed".
func parseAzure(raw []byte) (azureEvidence, error) {
	var f [5][]byte
	if err := wire.UnframeInto(f[:], wire.LabelAzureEvidence, raw); err != nil {
		return azureEvidence{}, err
	}
	e := azureEvidence{report: f[0], runtime: f[1], quote: f[2], signature: f[3], values: f[4]}
	if len(e.runtime) > maxRuntime || len(e.values) != azurePCRs*pcrSize {
		return azureEvidence{}, wire.Refuse(wire.Malformed, "snp on azure: sizes of runtime data and PCR values",
			[]int{len(e.runtime), len(e.values)}, []int{maxRuntime, azurePCRs * pcrSize})
	}
	return e, nil
}

// bytes is the one encoding.
func (e azureEvidence) bytes() []byte {
	return wire.Frame(wire.LabelAzureEvidence, e.report, e.runtime, e.quote, e.signature, e.values)
}

// quoted goes from the report to the PCR values: runtime data, key, quote. Only the
// paravisor, at level 0, vouches for them.
func (e azureEvidence) quoted(r report) (tpm.Quote, error) {
	var want attest.ReportData // the digest, then zeros
	digest := wire.Sum(e.runtime)
	copy(want[:], digest[:])
	if !bytes.Equal(r.ReportData, want[:]) {
		return tpm.Quote{}, wire.Refuse(wire.BadDigest, "snp on azure: runtime data", digest, hex.EncodeToString(r.ReportData))
	}
	key, err := runtimeKey(e.runtime)
	if err != nil {
		return tpm.Quote{}, err
	}
	signature, err := tpm.ParseSignature(e.signature)
	if err != nil {
		return tpm.Quote{}, err
	}
	quote, err := tpm.VerifyQuote(key, e.quote, signature)
	if err != nil {
		return tpm.Quote{}, err
	}
	if err := quote.Covers(azureBank, everyPCR(), e.values); err != nil {
		return tpm.Quote{}, err
	}
	if r.VMPL != 0 {
		return tpm.Quote{}, wire.Refuse(wire.BadTCB, "snp on azure: privilege level", r.VMPL, "0, the paravisor's")
	}
	return quote, nil
}

// everyPCR is the numbers of the PCRs that are quoted.
func everyPCR() []int {
	pcrs := make([]int, azurePCRs)
	for i := range pcrs {
		pcrs[i] = i
	}
	return pcrs
}

// runtimeKey is the one attestation key in runtime data, RSA with the exponent
// 65537.
func runtimeKey(runtime []byte) (*rsa.PublicKey, error) {
	var data struct {
		Keys []struct {
			ID   string `json:"kid"`
			Kind string `json:"kty"`
			N    string `json:"n"`
			E    string `json:"e"`
		} `json:"keys"`
	}
	refused := wire.Refuse(wire.Malformed, "snp on azure: runtime data", fmt.Sprintf("%d bytes without such a key", len(runtime)), "JSON with one RSA key "+azureKey)
	if json.Unmarshal(runtime, &data) != nil {
		return nil, refused
	}
	var key *rsa.PublicKey
	for _, k := range data.Keys {
		if k.ID != azureKey {
			continue
		}
		n, err := base64.RawURLEncoding.DecodeString(k.N)
		if err != nil || key != nil || k.Kind != "RSA" || k.E != "AQAB" {
			return nil, refused
		}
		key = &rsa.PublicKey{N: new(big.Int).SetBytes(n), E: 65537}
	}
	if key == nil || key.N.BitLen() < minModulus {
		return nil, refused
	}
	return key, nil
}

// claims are those of the report, with the PCRs beside its measurement, and bound
// to what the quote is bound to.
func (e azureEvidence) claims(r report, c *chain, q tpm.Quote) attest.Claims {
	all := claims(r, c)
	all.Measurement.Platform = attest.AzureSNP
	for i := range azurePCRs {
		all.Measurement.Registers = append(all.Measurement.Registers,
			attest.Register{Name: fmt.Sprint("pcr", i), Value: e.values[i*pcrSize : (i+1)*pcrSize]})
	}
	all.ReportData = q.ExtraData
	all.Details["resets"], all.Details["restarts"], all.Details["clock"] = q.Resets, q.Restarts, q.Clock
	return all
}
