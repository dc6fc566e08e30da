package groupcmd

import (
	"context"
	"fmt"

	"github.com/cohort-tee/cohort/internal/authorityclient"
	"github.com/cohort-tee/cohort/internal/cli/frame"
	"github.com/cohort-tee/cohort/internal/cli/partystatement"
	"github.com/cohort-tee/cohort/policy/sshsig"
	"github.com/spf13/cobra"
)

func groupApproveCommand(a *frame.App) *cobra.Command {
	var s partystatement.Flags
	cmd, _ := authorityclient.Command(a, "approve GROUP --digest D", "Approve a group, as one of its parties", cobra.ExactArgs(1),
		func(ctx context.Context, c authorityclient.Client, _ *authorityclient.Flags, args []string) error {
			return stateOfGroup(ctx, a, c, args[0], s, sshsig.ForApprove)
		})
	cmd.Long = "Approve the group whose identity has the digest D, with the party's SSH key. D\n" +
		"is what the parties agreed on beside Cohort; what a server shows is never signed.\n" +
		"The group's root is fetched with evidence, which is appraised by the roster's own\n" +
		"values, and is in the statement."
	s.Register(cmd)
	cmd.Flags().StringVar(&s.Digest, "digest", "", "identity of the group that is approved, from `cohort group show`")
	cmd.Flags().StringVar(&s.NotAfter, "not-after", "", "end of the approval, as 2026-12-01T00:00:00Z (default the group's end)")
	_ = cmd.MarkFlagRequired("digest")
	return cmd
}

func groupWithdrawCommand(a *frame.App) *cobra.Command {
	var s partystatement.Flags
	cmd, _ := authorityclient.Command(a, "withdraw GROUP", "Withdraw from a group, as one of its parties", cobra.ExactArgs(1),
		func(ctx context.Context, c authorityclient.Client, _ *authorityclient.Flags, args []string) error {
			return stateOfGroup(ctx, a, c, args[0], s, sshsig.ForWithdraw)
		})
	s.Register(cmd)
	cmd.Flags().StringVar(&s.Digest, "digest", "", "identity of the group (default the one of the newest policy)")
	return cmd
}

// stateOfGroup signs and sends what a party states of a group, and prints that it is in
// the history.
func stateOfGroup(ctx context.Context, a *frame.App, c authorityclient.Client, group string, s partystatement.Flags, ns sshsig.Namespace) error {
	statement, receipt, err := partystatement.Submit(ctx, a, c, group, s, ns)
	if err != nil {
		return err
	}
	return a.PrintResult("group-statement", receipt, fmt.Sprintf("recorded: statement %d of party %s, in the history up to head %s\n", statement.Number, statement.Party, receipt.Head))
}
