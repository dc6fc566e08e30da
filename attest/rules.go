package attest

import (
	"bytes"
	"slices"
	"time"
)

// Rules are what policy states about one platform: who may vouch for it, and the
// floors below which evidence is refused. The zero Rules accept nothing.
type Rules struct {
	// Roots are SHA-256 digests of the SubjectPublicKeyInfo of accepted
	// platform roots.
	Roots []Digest
	// Debug accepts TEEs whose memory their host can read. It is set by a
	// flag of its own name in policy and shown wherever a result is shown.
	Debug bool
	// CRL states what a missing revocation list means (policy key "crl").
	CRL CRLRule
	// CheckedWithin is how long ago lists and statements of the vendor may have
	// been fetched from the vendor (policy key "checked_within"). Zero leaves it to their
	// own end.
	CheckedWithin time.Duration
	// Soft, SNP, Nitro, TPM and NVIDIA are the rules of one platform only, DCAP
	// those of Intel's two.
	Soft   SoftRules
	SNP    SNPRules
	DCAP   DCAPRules
	Nitro  NitroRules
	TPM    TPMRules
	NVIDIA NVIDIARules
}

// CRLRule states what a missing revocation list means. A list that is there is
// always checked.
type CRLRule string

// The two rules of policy key "crl"; anything but CRLIfPresent, the zero value
// included, is CRLRequired. [Nitro] alone is the other way round: its certificates
// are valid for days at most, and those of enclaves and instances are on no list.
const (
	CRLRequired  CRLRule = "required"
	CRLIfPresent CRLRule = "if-present"
)

// List is what policy accepts of one field: the values it names, or each value
// where it is "any". The zero List accepts nothing.
type List struct {
	Any    bool
	Values [][]byte
}

// Accepts reports whether the list names v or accepts any.
func (l List) Accepts(v []byte) bool {
	return l.Any || slices.ContainsFunc(l.Values, func(w []byte) bool { return bytes.Equal(v, w) })
}

// SNPRules are the rules of [SNP] (policy table "platform.snp"). The zero
// SNPRules accept nothing.
type SNPRules struct {
	// Generations are the accepted CPU generations, "Milan", "Genoa" and
	// "Turin", and the least firmware of each (key "generation.NAME"). One
	// without a row is refused.
	Generations map[string]SNPFloor
	// Chips are the accepted chip ids, 64 bytes each (key "chips").
	Chips List
	// CutChips are chip ids that are refused whatever Chips accepts (key
	// "cut_chips").
	CutChips [][]byte
	// IDKeys are the accepted SHA-384 digests of the key that signed the
	// guest's ID block, 48 zeros where there is none (key "id_keys").
	IDKeys List
	// SMT accepts guests that may share a core (key "smt").
	SMT bool
	// Migration accepts guests that a migration agent may move (key
	// "migration").
	Migration bool
	// Provisional accepts platforms whose firmware can still be rolled back:
	// committed below current (key "provisional_firmware").
	Provisional bool
	// VMPL is the highest accepted privilege level, 0 to 3 (key "vmpl").
	VMPL uint32
	// HiddenChips accepts reports whose host hides the chip id (key
	// "hidden_chips") while no chip is cut off: it may be the one.
	HiddenChips bool
	// PlatformInfo are demands on how the host set its machine up (key
	// "platform_info"), of the bits of [SNPPlatformInfo].
	PlatformInfo Bits
	// GuestPolicy are demands on what the guest was launched with (key
	// "guest_policy"), of the bits of [SNPGuestPolicy].
	GuestPolicy Bits
	// GuestABI is the least firmware ABI that a guest's policy may demand (key
	// "guest_policy.abi").
	GuestABI SNPABI
	// LaunchMitigations and CurrentMitigations are the mitigation vectors that
	// must have been in force at launch, and when the report was made (keys
	// "mitigations.launch" and "mitigations.current"): each of their bits is
	// demanded. Reports before version 5 have none.
	LaunchMitigations, CurrentMitigations uint64
}

// SNPABI is a version of the firmware's interface.
type SNPABI struct{ Major, Minor uint8 }

// SNPFloor is the least TCB of one CPU generation.
type SNPFloor struct {
	Committed SNPTCB // what the platform can no longer be rolled back below
	Reported  SNPTCB // what the signing key was derived from
	Launch    SNPTCB // what ran when the guest was launched
}

