//go:build linux

package localtee

import (
	"fmt"
	"os"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/attest/soft"
)

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
