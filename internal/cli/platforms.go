package cli

import (
	"fmt"
	"maps"
	"os"
	"slices"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/attest/soft"
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

// platform is what the command line knows of one kind of TEE.
type platform struct {
	appraiser attest.Appraiser
	inherited func() (device, error) // the TEE this process was started in
	// development marks a platform that protects nothing from its host.
	development bool
}

// platforms are the kinds of TEEs of this build.
var platforms = map[attest.Platform]platform{
	attest.Soft: {
		appraiser:   soft.Appraiser{},
		inherited:   func() (device, error) { return soft.Inherited() },
		development: true,
	},
}

// inheritedTEE is the TEE that started this process; its device is nil when
// none did.
func inheritedTEE() tee {
	for _, name := range slices.Sorted(maps.Keys(platforms)) {
		if d, err := platforms[name].inherited(); err == nil {
			return tee{d, platforms[name].development}
		}
	}
	return tee{}
}

// tee is the TEE a process runs in.
type tee struct {
	device
	development bool
}

// inside reports whether there is one.
func (t tee) inside() bool { return t.device != nil }

// verifier appraises the evidence of every platform of this build.
func verifier() *attest.Verifier {
	var appraisers []attest.Appraiser
	for _, p := range platforms {
		appraisers = append(appraisers, p.appraiser)
	}
	return attest.NewVerifier(appraisers...)
}

// measurement is what the development TEE will say of a program, and the line
// of policy that accepts it.
type measurement struct {
	Platform  string `json:"platform"`
	Reference string `json:"reference"`
	Agent     string `json:"agent,omitempty"`
	Program   string `json:"program"`
	Dynamic   bool   `json:"dynamic"`
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
	m.Dynamic = dynamic
	var digests [2]attest.Digest // agent, program
	for i := range digests {
		copy(digests[i][:], taken.Registers[i].Value)
	}
	if agent != "" {
		m.Agent = digests[0].String()
	}
	m.Program = digests[1].String()
	m.Reference = softReference(digests[0], digests[1], program[1:])
	return m, nil
}
