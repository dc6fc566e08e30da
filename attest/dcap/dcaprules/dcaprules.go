// Package dcaprules has the keys and registers that a policy file may name of Intel TDX and SGX.
package dcaprules

import (
	"math"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/cohort-tee/cohort/attest"
)

// TDX are the rules of [attest.TDX].
var TDX = attest.PolicyRules{
	Platform: attest.TDX,
	Registers: []attest.RegisterForm{
		{Name: "mrtd", Form: attest.FormCode384}, {Name: "mrconfigid", Form: attest.FormBytes, Size: 48},
		{Name: "rtmr0", Form: attest.FormExtended384}, {Name: "rtmr1", Form: attest.FormExtended384},
		{Name: "rtmr2", Form: attest.FormExtended384}, {Name: "rtmr3", Form: attest.FormExtended384},
	},
	Keys: append(policyKeys(slices.Concat(statuses, relaunchStatuses)),
		attest.Key{Name: "migration", Kind: attest.KeyFlag, Direction: attest.GrantsIfTrue, Set: attest.SetField(func(r *attest.Rules) *bool { return &r.DCAP.Migration })},
		attest.Key{
			Name: attest.TDAttributes.Key, Kind: attest.KeyBits, Direction: attest.NarrowsBits, Optional: true, Field: attest.TDAttributes,
			Bits: func(r *attest.Rules) *attest.Bits { return &r.DCAP.Attributes },
		},
		attest.Key{
			Name: attest.XFAM.Key, Kind: attest.KeyBits, Direction: attest.NarrowsBits, Optional: true, Field: attest.XFAM,
			Bits: func(r *attest.Rules) *attest.Bits { return &r.DCAP.XFAM },
		},
		attest.Key{
			Name: "servicetd", Kind: attest.KeyList, Direction: attest.Grants, Want: wantMR + `, or "unsaid"`, Form: serviceTD, Implied: []any{zeroMR, unsaid},
			Set: attest.SetField(func(r *attest.Rules) *attest.List { return &r.DCAP.ServiceTD }),
		},
		attest.Key{
			Name: "owner", Kind: attest.KeyJoined, Direction: attest.Grants, Implied: []any{map[string]any{"mrowner": zeroMR, "mrownerconfig": zeroMR}},
			Keys: []attest.Key{{Name: "mrowner", Want: wantMR, Form: parseMR}, {Name: "mrownerconfig", Want: wantMR, Form: parseMR}},
			Set:  attest.SetField(func(r *attest.Rules) *attest.List { return &r.DCAP.Owner }),
		}),
	Chip:        parsePPID,
	ChipRefused: chipRefused,
	Warn:        addWarnings,
}

// SGX are the rules of [attest.SGX].
var SGX = attest.PolicyRules{
	Platform: attest.SGX,
	Registers: []attest.RegisterForm{
		{Name: "mrenclave", Form: attest.FormNeededDigest}, {Name: "mrsigner", Form: attest.FormNeededDigest},
		{Name: "isvprodid", Form: attest.FormNumber16}, {Name: "configid", Form: attest.FormBytes, Size: 64},
	},
	Keys: append(policyKeys(statuses), attest.Key{
		Name: "min_isvsvn", Kind: attest.KeyNumber, Direction: attest.Floor, Most: math.MaxUint16,
		Set: attest.Narrowed(func(r *attest.Rules) *uint16 { return &r.DCAP.MinISVSVN }),
	}),
	Chip:        parsePPID,
	ChipRefused: chipRefused,
	Warn: func(r attest.Rules, references []attest.PlacedReference, add func(key, text string)) {
		addWarnings(r, nil, add)
		warnSigners(r, references, add)
	},
}

// statuses are the words of Intel's that policy may accept. UpToDate needs no permission,
// Revoked gets none.
var statuses = []string{
	"SWHardeningNeeded", "ConfigurationNeeded", "ConfigurationAndSWHardeningNeeded", "OutOfDate", "OutOfDateConfigurationNeeded",
}

// relaunchStatuses are those of a trust domain whose module was replaced.
var relaunchStatuses = []string{"TDRelaunchAdvised", "TDRelaunchAdvisedConfigurationNeeded"}

var advisory = regexp.MustCompile(`^INTEL-[A-Z]{2}-[0-9]{5}$`)

