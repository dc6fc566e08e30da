// Package groupcmd is `cohort group`: show and verify the groups of a policy, approve them and
// withdraw from them as a party.
//
// Files, each using those before it: statement.go, view.go, groupcmd.go.
package groupcmd

import (
	"context"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/internal/authorityclient"
	"github.com/cohort-tee/cohort/internal/cli/frame"
	"github.com/cohort-tee/cohort/internal/cli/partystatement"
	"github.com/cohort-tee/cohort/internal/wire"
	"github.com/spf13/cobra"
)

// Command is `cohort group`.
func Command(a *frame.App) *cobra.Command {
	cmd := &cobra.Command{Use: "group", Short: "Approve, withdraw from and check groups of several parties"}
	cmd.AddCommand(
		groupApproveCommand(a), groupWithdrawCommand(a), groupStatusCommand(a), groupShowCommand(a), groupVerifyCommand(a),
	)
	return cmd
}

func groupStatusCommand(a *frame.App) *cobra.Command {
	cmd, _ := authorityclient.Command(a, "status GROUP", "Show who approves a group, who is missing, and until when", cobra.ExactArgs(1),
		func(ctx context.Context, c authorityclient.Client, _ *authorityclient.Flags, args []string) error {
			pact, err := partystatement.PactOf(c.Approved, args[0], "")
			if err != nil {
				return err
			}
			appraised, err := partystatement.AppraisedRoot(ctx, a, c, pact)
			if err != nil { // the group may have ended with the machines that kept it
				a.Notef("note: the root of group %s: %v", args[0], err)
			}
			v := struct {
				*groupView
				authorityclient.Filling
			}{viewGroup(a, pact, appraised.Digest), authorityclient.FillingOf(c.Approved)}
			return a.PrintResult("group-status", v, v.status().Indented()+v.Filling.String())
		})
	cmd.Long = "Show who approves a group, who is missing, and until when. `group-root` is at\n" +
		"a party that approved another root of the group than the authority has now."
	return cmd
}

func groupShowCommand(a *frame.App) *cobra.Command {
	cmd, _ := authorityclient.Command(a, "show GROUP", "Show the roster of a group: what its parties approve", cobra.ExactArgs(1),
		func(_ context.Context, c authorityclient.Client, _ *authorityclient.Flags, args []string) error {
			pact, err := partystatement.PactOf(c.Approved, args[0], "")
			if err != nil {
				return err
			}
			v := viewGroup(a, pact, attest.Digest{})
			return a.PrintResult("group", v, v.drawTree()+"floors    "+v.Floors+"\nauthority "+v.Authorities+"\n")
		})
	return cmd
}

func groupVerifyCommand(a *frame.App) *cobra.Command {
	var p authorityclient.Pins
	cmd := &cobra.Command{
		Use:   "verify GROUP",
		Short: "Check a group: its authority, parties, programs, platforms and approvals",
		Long: "Check that the parties approve the group now, under policy that the pinned owners\n" +
			"signed, at an authority whose evidence holds. With --digest it must be exactly\n" +
			"that group; with --party-key a party with one of the keys must approve it.",
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			p.Group = args[0]
			return verifyGroup(cmd.Context(), a, p)
		},
	}
	p.RegisterAuthority(cmd)
	p.RegisterParty(cmd)
	cmd.Flags().StringVar(&p.ID, "digest", "", "identity that the group must have")
	return cmd
}

func verifyGroup(ctx context.Context, a *frame.App, p authorityclient.Pins) error {
	t, err := authorityclient.Trust(ctx, a, p)
	if err != nil {
		return err
	}
	v := viewGroup(a, t.Group(), wire.Sum(t.Identities()[0].Root.RawSubjectPublicKeyInfo))
	v.trusted(t)
	return a.PrintResult("group-verify", v, v.drawTree())
}
