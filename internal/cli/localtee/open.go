//go:build linux

package localtee

import (
	"os"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/attest/dcap"
	"github.com/cohort-tee/cohort/attest/nitro"
	"github.com/cohort-tee/cohort/attest/snp"
	"github.com/cohort-tee/cohort/attest/soft"
	"github.com/cohort-tee/cohort/attest/tpm"
)

// Attester is a TEE without a program of its own.
type Attester interface {
	attest.Attester
	attest.Sealer
}

// Opener finds the TEE of one platform. Only this binary opens TEEs, and only on linux;
// all else of a platform is in attest/platforms.
type Opener struct {
	// inherited is the TEE that started this process, where such a TEE starts
	// processes.
	inherited func() (Device, error)
	// open is the TEE that this machine or enclave is, or that its TPM speaks
	// for; nil where it is none. It is opened only when --platform names it.
	Open func(tpm.Machine) (Attester, error)
}

// Openers are those of each platform that this binary runs in. A TPM is opened by
// launchTPM, which needs its flags. GPUs are asked by a command (--nvidia-gpus), for
// NVIDIA's library needs cgo, which this build is without.
var Openers = map[attest.Platform]Opener{
	attest.Soft: {inherited: func() (Device, error) { return soft.Inherited() }},
	attest.SNP:  {Open: func(tpm.Machine) (Attester, error) { return snp.NewAttester() }},
	attest.AzureSNP: {Open: func(m tpm.Machine) (Attester, error) {
		a, err := snp.NewAzureAttester(m)
		return unsealing{a, attest.NoSealer{Platform: attest.AzureSNP}}, err
	}},
	attest.TDX: {Open: func(tpm.Machine) (Attester, error) {
		a, err := dcap.NewTDXAttester()
		return unsealing{a, attest.NoSealer{Platform: attest.TDX}}, err
	}},
	attest.SGX: {Open: func(tpm.Machine) (Attester, error) { return dcap.NewSGXAttester() }},
	attest.Nitro: {Open: func(tpm.Machine) (Attester, error) {
		a, err := nitro.NewAttester()
		return unsealing{a, attest.NoSealer{Platform: attest.Nitro}}, err
	}},
}

// unsealing is a TEE that keeps no secrets.
type unsealing struct {
	attest.Attester
	attest.NoSealer
}

// Inherited is the TEE that started this process; its device is nil when
// none did.
func Inherited() TEE {
	for name, p := range Openers {
		if p.inherited == nil {
			continue
		}
		if d, err := p.inherited(); err == nil {
			return TEE{d, name}
		}
	}
	return TEE{}
}

// Machine is the TEE that this machine or enclave is. What it measures is the
// machine's image; the program is a file in it.
type Machine struct {
	Attester
	Command []string // with its arguments; empty for this cohort itself
}

func (m Machine) Program() (*os.File, error) { return os.Open(m.Command[0]) }

func (m Machine) Arguments() []string { return m.Command[1:] }