// SNPTCB is the version of each component of an SNP platform's firmware. FMC is
// zero before Turin.
type SNPTCB struct {
	FMC, Bootloader, TEE, SNP, Microcode uint8
}

// SoftRules are the rules of [Soft] (policy table "platform.soft").
type SoftRules struct {
	// CutChips are daemons that are refused although their root is accepted, by
	// their chips of 8 bytes (key "cut_chips").
	CutChips [][]byte
}

// TPMRules are the rules of [TPM] (policy table "platform.tpm"). The zero
// TPMRules accept no launch.
type TPMRules struct {
	// Launches are the reference values whose programs may have been launched
	// on a machine since it booted: all of the policy.
	Launches []ReferenceValue
	// CutChips are devices that are refused, by the SHA-256 of their
	// endorsement key (key "cut_chips").
	CutChips [][]byte
}

// NitroRules are the rules of [Nitro] (policy table "platform.nitro").
type NitroRules struct {
	// MaxAge is how long ago a document may have been made (key "max_age").
	// The zero MaxAge accepts none that is older than the time it is appraised
	// for.
	MaxAge time.Duration
}

// DCAPRules are the rules of [TDX] and [SGX] (policy tables "platform.tdx" and
// "platform.sgx"). The zero DCAPRules accept no chip.
type DCAPRules struct {
	// Statuses are Intel's TCB statuses that are accepted beside "UpToDate"
	// (key "statuses"). "Revoked" never is.
	Statuses []string
	// Advisories are the ids of Intel's security advisories whose presence
	// is accepted (key "advisories"). All that are beside the platform's
	// TCB levels must be among them.
	Advisories []string
	// MinEvaluation is the least tcbEvaluationDataNumber of TCB info and QE
	// identity (key "min_evaluation").
	MinEvaluation uint32
	// Chips are the accepted platforms, by the PPID of 16 bytes in their PCK
	// certificate (key "chips").
	Chips List
	// CutChips are PPIDs that are refused whatever Chips accepts (key
	// "cut_chips").
	CutChips [][]byte
	// CutModels are models of platforms that are refused, by the FMSPC of 6
	// bytes in their PCK certificate (key "cut_models").
	CutModels [][]byte
	// MinISVSVN is the least security version of an enclave (key
	// "min_isvsvn", SGX only).
	MinISVSVN uint16
	// Migration accepts trust domains that a migration TD may move (key
	// "migration", TDX only).
	Migration bool
	// MinTCBDate is the least tcbDate of the platform's level (key
	// "min_tcb_date").
	MinTCBDate time.Time
	// Attributes and XFAM are demands on the bits of [TDAttributes] and [XFAM]
	// (keys "attributes" and "xfam", TDX only).
	Attributes, XFAM Bits
	// ServiceTD are the accepted MRSERVICETD, 48 bytes each, or empty for quotes
	// before TDX 1.5, which have none (key "servicetd", TDX only). The zero List
	// accepts these and zeros.
	ServiceTD List
	// Owner are the accepted pairs of MROWNER and MROWNERCONFIG, 96 bytes each
	// (key "owner", TDX only). The zero List accepts zeros alone.
	Owner List
}

// NVIDIARules are the rules of [NvidiaGPU] (policy table "platform.nvidia-gpu"). The
// zero NVIDIARules accept nothing.
type NVIDIARules struct {
	// Models are the accepted chips, such as "GH100" (key "models").
	Models []string
	// Chips are the accepted devices, by the SHA-256 of the public key in their
	// device certificate (key "chips").
	Chips List
	// CutChips are devices that are refused whatever Chips accepts (key
	// "cut_chips").
	CutChips [][]byte
	// Drivers and VBIOS are the accepted versions, as text (keys "drivers",
	// "vbios").
	Drivers, VBIOS List
	// Modes are the accepted modes of protection between GPUs (key "modes").
	Modes []string
	// AnyMeasurements accepts measurements that were not compared with reference
	// values (key "measurements"). There is no other comparison here yet.
	AnyMeasurements bool
	// Development accepts a GPU that is, or may be, in development mode, in which
	// its host can read it (key "mode"). Reports state the mode by their
	// measurements alone, so without it no GPU passes whose measurements were never
	// compared.
	Development bool
}
