package devcmd

import (
	"github.com/cohort-tee/cohort/internal/cli/frame"
	"github.com/cohort-tee/cohort/internal/dev/check/channelcheck"
	"github.com/spf13/cobra"
)

// Rogue is the hidden command that a check launches.
func Rogue(a *frame.App) *cobra.Command { return channelcheck.RogueCommand(a) }
