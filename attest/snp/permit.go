package snp

import (
	"bytes"
	"encoding/hex"
	"fmt"
	"math/bits"
	"slices"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/internal/wire"
)

// permit asks the rules about a report that is genuine. Debug is asked by the
// verifier, for every platform alike.
func permit(r report, c *chain, rules attest.SNPRules) error {
	floor, ok := rules.Generations[c.product]
	if !ok {
		return wire.Refuse(wire.NoPlatform, "snp: CPU generation", c.product, "one that policy names")
	}
	for _, f := range []struct {
		name    string
		version uint64
		least   attest.SNPTCB
	}{
		{"committed", r.CommittedTCB, floor.Committed},
		{"reported", r.ReportedTCB, floor.Reported},
		{"launch", r.LaunchTCB, floor.Launch},
	} {
		if err := checkFloor(f.name, tcbOf(c.product, f.version), f.least); err != nil {
			return err
		}
	}
	if err := permitHolder(r, rules); err != nil {
		return err
	}
	if err := permitGuest(r, rules); err != nil {
		return err
	}
	return permitSettings(r, rules)
}

// checkFloor compares a TCB with its floor, component by component.
func checkFloor(which string, got, least attest.SNPTCB) error {
	for _, component := range []struct {
		name       string
		got, least uint8
	}{
		{"fmc", got.FMC, least.FMC},
		{"bootloader", got.Bootloader, least.Bootloader},
		{"tee", got.TEE, least.TEE},
		{"snp", got.SNP, least.SNP},
		{"microcode", got.Microcode, least.Microcode},
	} {
		if component.got < component.least {
			return wire.Refuse(wire.BadTCB, "snp: "+which+" "+component.name, component.got, fmt.Sprintf("at least %d", component.least))
		}
	}
	return nil
}

// permitHolder asks about the chip and about who signed the launch.
func permitHolder(r report, rules attest.SNPRules) error {
	if r.hidden() && (!rules.HiddenChips || len(rules.CutChips) > 0) {
		return wire.Refuse(wire.NoPlatform, "snp: chip", "all zeros: its host hides which one it is, so no cut-off reaches it", "its id, or hidden_chips = true in policy and no cut_chips")
	}
	cut := slices.ContainsFunc(rules.CutChips, func(chip []byte) bool { return bytes.Equal(chip, r.ChipID) })
	if cut || !rules.Chips.Accepts(r.ChipID) {
		return wire.Refuse(wire.NoPlatform, "snp: chip", hex.EncodeToString(r.ChipID), "one that policy accepts")
	}
	if !rules.IDKeys.Accepts(r.IDKeyDigest) {
		return wire.Refuse(wire.NotMeasured, "snp: id key digest", hex.EncodeToString(r.IDKeyDigest), "one that policy names")
	}
	return nil
}

// permitGuest asks how the guest runs.
func permitGuest(r report, rules attest.SNPRules) error {
	provisional := r.CurrentTCB != r.CommittedTCB || r.Current != r.Committed
	switch {
	case r.VMPL > rules.VMPL:
		return wire.Refuse(wire.BadTCB, "snp: privilege level", r.VMPL, fmt.Sprintf("at most %d", rules.VMPL))
	case r.policy.SMT && !rules.SMT:
		return wire.Refuse(wire.BadTCB, "snp: guest policy", "shared cores (SMT) allowed", "not allowed")
	case r.policy.MigrateMA && !rules.Migration:
		return wire.Refuse(wire.BadTCB, "snp: guest policy", "migration allowed", "not allowed")
	case provisional && !rules.Provisional:
		return wire.Refuse(wire.BadTCB, "snp: firmware", "current above committed: it can be rolled back", "committed")
	}
	return nil
}

// permitSettings asks how the host set its machine up, and with what the guest was
// launched: nothing of it is in the launch digest.
func permitSettings(r report, rules attest.SNPRules) error {
	if err := attest.SNPPlatformInfo.Permit(r.PlatformInfo, rules.PlatformInfo); err != nil {
		return err
	}
	if err := attest.SNPGuestPolicy.Permit(r.policyBits(), rules.GuestPolicy); err != nil {
		return err
	}
	least := rules.GuestABI
	if r.policy.ABIMajor < least.Major || r.policy.ABIMajor == least.Major && r.policy.ABIMinor < least.Minor {
		return wire.Refuse(wire.BadTCB, "snp: least firmware ABI of the guest policy", fmt.Sprintf("%d.%d", r.policy.ABIMajor, r.policy.ABIMinor),
			fmt.Sprintf("at least %d.%d", least.Major, least.Minor))
	}
	for _, v := range []struct {
		name      string
		got, want uint64
	}{{"launch", r.LaunchMitVector, rules.LaunchMitigations}, {"current", r.CurrentMitVector, rules.CurrentMitigations}} {
		if missing := v.want &^ v.got; missing != 0 {
			return wire.Refuse(wire.BadTCB, "snp: "+v.name+" mitigation vector", fmt.Sprintf("%#x, in a report of version %d", v.got, r.Version),
				fmt.Sprintf("bit %d set: it comes with version %d", bits.TrailingZeros64(missing), versionMitigations))
		}
	}
	return nil
}
