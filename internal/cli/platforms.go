package cli

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

// device is the TEE that a process runs in.
type device interface {
	attest.Attester
	attest.Sealer
	// Program is the measured program that an agent runs.
	Program() (*os.File, error)
	// Args are the measured arguments.
	Args() []string
}

// attester is a TEE without a program of its own.
type attester interface {
	attest.Attester
	attest.Sealer
}

// opener finds the TEE of one platform. Only this binary opens TEEs, and only on linux;
// all else of a platform is in attest/platforms.
type opener struct {
	// inherited is the TEE that started this process, where such a TEE starts
	// processes.
	inherited func() (device, error)
	// open is the TEE that this machine or enclave is, or that its TPM speaks
	// for; nil where it is none. It is opened only when --platform names it.
	open func(tpm.Machine) (attester, error)
}

// openers are those of each platform that this binary runs in. A TPM is opened by
// launchTPM, which needs its flags. GPUs are asked by a command (--nvidia-gpus), for
// NVIDIA's library needs cgo, which this build is without.
var openers = map[attest.Platform]opener{
	attest.Soft: {inherited: func() (device, error) { return soft.Inherited() }},
	attest.SNP:  {open: func(tpm.Machine) (attester, error) { return snp.NewAttester() }},
	attest.AzureSNP: {open: func(m tpm.Machine) (attester, error) {
		a, err := snp.NewAzureAttester(m)
		return unsealing{a, attest.NoSealer{Platform: attest.AzureSNP}}, err
	}},
	attest.TDX: {open: func(tpm.Machine) (attester, error) {
		a, err := dcap.NewTDXAttester()
		return unsealing{a, attest.NoSealer{Platform: attest.TDX}}, err
	}},
	attest.SGX: {open: func(tpm.Machine) (attester, error) { return dcap.NewSGXAttester() }},
	attest.Nitro: {open: func(tpm.Machine) (attester, error) {
		a, err := nitro.NewAttester()
		return unsealing{a, attest.NoSealer{Platform: attest.Nitro}}, err
	}},
}

// unsealing is a TEE that keeps no secrets.
type unsealing struct {
	attest.Attester
	attest.NoSealer
}

// platformNames are the TEEs of this build.
func platformNames() []string {
	var names []string
	for _, p := range platforms.All() {
		if !p.Platform.IsDevice() {
			names = append(names, string(p.Platform))
		}
	}
	slices.Sort(names)
	return names
}

// inheritedTEE is the TEE that started this process; its device is nil when
// none did.
func inheritedTEE() tee {
	for name, p := range openers {
		if p.inherited == nil {
			continue
		}
		if d, err := p.inherited(); err == nil {
			return tee{d, name}
		}
	}
	return tee{}
}

// tee is the TEE a process runs in.
type tee struct {
	device
	platform attest.Platform
}

// inside reports whether there is one.
func (t tee) inside() bool { return t.device != nil }

// development reports whether it protects nothing from its host.
func (t tee) development() bool {
	p, known := platforms.All().Lookup(t.platform)
	return known && p.Development
}

// machine is the TEE that this machine or enclave is. What it measures is the
// machine's image; the program is a file in it.
type machine struct {
	attester
	program []string // with its arguments; empty for this cohort itself
}

func (m machine) Program() (*os.File, error) { return os.Open(m.program[0]) }

func (m machine) Args() []string { return m.program[1:] }

// verifier appraises the evidence of every platform.
func verifier() *attest.Verifier { return platforms.All().Verifier() }

// measurement is what the development TEE will say of a program, and the line
// of policy that accepts it.
type measurement struct {
	Platform  string `json:"platform"`
	Reference string `json:"reference"`
	Agent     string `json:"agent,omitempty"`
	Program   string `json:"program"`
	Dynamic   bool   `json:"dynamic"`
	// Unmeasured is what no measurement covers, as far as can be seen.
	Unmeasured []string `json:"unmeasured,omitempty"`
}

// measure measures files as the daemon will. An empty agent is none.
func measure(agent string, program []string) (measurement, error) {
	m := measurement{Platform: string(attest.Soft)}
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
	m.Reference = reference(attest.Soft, m, program[1:])
	return m, nil
}
