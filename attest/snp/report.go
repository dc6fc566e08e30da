package snp

import (
	"bytes"
	"encoding/asn1"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"math/big"
	"slices"
	"strings"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/internal/wire"
)

// CPU generations, as AMD's product chains name them.
const (
	milan = "Milan"
	genoa = "Genoa"
	turin = "Turin"
)

// Sizes and versions of the report (AMD 56860, table 23).
const (
	reportSize   = 0x4a0 // bytes
	signedSize   = 0x2a0 // bytes before the signature, which signs them
	numberSize   = 0x48  // bytes of each of the two numbers of the signature
	chipIDSize   = 64
	minVersion   = 2
	maxVersion   = 5
	ecdsaP384    = 1 // signature algorithm: ECDSA P-384 with SHA-384
	policyAlways = 1 << 17
)

// Fields of the report at these offsets came with these versions; before, they
// are reserved.
const (
	versionCPUID       = 3 // 0x188: family, model, stepping
	versionMitigations = 5 // 0x1f8: two mitigation vectors
)

// signer is the key that signed a report.
type signer uint8

// The signers of a report (AMD 56860, SIGNING_KEY). A report by none is refused.
const (
	signerVCEK signer = 0 // versioned chip endorsement key
	signerVLEK signer = 1 // versioned loaded endorsement key
)

func (s signer) String() string {
	if s == signerVLEK {
		return "VLEK"
	}
	return "VCEK"
}

// maxVMPL is the least privileged level of a guest. A report that the host asked
// for, with report data of the host's choice, has all bits set.
const maxVMPL = 3

// fields are the fields of a report, as they are in its bytes.
type fields struct {
	Version, GuestSVN, VMPL           uint32
	Policy, PlatformInfo              uint64
	SignerInfo                        uint32
	CurrentTCB, ReportedTCB           uint64
	CommittedTCB, LaunchTCB           uint64
	ReportData, Measurement, HostData []byte
	FamilyID, ImageID                 []byte
	IDKeyDigest, AuthorKeyDigest      []byte
	ReportID, ReportIDMA, ChipID      []byte
	Current, Committed                [3]byte // major, minor, build
	LaunchMitVector, CurrentMitVector uint64
}

// report is an attestation report whose form is right. None of it is signed yet.
type report struct {
	fields
	raw     []byte
	policy  guestPolicy
	signer  signer
	product string // by CPUID; empty in version 2, which has none
}

// guestPolicy is the part of a guest policy that rules of their own are about.
type guestPolicy struct {
	ABIMajor, ABIMinor    uint8
	SMT, MigrateMA, Debug bool
}

// parseReport accounts for every byte: each is part of a field, or reserved and zero.
func parseReport(raw []byte) (report, error) {
	if len(raw) != reportSize {
		return report{}, wire.Refuse(wire.Malformed, "snp: size of the report", len(raw), reportSize)
	}
	version := binary.LittleEndian.Uint32(raw)
	if version < minVersion || version > maxVersion {
		return report{}, wire.Refuse(wire.Malformed, "snp: version of the report", version, "2 to 5")
	}
	if algorithm := binary.LittleEndian.Uint32(raw[0x34:]); algorithm != ecdsaP384 {
		return report{}, wire.Refuse(wire.Malformed, "snp: signature algorithm", algorithm, "1, ECDSA P-384 with SHA-384")
	}
	if err := reservedZero(raw, version); err != nil {
		return report{}, err
	}
	r := report{fields: readFields(raw), raw: raw}
	return r, r.interpret()
}

// reservedZero refuses a reserved byte that is not zero.
func reservedZero(raw []byte, version uint32) error {
	cpuid := 0x188
	if version >= versionCPUID {
		cpuid = 0x18b
		if stepping := raw[0x18a]; stepping > 0xf {
			return wire.Refuse(wire.Malformed, "snp: CPU stepping", stepping, "0 to 15")
		}
	}
	for _, reserved := range []struct{ from, to int }{
		{0x4c, 0x50}, {cpuid, 0x1a0}, {0x1eb, 0x1ec}, {0x1ef, 0x1f0}, {0x208, signedSize}, {signedSize + 2*numberSize, reportSize},
	} {
		for at := reserved.from; at < reserved.to; at++ {
			if raw[at] != 0 {
				return wire.Refuse(wire.Malformed, fmt.Sprintf("snp: reserved byte %#x of the report", at), fmt.Sprintf("%#x", raw[at]), 0)
			}
		}
	}
	return nil
}

