//go:build linux

package evidencecmd

import (
	"context"
	"os"
	"strings"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/attest/tpm"
	"github.com/cohort-tee/cohort/internal/cli/frame"
	"github.com/cohort-tee/cohort/internal/cli/localtee"
	"github.com/spf13/cobra"
)

// Measure is `cohort measure`.
func Measure(a *frame.App) *cobra.Command {
	var agent, platform string
	var machine frame.TPMFlags
	cmd := &cobra.Command{
		Use:   "measure [-- PROGRAM ARGS]",
		Short: "Print the reference value of a program, as policy files write it",
		Long: "Print the reference value of PROGRAM with ARGS, run by this cohort as its agent.\n" +
			"With --agent none it is that of a program which uses the SDK. Without a program\n" +
			"it is that of this cohort itself, as an authority. On hardware that measures an\n" +
			"image instead of a program it is that of the image that runs here, in this\n" +
			"machine's own words: compute it from your files to know what it ought to be.\n" +
			"Notes on stderr name what of the program is not measured.",
		RunE: func(cmd *cobra.Command, args []string) error {
			if open := localtee.Openers[attest.Platform(platform)].Open; open != nil {
				return measureSelf(cmd.Context(), a, open, machine.Machine, args)
			}
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
				if args[0], err = frame.ProgramPath(args[0]); err != nil {
					return err
				}
			}
			m, err := localtee.Measure(agent, args)
			if err != nil {
				return err
			}
			if err := onPlatform(&m, platform, machine.Machine, args[1:]); err != nil {
				return err
			}
			text := m.Reference + "\n"
			a.NoteUnmeasured(m)
			return a.PrintResult("measure", m, text)
		},
	}
	cmd.Flags().StringVar(&agent, "agent", "", "file of the agent, or none (default this program)")
	cmd.Flags().StringVar(&platform, "platform", string(attest.Soft), "TEE it will run in")
	machine.RegisterMachine(cmd, frame.TPMPath)
	cmd.AddCommand(measureImageCommands(a)...)
	return cmd
}

// onPlatform makes a measurement one of another platform.
func onPlatform(m *localtee.Measurement, platform string, machine tpm.Machine, args []string) (err error) {
	switch attest.Platform(platform) {
	case attest.Soft:
	case attest.TPM:
		m.Platform = platform
		m.Reference, err = localtee.TPMReference(machine, *m, args)
	default:
		return frame.Usage("--platform: got %q, want one of %s", platform, strings.Join(localtee.Names(), ", "))
	}
	return err
}

// measureSelf prints the report of the TEE that this machine is. No verifier has
// checked it.
func measureSelf(ctx context.Context, a *frame.App, open func(tpm.Machine) (localtee.Attester, error), beside tpm.Machine, program []string) error {
	if len(program) > 0 {
		return frame.Usage("this platform measures an image and no program: give none")
	}
	d, err := open(beside)
	if err != nil {
		return err
	}
	evidence, err := d.Attest(ctx, attest.ReportData{})
	if err != nil {
		return err
	}
	claims, err := localtee.Verifier().UnverifiedClaims(evidence)
	if err != nil {
		return err
	}
	a.Notef("note: this is what runs here now, whoever started it; owners name what they computed from their own image")
	return emitReference(a, claims.Measurement)
}
