package cli

import (
	"github.com/cohort-tee/cohort/internal/cli/authoritycmd"
	"github.com/cohort-tee/cohort/internal/cli/devcmd"
	"github.com/cohort-tee/cohort/internal/cli/frame"
	"github.com/cohort-tee/cohort/internal/cli/opscmd"
	"github.com/cohort-tee/cohort/internal/cli/runcmd"
	"github.com/spf13/cobra"
)

// linuxCommands are the commands that serve, or that look at the machine: all TEEs are on
// linux.
func linuxCommands(a *frame.App) []*cobra.Command {
	return []*cobra.Command{
		devcmd.Command(a), authoritycmd.Command(a), runcmd.ManagerCommand(a), runcmd.SoftCommand(a), runcmd.UnitCommand(a),
		opscmd.Doctor(a), devcmd.Rogue(a),
	}
}
