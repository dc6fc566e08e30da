package opscmd

import (
	"context"

	"github.com/cohort-tee/cohort/attest/tpm"
)

// tpmExaminations are the checks of a TPM.
func tpmExaminations(machine *tpm.Machine) []examination {
	check := func(what, hint string, look func(tpm.Machine) (string, error)) examination {
		return examination{"tpm", what, hint, func(context.Context) (string, error) {
			if machine.Path == "" {
				return "", errSkipped
			}
			return look(*machine)
		}}
	}
	return []examination{
		check("device", "load the kernel's TPM driver, switch the TPM on in the firmware, and run as root", tpm.Machine.Manufacturer),
		check("endorsement key's certificate", "ask the maker for it and write it to NV 0x1c00002 or 0x1c0000a; a virtual TPM gets one when it is made", tpm.Machine.Certificate),
		check("SHA-256 bank", "activate the SHA-256 bank in the firmware's setup", tpm.Machine.CheckBank),
		check("attestation key", "the storage hierarchy needs an empty authorization; clear it in the firmware's setup", tpm.Machine.MakesKeys),
	}
}
