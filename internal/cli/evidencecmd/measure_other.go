//go:build !linux

package evidencecmd

import (
	"runtime"

	"github.com/cohort-tee/cohort/internal/cli/frame"
	"github.com/spf13/cobra"
)

// Measure is `cohort measure`, of images alone.
func Measure(a *frame.App) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "measure",
		Short: "Print the reference value of an image, as policy files write it",
		Args:  cobra.ArbitraryArgs,
		RunE: func(*cobra.Command, []string) error {
			return frame.Usage("programs are measured on linux only, and this is %s: here are images (cohort measure --help)", runtime.GOOS)
		},
	}
	cmd.AddCommand(measureImageCommands(a)...)
	return cmd
}
