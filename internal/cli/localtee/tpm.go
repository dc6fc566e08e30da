//go:build linux

package localtee

import (
	"fmt"
	"os"
	"strings"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/attest/soft"
	"github.com/cohort-tee/cohort/attest/tpm"
	"github.com/cohort-tee/cohort/internal/wire"
)

// tpmDevice is a TPM as the launch of this process, or of its program, uses it.
type tpmDevice struct {
	*tpm.Device
	program *os.File
	args    []string
}

func (d tpmDevice) Arguments() []string { return d.args }

func (d tpmDevice) Program() (*os.File, error) {
	if d.program == nil {
		return nil, wire.Refuse(wire.NotFound, "tpm device: program", "a launch without an agent", "an agent's")
	}
	return d.program, nil
}

// NewTPMDevice measures this process, or a program of which it is the agent, and enters
// that into the launch log of the machine.
func NewTPMDevice(c tpm.Config, program []string) (d tpmDevice, err error) {
	if len(program) > 0 {
		d.args = program[1:]
	}
	if d.program, c.Launch, err = measureLaunch(program); err != nil {
		return d, err
	}
	if d.Device, err = tpm.NewDevice(c); err != nil {
		return d, fmt.Errorf("launching beside the TPM: %w", err)
	}
	return d, nil
}

// measureLaunch measures this process, or copies a program where no process can change
// it and measures both.
func measureLaunch(program []string) (copied *os.File, l tpm.Launch, err error) {
	self, err := os.Open("/proc/self/exe")
	if err != nil {
		return nil, l, err
	}
	defer self.Close()
	own, dynamic, err := soft.Measure(self, nil, nil)
	if err != nil {
		return nil, l, fmt.Errorf("measuring this program: %w", err)
	}
	l.Program, l.Dynamic, l.Arguments = attest.Digest(own.Registers[1].Value), dynamic, tpm.Arguments(nil)
	if len(program) == 0 {
		return nil, l, nil
	}
	file, err := os.Open(program[0])
	if err != nil {
		return nil, l, err
	}
	defer file.Close()
	l.Agent, l.Arguments = l.Program, tpm.Arguments(program[1:])
	copied, l.Program, dynamic, err = soft.SealCopy(file)
	l.Dynamic = l.Dynamic || dynamic
	return copied, l, err
}

// TPMReference is the reference value of a program beside this machine's TPM, as
// policy files write it.
func TPMReference(machine tpm.Machine, taken Measurement, args []string) (string, error) {
	m, err := machine.BootMeasurement(tpm.Launch{})
	if err != nil {
		return "", fmt.Errorf("reading the TPM: %w", err)
	}
	var boot []string
	for _, r := range m.Registers {
		if number, is := strings.CutPrefix(r.Name, "pcr"); is {
			boot = append(boot, fmt.Sprintf("%s = \"sha256:%x\"", number, r.Value))
		}
	}
	tail := strings.TrimPrefix(Reference(attest.TPM, taken, args), `{ platform = "tpm", `)
	return `{ platform = "tpm", boot = { ` + strings.Join(boot, ", ") + " }, " + tail, nil
}
