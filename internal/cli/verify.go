package cli

import (
	"context"
	"fmt"
	"net"
	"strings"

	"github.com/cohort-tee/cohort/client"
	"github.com/spf13/cobra"
)

// verifyFlags are the flags of `cohort verify`.
type verifyFlags struct {
	pins    pinFlags
	name    string
	session sessionFlags
	receipt string
}

func (a *app) verifyCommand() *cobra.Command {
	var f verifyFlags
	cmd := &cobra.Command{
		Use:   "verify ADDRESS",
		Short: "Check what stands at an address: hardware, code, policy, key, cluster",
		Long: "Check what stands at an address: hardware, code, policy, key, cluster. With\n" +
			"--session, ADDRESS is the URL of a gateway, and what is checked is the cluster\n" +
			"behind it. With --receipt, check offline which unit gave an answer.",
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			switch {
			case (f.receipt == "") != (len(args) == 1):
				return usage("verify: got %d addresses, want one, or --receipt", len(args))
			case f.receipt != "":
				return a.verifyReceipt(f.pins, f.receipt)
			case f.session.wanted:
				f.session.gateway.url = args[0]
				return a.verifySession(cmd.Context(), f)
			case f.session != sessionFlags{} || f.pins.group != "":
				return usage("--fresh-evidence, --manager-ca, --group and --role need --session")
			}
			return a.verifyAddress(cmd.Context(), f, args[0])
		},
	}
	f.pins.register(cmd)
	f.pins.registerGroup(cmd, "with --session or --receipt: group to follow through the rosters its parties approve")
	cmd.Flags().StringVar(&f.session.role, "role", "", "role of the group that the session is with; * is the whole group")
	f.session.register(cmd)
	f.session.gateway.registerCA(cmd)
	cmd.Flags().StringVar(&f.name, "server-name", "", "name of the task to ask for (default its first)")
	cmd.Flags().StringVar(&f.receipt, "receipt", "", "receipt to check, as `cohort request --receipt-out` wrote it")
	return cmd
}

func (a *app) verifyAddress(ctx context.Context, f verifyFlags, address string) error {
	if _, _, err := net.SplitHostPort(address); err != nil {
		return usage("ADDRESS: got %q, want HOST:PORT", address)
	}
	t, err := a.trust(ctx, f.pins)
	if err != nil {
		return err
	}
	r, err := client.Verify(ctx, address, client.Config{Trust: t, ServerName: f.name})
	if err != nil {
		return err
	}
	var tree strings.Builder
	if err := r.WriteTree(&tree); err != nil {
		return fmt.Errorf("writing the report: %w", err)
	}
	return a.emit("verify", r, tree.String())
}

// verifySession opens a session and closes it: each unit that confirms the end
// has proved that it held it. It sends no request to the program.
func (a *app) verifySession(ctx context.Context, f verifyFlags) error {
	t, err := a.trust(ctx, f.pins)
	if err != nil {
		return err
	}
	c, err := f.session.open(ctx, client.OpenConfig{Trust: t})
	if err != nil {
		return err
	}
	s, err := c.Session(ctx)
	closed := c.Close(ctx)
	if err != nil {
		return err
	}
	v := struct {
		trustView
		Session sessionView `json:"session"`
	}{viewTrust(t), viewSession(s)}
	for _, unit := range closed.Confirmed {
		v.Session.Closed = append(v.Session.Closed, unit.String())
	}
	return a.emit("verify-session", v, v.trustView.String()+v.Session.String())
}
