//go:build linux

package frame

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"syscall"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/attest/tpm"
	"github.com/cohort-tee/cohort/internal/cli/localtee"
	"github.com/spf13/cobra"
)

// TEEFlags name the TEE for a command that was started outside one.
type TEEFlags struct {
	platform, socket string
	tpm              TPMFlags
}

// Register adds the flags to a command.
func (t *TEEFlags) Register(cmd *cobra.Command) {
	cmd.Flags().StringVar(&t.platform, "platform", "", "TEE to run in: soft, tpm, snp, azure-snp, tdx, sgx, nitro (default: the one that started this process)")
	cmd.Flags().StringVar(&t.socket, "tee-socket", "", "socket of the soft daemon, with --platform soft")
	t.tpm.register(cmd)
}

// Within runs a command in its TEE: here, when a TEE started this process or
// --platform names the one that this machine is, else launched in one. With a
// program, this cohort is its agent.
func (a *App) Within(ctx context.Context, t TEEFlags, run func(context.Context) error, program ...string) error {
	switch named := attest.Platform(t.platform); {
	case a.TEE.Inside() && named != "" && named != a.TEE.Platform:
		return Usage("--platform: got %q, and %q started this process", named, a.TEE.Platform)
	case a.TEE.Inside():
		return run(ctx)
	case named == attest.TPM:
		d, err := a.launchTPM(t.tpm, program)
		if err != nil {
			return err
		}
		a.TEE = localtee.TEE{Device: d, Platform: named}
		return run(ctx)
	case localtee.Openers[named].Open != nil:
		d, err := localtee.Openers[named].Open(t.tpm.Machine)
		if err != nil {
			return err
		}
		a.TEE = localtee.TEE{Device: localtee.Machine{Attester: d, Command: program}, Platform: named}
		return run(ctx)
	}
	return a.enter(ctx, t, program...)
}

// enter runs this very command line inside a TEE, through the soft daemon, with
// this process's streams, and waits for its end. With a program, this cohort is
// its agent.
func (a *App) enter(ctx context.Context, tee TEEFlags, program ...string) error {
	if err := tee.validate(); err != nil {
		return err
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	settings, err := localtee.CommandSettings(a.Args)
	if err != nil {
		return err
	}
	for name, value := range a.Settings() {
		settings[name] = value
	}
	l := localtee.Launch{Program: []string{self}, Settings: settings}
	if len(program) > 0 {
		l.Agent, l.Program = self, program
	}
	return a.RunInside(ctx, tee.socket, l)
}

func (t TEEFlags) validate() error {
	switch {
	case t.platform == "":
		return &Fault{codeNoTEE, errors.New("this process was not started inside a TEE"), ""}
	case attest.Platform(t.platform).IsDevice():
		return Usage("--platform: %s is a device beside a TEE, not one to run in", t.platform)
	case t.platform != string(attest.Soft):
		return Usage("--platform: got %q, want one of %s", t.platform, strings.Join(localtee.Names(), ", "))
	case t.socket == "":
		return Usage("--platform soft needs --tee-socket")
	}
	return nil
}

// Settings are the COHORT_ variables of this process: what its host chose.
func (a *App) Settings() map[string]string {
	found := map[string]string{}
	for _, pair := range a.Environ() {
		name, value, _ := strings.Cut(pair, "=")
		if strings.HasPrefix(name, "COHORT_") && name != localtee.CommandSetting {
			found[name] = value
		}
	}
	return found
}

// RunInside starts a program in the TEE, passes this process's streams and its
// end on, and returns the program's exit as its own.
func (a *App) RunInside(ctx context.Context, socket string, l localtee.Launch) error {
	l.Stdin, _ = a.Stdin.(*os.File)
	l.Stdout, _ = a.Stdout.(*os.File)
	l.Stderr, _ = a.Stderr.(*os.File)
	p, err := l.Start(ctx, socket)
	if err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { _ = p.Signal(syscall.SIGTERM) })
	defer stop()
	exit, err := p.Wait()
	if err != nil {
		return fmt.Errorf("waiting for the program: %w", err)
	}
	if exit.Signal != 0 {
		return fmt.Errorf("the program in the TEE was ended by %v", exit)
	}
	if exit.Code != 0 {
		return exitStatus(exit.Code)
	}
	return nil
}

// maxCAFile bounds the file of --tpm-ca, in bytes.
const maxCAFile = 64 << 10

// TPMPath is the device of the kernel's resource manager.
const TPMPath = "/dev/tpmrm0"

// kernelEventLog is where Linux keeps the firmware's event log.
const kernelEventLog = "/sys/kernel/security/tpm0/binary_bios_measurements"

// TPMFlags name the TPM, and the files of its machine.
type TPMFlags struct {
	Machine      tpm.Machine
	ca, eventLog string
}

func (f *TPMFlags) register(cmd *cobra.Command) {
	f.RegisterMachine(cmd, TPMPath)
	cmd.Flags().StringVar(&f.ca, "tpm-ca", "", "certificates that the TPM's endorsement key chains to (PEM), with --platform tpm")
	cmd.Flags().StringVar(&f.eventLog, "tpm-event-log", kernelEventLog, "event log of the firmware; may be missing")
}

// RegisterMachine adds the flags that name the TPM and its launch log, with a default path.
func (f *TPMFlags) RegisterMachine(cmd *cobra.Command, path string) {
	cmd.Flags().StringVar(&f.Machine.Path, "tpm", path, "TPM: a device, or the Unix socket of a software TPM")
	cmd.Flags().StringVar(&f.Machine.Log, "tpm-log", "/run/cohort/launches", "launch log of the machine, on a tmpfs that all agents share")
}

// launchTPM enters this process, as itself or as the agent of a program, into the
// launch log of the machine.
func (a *App) launchTPM(f TPMFlags, program []string) (localtee.Device, error) {
	if f.ca == "" {
		return nil, Usage("--platform tpm needs --tpm-ca")
	}
	ca, err := ReadFile(f.ca, maxCAFile)
	if err != nil {
		return nil, err
	}
	c := tpm.Config{Machine: f.Machine, CA: ca, EventLog: f.eventLog}
	if _, err := os.Stat(f.eventLog); errors.Is(err, fs.ErrNotExist) {
		c.EventLog = ""
	}
	d, err := localtee.NewTPMDevice(c, program)
	if err != nil {
		return nil, err
	}
	a.Log.Warn("a TPM proves what was started here; it keeps nothing from root on this machine")
	return d, nil
}

// NoteUnmeasured prints what a measurement leaves out. Certificates of such a program
// look like those of any other, and `verify` shows "dynamic" at most.
func (a *App) NoteUnmeasured(m localtee.Measurement) {
	for _, what := range m.Unmeasured {
		a.Notef("note: not measured: %s", what)
	}
	if m.Dynamic {
		a.Notef("note: the release needs `dynamic = true`, which every client is shown")
	}
}
