// Package localtee is the trusted execution environments (TEEs) of this build: the table of
// platforms, the TEE that this process runs in, the verifier of all platforms, and how a
// program is measured and launched in the development TEE.
//
// It opens devices only when a caller names their platform, and decides nothing about trust:
// what [Measure] returns is what the TEE will report, and policy says whether that is accepted.
package localtee

import (
	"fmt"
	"os"
	"slices"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/attest/dcap"
	"github.com/cohort-tee/cohort/attest/nitro"
	"github.com/cohort-tee/cohort/attest/platforms"
	"github.com/cohort-tee/cohort/attest/snp"
	"github.com/cohort-tee/cohort/attest/soft"
	"github.com/cohort-tee/cohort/attest/tpm"
)

// Device is the TEE that a process runs in.
type Device interface {
	attest.Attester
	attest.Sealer
	// Program is the measured program that an agent runs.
	Program() (*os.File, error)
	// Arguments are the measured arguments.
	Arguments() []string
}

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

// Names are the TEEs of this build.
func Names() []string {
	var names []string
	for _, p := range platforms.Supported() {
		if !p.Platform.IsDevice() {
			names = append(names, string(p.Platform))
		}
	}
	slices.Sort(names)
	return names
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

// TEE is the TEE a process runs in.
type TEE struct {
	Device
	Platform attest.Platform
}

// Inside reports whether there is one.
func (t TEE) Inside() bool { return t.Device != nil }

// Development reports whether it protects nothing from its host.
func (t TEE) Development() bool {
	p, known := platforms.Supported().Lookup(t.Platform)
	return known && p.Development
}

// Machine is the TEE that this machine or enclave is. What it measures is the
// machine's image; the program is a file in it.
type Machine struct {
	Attester
	Command []string // with its arguments; empty for this cohort itself
}

func (m Machine) Program() (*os.File, error) { return os.Open(m.Command[0]) }

func (m Machine) Arguments() []string { return m.Command[1:] }

// Verifier appraises the evidence of every platform.
func Verifier() *attest.Verifier { return platforms.Supported().Verifier() }

// Measurement is what the development TEE will say of a program, and the line
// of policy that accepts it.
type Measurement struct {
	Platform  string `json:"platform"`
	Reference string `json:"reference"`
	Agent     string `json:"agent,omitempty"`
	Program   string `json:"program"`
	Dynamic   bool   `json:"dynamic"`
	// Unmeasured is what no measurement covers, as far as can be seen.
	Unmeasured []string `json:"unmeasured,omitempty"`
}

// Measure measures files as the daemon will. An empty agent is none.
func Measure(agent string, program []string) (Measurement, error) {
	m := Measurement{Platform: string(attest.Soft)}
	file, err := os.Open(program[0])
	if err != nil {
		return m, err
	}
	defer file.Close()
	var agentFile *os.File
	if agent != "" {
		if agentFile, err = os.Open(agent); err != nil {
			return m, err
		}
		defer agentFile.Close()
	}
	taken, dynamic, err := soft.Measure(file, agentFile, program[1:])
	if err != nil {
		return m, fmt.Errorf("measuring %s: %w", program[0], err)
	}
	m.Dynamic, m.Unmeasured = dynamic, unmeasured(program, dynamic)
	var digests [2]attest.Digest // agent, program
	for i := range digests {
		copy(digests[i][:], taken.Registers[i].Value)
	}
	if agent != "" {
		m.Agent = digests[0].String()
	}
	m.Program = digests[1].String()
	m.Reference = Reference(attest.Soft, m, program[1:])
	return m, nil
}