const wantPPID = "32 lower-case hexadecimal digits"

func policyKeys(statuses []string) []attest.Key {
	wantStatus, isStatus := attest.OneOf(statuses...)
	return append(attest.RevocationKeys(),
		attest.Key{
			Name: "statuses", Kind: attest.KeyWords, Direction: attest.Grants, Want: wantStatus, Is: isStatus,
			Set: attest.SetField(func(r *attest.Rules) *[]string { return &r.DCAP.Statuses }),
		},
		attest.Key{
			Name: "advisories", Kind: attest.KeyWords, Direction: attest.Grants, Want: `an id such as "INTEL-SA-00615"`, Is: advisory.MatchString,
			Set: attest.SetField(func(r *attest.Rules) *[]string { return &r.DCAP.Advisories }),
		},
		attest.Key{
			Name: "min_evaluation", Kind: attest.KeyNumber, Direction: attest.Floor, Most: math.MaxUint32,
			Set: attest.Narrowed(func(r *attest.Rules) *uint32 { return &r.DCAP.MinEvaluation }),
		},
		attest.Key{
			Name: "min_tcb_date", Kind: attest.KeyTime, Direction: attest.TimeFloor,
			Set: attest.SetField(func(r *attest.Rules) *time.Time { return &r.DCAP.MinTCBDate }),
		},
		attest.Key{
			Name: "chips", Kind: attest.KeyList, Direction: attest.Grants, Required: true, Recorded: true, Want: wantPPID, Form: parsePPID,
			Set: attest.SetField(func(r *attest.Rules) *attest.List { return &r.DCAP.Chips }),
		},
		attest.Key{
			Name: "cut_chips", Kind: attest.KeyBytes, Direction: attest.Cuts, Recorded: true, Want: wantPPID, Form: parsePPID,
			Set: attest.SetField(func(r *attest.Rules) *[][]byte { return &r.DCAP.CutChips }),
		},
		attest.Key{
			Name: "cut_models", Kind: attest.KeyBytes, Direction: attest.Cuts, Want: "12 lower-case hexadecimal digits, an FMSPC",
			Form: func(s string) []byte { return attest.Digits(s, 6) },
			Set:  attest.SetField(func(r *attest.Rules) *[][]byte { return &r.DCAP.CutModels }),
		})
}

func parsePPID(s string) []byte { return attest.Digits(s, 16) }

const wantMR = "96 lower-case hexadecimal digits"

func parseMR(s string) []byte { return attest.Digits(s, 48) }

var zeroMR = strings.Repeat("00", 48)

// unsaid represents the MRSERVICETD of quotes that have none, before TDX 1.5.
const unsaid = "unsaid"

func serviceTD(s string) []byte {
	if s == unsaid {
		return []byte{}
	}
	return parseMR(s)
}

var chipRefused = attest.ListedChip(parsePPID, func(r attest.Rules) ([][]byte, attest.List) { return r.DCAP.CutChips, r.DCAP.Chips })

func addWarnings(r attest.Rules, _ []attest.PlacedReference, add func(key, text string)) {
	if r.DCAP.Migration && len(r.DCAP.CutChips) > 0 {
		add("cut_chips", "void for what moves there afterwards: migration = true lets a TEE change its chip until it renews")
	}
	old := func(status string) bool { return status == "OutOfDate" || status == "OutOfDateConfigurationNeeded" }
	if slices.ContainsFunc(r.DCAP.Statuses, old) && r.DCAP.MinTCBDate.IsZero() {
		add("statuses", "out of date, however old: min_tcb_date says how old")
	}
	if r.DCAP.MinEvaluation == 0 {
		add("min_evaluation", "none: Intel's statements from before its last recovery count until their own end")
	}
}

// warnSigners warns of enclaves that policy knows by their signer alone: every build of
// that signer counts that is not below the floor.
func warnSigners(r attest.Rules, references []attest.PlacedReference, add func(key, text string)) {
	if r.DCAP.MinISVSVN > 0 {
		return
	}
	for _, ref := range references {
		for _, register := range ref.Registers {
			if ref.Platform == attest.SGX && register.Name == "mrenclave" && register.Any {
				add("min_isvsvn", "none, and "+ref.Path+" leaves mrenclave open: every old build of that signer counts")
			}
		}
	}
}