// readFields reads all fields (AMD 56860, table 23). Byte strings are parts of raw.
func readFields(raw []byte) fields {
	u32 := func(at int) uint32 { return binary.LittleEndian.Uint32(raw[at:]) }
	u64 := func(at int) uint64 { return binary.LittleEndian.Uint64(raw[at:]) }
	return fields{
		Version: u32(0x00), GuestSVN: u32(0x04), Policy: u64(0x08), FamilyID: raw[0x10:0x20], ImageID: raw[0x20:0x30],
		VMPL: u32(0x30), CurrentTCB: u64(0x38), PlatformInfo: u64(0x40), SignerInfo: u32(0x48),
		ReportData: raw[0x50:0x90], Measurement: raw[0x90:0xc0], HostData: raw[0xc0:0xe0],
		IDKeyDigest: raw[0xe0:0x110], AuthorKeyDigest: raw[0x110:0x140], ReportID: raw[0x140:0x160], ReportIDMA: raw[0x160:0x180],
		ReportedTCB: u64(0x180), ChipID: raw[0x1a0:0x1e0], CommittedTCB: u64(0x1e0),
		Current: [3]byte{raw[0x1ea], raw[0x1e9], raw[0x1e8]}, Committed: [3]byte{raw[0x1ee], raw[0x1ed], raw[0x1ec]},
		LaunchTCB: u64(0x1f0), LaunchMitVector: u64(0x1f8), CurrentMitVector: u64(0x200),
	}
}

// signature is the signature in DER, as crypto/ecdsa reads it. A report has each
// number with its least significant byte first.
func (r report) signature() ([]byte, error) {
	number := func(from int) *big.Int {
		b := bytes.Clone(r.raw[from : from+numberSize])
		slices.Reverse(b)
		return new(big.Int).SetBytes(b)
	}
	return asn1.Marshal(struct{ R, S *big.Int }{number(signedSize), number(signedSize + numberSize)})
}

// interpret reads the bit fields and what depends on the version.
func (r *report) interpret() (err error) {
	if r.Policy&policyAlways == 0 {
		return wire.Refuse(wire.Malformed, "snp: guest policy", fmt.Sprintf("%#x", r.Policy), "the bit that is always 1")
	}
	bit := func(position int) bool { return r.Policy>>position&1 == 1 }
	r.policy = guestPolicy{ABIMinor: uint8(r.Policy), ABIMajor: uint8(r.Policy >> 8), SMT: bit(16), MigrateMA: bit(18), Debug: bit(19)}
	r.signer = signer(r.SignerInfo >> 2 & 7)
	if r.SignerInfo>>5 != 0 || r.signer > signerVLEK {
		return wire.Refuse(wire.Malformed, "snp: signing key", fmt.Sprintf("%#x", r.SignerInfo), "VCEK or VLEK")
	}
	if r.VMPL > maxVMPL {
		return wire.Refuse(wire.Malformed, "snp: privilege level", fmt.Sprintf("%#x: asked for by the host", r.VMPL), "0 to 3")
	}
	if r.Version < versionMitigations && r.LaunchMitVector|r.CurrentMitVector != 0 {
		return wire.Refuse(wire.Malformed, "snp: mitigation vectors before version 5", fmt.Sprintf("%#x and %#x", r.LaunchMitVector, r.CurrentMitVector), "zeros")
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
func (r report) hidden() bool { return len(bytes.Trim(r.ChipID, "\x00")) == 0 }

func (r report) cpuid() string { return hex.EncodeToString(r.raw[0x188:0x18b]) }

// details are the fields of a report for people.
func details(r report, c *chain) map[string]any {
	d := map[string]any{
		"product":           c.product,
		"report_version":    r.Version,
		"signing_key":       strings.ToLower(c.kind.String()),
		"policy":            fmt.Sprintf("%#x", r.Policy),
		"policy_bits":       attest.SNPGuestPolicy.SetNames(r.policyBits()),
		"policy_abi":        fmt.Sprintf("%d.%d", r.policy.ABIMajor, r.policy.ABIMinor),
		"vmpl":              r.VMPL,
		"guest_svn":         r.GuestSVN,
		"platform_info":     fmt.Sprintf("%#x", r.PlatformInfo),
		"platform_bits":     attest.SNPPlatformInfo.SetNames(r.PlatformInfo),
		"chip_id":           hex.EncodeToString(r.ChipID),
		"id_key_digest":     hex.EncodeToString(r.IDKeyDigest),
		"author_key_digest": hex.EncodeToString(r.AuthorKeyDigest),
		"family_id":         hex.EncodeToString(r.FamilyID),
		"image_id":          hex.EncodeToString(r.ImageID),
		"report_id":         hex.EncodeToString(r.ReportID),
		"report_id_ma":      hex.EncodeToString(r.ReportIDMA),
		"current_version":   fmt.Sprintf("%d.%d.%d", r.Current[0], r.Current[1], r.Current[2]),
		"committed_version": fmt.Sprintf("%d.%d.%d", r.Committed[0], r.Committed[1], r.Committed[2]),
	}
	for name, version := range map[string]uint64{
		"reported_tcb": r.ReportedTCB, "current_tcb": r.CurrentTCB,
		"committed_tcb": r.CommittedTCB, "launch_tcb": r.LaunchTCB,
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
