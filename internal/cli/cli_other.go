//go:build !linux

package cli

import (
	"runtime"

	"github.com/cohort-tee/cohort/internal/cli/frame"
	"github.com/spf13/cobra"
)

// linuxCommands stand for the commands that this system lacks, so that who enters one
// learns why.
func linuxCommands(*frame.App) (list []*cobra.Command) {
	for _, name := range []string{"dev", "authority", "manager", "soft", "unit", "doctor"} {
		list = append(list, &cobra.Command{
			Use: name, Short: "Runs on linux only", DisableFlagParsing: true,
			RunE: func(*cobra.Command, []string) error {
				return frame.Usage("cohort %s runs on linux only, and this is %s: here are the commands of owners, parties and clients", name, runtime.GOOS)
			},
		})
	}
	return list
}
