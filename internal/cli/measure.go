package cli

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/attest/tpm"
	"github.com/spf13/cobra"
)

func (a *app) measureCommand() *cobra.Command {
	var agent, platform string
	var machine tpmFlags
	cmd := &cobra.Command{
		Use:   "measure [-- PROGRAM ARGS]",
		Short: "Print the reference value of a program, as policy files write it",
		Long: "Print the reference value of PROGRAM with ARGS, run by this cohort as its agent.\n" +
			"With --agent none it is that of a program which uses the SDK. Without a program\n" +
			"it is that of this cohort itself, as an authority.",
		RunE: func(_ *cobra.Command, args []string) error {
			self, err := os.Executable()
			if err != nil {
				return err
			}
			switch {
			case len(args) == 0:
				agent, args = "", []string{self}
			case agent == "none":
				agent = ""
			case agent == "":
				agent = self
			}
			if len(args) > 0 {
				if args[0], err = programPath(args[0]); err != nil {
					return err
				}
			}
			m, err := measure(agent, args)
			if err != nil {
				return err
			}
			if err := onPlatform(&m, platform, machine.machine, args[1:]); err != nil {
				return err
			}
			text := m.Reference + "\n"
			if m.Dynamic {
				a.say("note: it loads shared libraries, which are not measured: the release needs `dynamic = true`")
			}
			return a.emit("measure", m, text)
		},
	}
	cmd.Flags().StringVar(&agent, "agent", "", "file of the agent, or none (default this program)")
	cmd.Flags().StringVar(&platform, "platform", string(attest.Soft), "TEE it will run in: soft or tpm")
	machine.registerMachine(cmd, tpmPath)
	cmd.AddCommand(a.measureSNPCommand(), a.measureSGXCommand(), a.measureNitroCommand())
	return cmd
}

// onPlatform makes a measurement one of another platform.
func onPlatform(m *measurement, platform string, machine tpm.Machine, args []string) (err error) {
	switch attest.Platform(platform) {
	case attest.Soft:
	case attest.TPM:
		m.Platform = platform
		m.Reference, err = tpmReference(machine, *m, args)
	default:
		return usage("--platform: got %q, want soft or tpm", platform)
	}
	return err
}

// programPath finds a program as a shell would.
func programPath(name string) (string, error) {
	path, err := exec.LookPath(name)
	if err != nil {
		return "", &fault{codeFile, fmt.Errorf("finding program: %w", err), "give the path of an executable file"}
	}
	return filepath.Abs(path)
}
