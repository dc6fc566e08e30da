package snp

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"strings"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/internal/wire"
	"github.com/google/go-sev-guest/abi"
	spb "github.com/google/go-sev-guest/proto/sevsnp"
)

// CPU generations, as AMD's product chains name them.
const (
	milan = "Milan"
	genoa = "Genoa"
	turin = "Turin"
)

// Fields of the report at these offsets came with these versions; before, they
// are reserved.
const (
	versionCPUID       = abi.ReportVersion3 // 0x188: family, model, stepping
	versionMitigations = abi.ReportVersion5 // 0x1f8: two mitigation vectors
)

// policyAt is where the guest policy stands, 8 bytes.
const policyAt = 0x008

// maxVMPL is the least privileged level of a guest. A report that the host asked
// for, with report data of the host's choice, has all bits set.
const maxVMPL = 3

// report is an attestation report whose form is right. None of it is signed yet.
type report struct {
	*spb.Report
	raw     []byte
	policy  abi.SnpPolicy
	signer  abi.SignerInfo
	product string // by CPUID; empty in version 2, which has none
}

// parse accounts for every byte: each is part of a field, or reserved and zero.
func parse(raw []byte) (report, error) {
	if len(raw) != abi.ReportSize {
		return report{}, wire.Refuse(wire.Malformed, "snp: size of the report", len(raw), abi.ReportSize)
	}
	version := binary.LittleEndian.Uint32(raw)
	if version < abi.ReportVersion2 || version > abi.ReportVersion5 {
		return report{}, wire.Refuse(wire.Malformed, "snp: version of the report", version, "2 to 5")
	}
	if algorithm := abi.SignatureAlgo(raw); algorithm != abi.SignEcdsaP384Sha384 {
		return report{}, wire.Refuse(wire.Malformed, "snp: signature algorithm", algorithm, "1, ECDSA P-384 with SHA-384")
	}
	read := withoutNewBits(raw)
	fields, err := abi.ReportToProto(read)
	if err != nil {
		return report{}, wire.Refuse(wire.Malformed, "snp: report", err, "reserved bytes of zero")
	}
	if same, err := abi.ReportToAbiBytes(fields); err != nil || !bytes.Equal(same, read) {
		return report{}, wire.Refuse(wire.Malformed, "snp: report", "bytes outside every field", "zeros")
	}
	r := report{Report: fields, raw: raw}
	return r, r.interpret()
}

// knownPolicy are the bits of a guest policy that the library reads: 0 to 25.
const knownPolicy = 1<<26 - 1

// withoutNewBits is a report whose guest policy has only bits that the library
// reads. Bits that are newer are not malformed: the rules refuse them by number,
// once the report is genuine.
func withoutNewBits(raw []byte) []byte {
	read := bytes.Clone(raw)
	binary.LittleEndian.PutUint64(read[policyAt:], binary.LittleEndian.Uint64(raw[policyAt:])&knownPolicy)
	return read
}

// interpret reads the bit fields and what depends on the version.
func (r *report) interpret() (err error) {
	if r.policy, err = abi.ParseSnpPolicy(r.Policy); err != nil {
		return wire.Refuse(wire.Malformed, "snp: guest policy", err, "the bit that is always 1")
	}
	r.Policy = binary.LittleEndian.Uint64(r.raw[policyAt:])
	if r.signer, err = abi.ParseSignerInfo(r.SignerInfo); err != nil || r.signer.SigningKey == abi.NoneReportSigner {
		return wire.Refuse(wire.Malformed, "snp: signing key", fmt.Sprintf("%#x", r.SignerInfo), "VCEK or VLEK")
	}
	if r.Vmpl > maxVMPL {
		return wire.Refuse(wire.Malformed, "snp: privilege level", fmt.Sprintf("%#x: asked for by the host", r.Vmpl), "0 to 3")
	}
	if r.Version < versionMitigations && r.LaunchMitVector|r.CurrentMitVector != 0 {
		return wire.Refuse(wire.Malformed, "snp: mitigation vectors before version 5", "bits", "zeros")
	}
	if r.Version < versionCPUID {
		return nil
	}
	if r.product = productOf(r.raw[0x188], r.raw[0x189]); r.product == "" {
		return wire.Refuse(wire.NoPlatform, "snp: CPU family and model", r.cpuid(), "Milan, Genoa or Turin; Venice and later are not read yet")
	}
	return nil
}

