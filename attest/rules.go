package attest

import (
	"bytes"
	"slices"
	"time"
)

// CRLRule says what a missing revocation list means. A list that is there is
// always checked.
type CRLRule string

// The two rules of policy key "crl"; anything but CRLIfPresent, the zero value
// included, is CRLRequired.
const (
	CRLRequired  CRLRule = "required"
	CRLIfPresent CRLRule = "if-present"
)

// List is what policy accepts of one field: the values it names, or each value
// where it says "any". The zero List accepts nothing.
type List struct {
	Any    bool
	Values [][]byte
}

// Accepts reports whether the list names v or says any.
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
	// CutChips are chip ids that are refused whatever Chips says (key
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
}

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
	// The zero MaxAge accepts none that is older than the time it is judged
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
	// is accepted (key "advisories"). All that stand beside the platform's
	// TCB levels must be among them.
	Advisories []string
	// MinEvaluation is the least tcbEvaluationDataNumber of TCB info and QE
	// identity (key "min_evaluation").
	MinEvaluation uint32
	// Chips are the accepted platforms, by the PPID of 16 bytes in their PCK
	// certificate (key "chips").
	Chips List
	// CutChips are PPIDs that are refused whatever Chips says (key
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
}

// NVIDIARules are the rules of [NvidiaGPU] (policy table "platform.nvidia-gpu"). The
// zero NVIDIARules accept nothing.
type NVIDIARules struct {
	// Models are the accepted chips, such as "GH100" (key "models").
	Models []string
	// Chips are the accepted devices, by the SHA-256 of the public key in their
	// device certificate (key "chips").
	Chips List
	// CutChips are devices that are refused whatever Chips says (key
	// "cut_chips").
	CutChips [][]byte
	// Drivers and VBIOS are the accepted versions, as text (keys "drivers",
	// "vbios").
	Drivers, VBIOS List
	// Modes are the accepted modes of protection between GPUs (key "modes").
	Modes []string
	// AnyMeasurements accepts measurements that nobody compared with reference
	// values (key "measurements"). There is no other comparison here yet.
	AnyMeasurements bool
}
