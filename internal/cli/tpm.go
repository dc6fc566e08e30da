package cli

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/attest/soft"
	"github.com/cohort-tee/cohort/attest/tpm"
	"github.com/cohort-tee/cohort/internal/wire"
	"github.com/spf13/cobra"
)

// maxCAFile bounds the file of --tpm-ca, in bytes.
const maxCAFile = 64 << 10

// tpmPath is the device of the kernel's resource manager.
const tpmPath = "/dev/tpmrm0"

// kernelEventLog is where Linux keeps the firmware's event log.
const kernelEventLog = "/sys/kernel/security/tpm0/binary_bios_measurements"

// tpmFlags say which TPM, and what its machine keeps beside it.
type tpmFlags struct {
	machine      tpm.Machine
	ca, eventLog string
}

func (f *tpmFlags) register(cmd *cobra.Command) {
	f.registerMachine(cmd, tpmPath)
	cmd.Flags().StringVar(&f.ca, "tpm-ca", "", "certificates that the TPM's endorsement key stands under (PEM), with --platform tpm")
	cmd.Flags().StringVar(&f.eventLog, "tpm-event-log", kernelEventLog, "event log of the firmware; may be missing")
}

func (f *tpmFlags) registerMachine(cmd *cobra.Command, path string) {
	cmd.Flags().StringVar(&f.machine.Path, "tpm", path, "TPM: a device, or the Unix socket of a software TPM")
	cmd.Flags().StringVar(&f.machine.Log, "tpm-log", "/run/cohort/launches", "launch log of the machine, on a tmpfs that all agents share")
}

// tpmDevice is a TPM as the launch of this process, or of its program, uses it.
type tpmDevice struct {
	*tpm.Device
	program *os.File
	args    []string
}

func (d tpmDevice) Args() []string { return d.args }

func (d tpmDevice) Program() (*os.File, error) {
	if d.program == nil {
		return nil, wire.Refuse(wire.NotFound, "tpm device: program", "a launch without an agent", "an agent's")
	}
	return d.program, nil
}

// launchTPM enters this process, as itself or as the agent of a program, into the
// launch log of the machine.
func (a *app) launchTPM(f tpmFlags, program []string) (device, error) {
	if f.ca == "" {
		return nil, usage("--platform tpm needs --tpm-ca")
	}
	ca, err := readFile(f.ca, maxCAFile)
	if err != nil {
		return nil, err
	}
	c := tpm.Config{Machine: f.machine, CA: ca, EventLog: f.eventLog}
	if _, err := os.Stat(f.eventLog); errors.Is(err, fs.ErrNotExist) {
		c.EventLog = ""
	}
	d, err := newTPMDevice(c, program)
	if err != nil {
		return nil, err
	}
	a.log.Warn("a TPM proves what was started here; it keeps nothing from root on this machine")
	return d, nil
}

// newTPMDevice measures this process, or a program of which it is the agent, and enters
// that into the launch log of the machine.
func newTPMDevice(c tpm.Config, program []string) (d tpmDevice, err error) {
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

// measureLaunch measures this process, or copies a program where nobody can change
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
	copied, l.Program, dynamic, err = soft.Copy(file)
	l.Dynamic = l.Dynamic || dynamic
	return copied, l, err
}

// tpmReference is the reference value of a program beside this machine's TPM, as
// policy files write it.
func tpmReference(machine tpm.Machine, taken measurement, args []string) (string, error) {
	m, err := machine.Boot(tpm.Launch{})
	if err != nil {
		return "", fmt.Errorf("reading the TPM: %w", err)
	}
	var boot []string
	for _, r := range m.Registers {
		if number, is := strings.CutPrefix(r.Name, "pcr"); is {
			boot = append(boot, fmt.Sprintf("%s = \"sha256:%x\"", number, r.Value))
		}
	}
	tail := strings.TrimPrefix(reference(attest.TPM, taken, args), `{ platform = "tpm", `)
	return `{ platform = "tpm", boot = { ` + strings.Join(boot, ", ") + " }, " + tail, nil
}

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
		check("device", "load the kernel's TPM driver, switch the TPM on in the firmware, and run as root", tpm.Machine.Present),
		check("endorsement key's certificate", "ask the maker for it and write it to NV 0x1c00002 or 0x1c0000a; a virtual TPM gets one when it is made", tpm.Machine.Certificate),
		check("SHA-256 bank", "activate the SHA-256 bank in the firmware's setup", tpm.Machine.Bank),
		check("attestation key", "the storage hierarchy needs an empty authorization; clear it in the firmware's setup", tpm.Machine.MakesKeys),
	}
}