// productOf is the generation of a CPU family and model, both with their
// extensions: AMD signs Bergamo and Siena (model A0h) with Genoa's keys.
func productOf(family, model byte) string {
	switch {
	case family == 0x19 && model <= 0x0f:
		return milan
	case family == 0x19 && (model&0xf0 == 0x10 || model&0xf0 == 0xa0):
		return genoa
	case family == 0x1a && model <= 0x1f:
		return turin
	}
	return ""
}

// tcbOf takes a TCB version apart. Its layout changed with Turin.
func tcbOf(product string, version uint64) attest.SNPTCB {
	b := tcbBytes(version)
	if product == turin {
		return attest.SNPTCB{FMC: b[0], Bootloader: b[1], TEE: b[2], SNP: b[3], Microcode: b[7]}
	}
	return attest.SNPTCB{Bootloader: b[0], TEE: b[1], SNP: b[6], Microcode: b[7]}
}

// tcbBytes are a TCB version's bytes in the order of the report.
func tcbBytes(version uint64) [8]byte {
	var b [8]byte
	binary.LittleEndian.PutUint64(b[:], version)
	return b
}

// policyBits is the guest policy without the version in its low 16 bits and the
// bit that is always 1.
func (r report) policyBits() uint64 { return r.Policy &^ (1<<16 - 1 | 1<<17) }

// hidden reports whether the host hides which chip signed: its id is all zeros.
func (r report) hidden() bool { return len(bytes.Trim(r.ChipId, "\x00")) == 0 }

func (r report) cpuid() string { return hex.EncodeToString(r.raw[0x188:0x18b]) }

// details are the fields of a report for people.
func details(r report, c *chain) map[string]any {
	d := map[string]any{
		"product":           c.product,
		"report_version":    r.Version,
		"signing_key":       strings.ToLower(c.kind.String()),
		"policy":            fmt.Sprintf("%#x", r.Policy),
		"policy_bits":       attest.SNPGuestPolicy.Set(r.policyBits()),
		"policy_abi":        fmt.Sprintf("%d.%d", r.policy.ABIMajor, r.policy.ABIMinor),
		"vmpl":              r.Vmpl,
		"guest_svn":         r.GuestSvn,
		"platform_info":     fmt.Sprintf("%#x", r.PlatformInfo),
		"platform_bits":     attest.SNPPlatformInfo.Set(r.PlatformInfo),
		"chip_id":           hex.EncodeToString(r.ChipId),
		"id_key_digest":     hex.EncodeToString(r.IdKeyDigest),
		"author_key_digest": hex.EncodeToString(r.AuthorKeyDigest),
		"family_id":         hex.EncodeToString(r.FamilyId),
		"image_id":          hex.EncodeToString(r.ImageId),
		"report_id":         hex.EncodeToString(r.ReportId),
		"report_id_ma":      hex.EncodeToString(r.ReportIdMa),
		"current_version":   fmt.Sprintf("%d.%d.%d", r.CurrentMajor, r.CurrentMinor, r.CurrentBuild),
		"committed_version": fmt.Sprintf("%d.%d.%d", r.CommittedMajor, r.CommittedMinor, r.CommittedBuild),
	}
	for name, version := range map[string]uint64{
		"reported_tcb": r.ReportedTcb, "current_tcb": r.CurrentTcb,
		"committed_tcb": r.CommittedTcb, "launch_tcb": r.LaunchTcb,
	} {
		b := tcbBytes(version)
		d[name] = hex.EncodeToString(b[:])
	}
	if r.Version >= versionCPUID {
		d["cpuid"] = r.cpuid()
	}
	if r.Version >= versionMitigations {
		d["launch_mitigations"] = fmt.Sprintf("%#x", r.LaunchMitVector)
		d["current_mitigations"] = fmt.Sprintf("%#x", r.CurrentMitVector)
	}
	if c.csp != "" {
		d["csp_id"] = c.csp
	}
	return d
}
