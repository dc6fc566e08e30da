package clientcmd

import (
	"context"
	"net"

	"github.com/cohort-tee/cohort/client"
	"github.com/cohort-tee/cohort/internal/authorityclient"
	"github.com/cohort-tee/cohort/internal/cli/frame"
	"github.com/spf13/cobra"
)

// verifyFlags are the flags of `cohort verify`.
type verifyFlags struct {
	pins    authorityclient.Pins
	name    string
	session sessionFlags
	receipt string
}

// Verify is `cohort verify`.
func Verify(a *frame.App) *cobra.Command {
	var f verifyFlags
	cmd := &cobra.Command{
		Use:   "verify ADDRESS",
		Short: "Verify the service at an address: hardware, code, policy, key, cluster",
		Long: "Verify the service at an address: hardware, code, policy, key, cluster. With\n" +
			"--session, ADDRESS is the URL of a gateway, and what is checked is the cluster\n" +
			"behind it; without --authority trust comes through it too. With --receipt, verify offline which unit sent a response.",
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			switch {
			case (f.receipt == "") != (len(args) == 1):
				return frame.Usage("verify: got %d addresses, want one, or --receipt", len(args))
			case f.receipt != "":
				return verifyReceipt(a, f.pins, f.receipt)
			case f.session.wanted && f.session.gateway.URL != "":
				return frame.Usage("--gateway does not go with --session: ADDRESS is the gateway")
			case f.session.wanted:
				f.session.gateway.URL = args[0]
				f.pins.Gateway = f.session.gateway
				return verifySession(cmd.Context(), a, f)
			case f.session.needed(f.pins) || f.pins.Group != "":
				return frame.Usage("--fresh-evidence, --group and --role need --session, and so do --gateway and --manager-ca beside --authority")
			}
			f.pins.Gateway = f.session.gateway
			return verifyAddress(cmd.Context(), a, f, args[0])
		},
	}
	f.pins.Register(cmd)
	f.pins.RegisterGroup(cmd, "with --session or --receipt: group to follow through the rosters its parties approve")
	cmd.Flags().StringVar(&f.session.role, "role", "", "role of the group that the session is with; * is the whole group")
	f.session.register(cmd)
	f.session.gateway.Register(cmd, "without --authority and --session: URL of the gateway that trust comes through, or of several with commas between")
	f.pins.RegisterFresh(cmd)
	cmd.Flags().StringVar(&f.name, "server-name", "", "name of the task to ask for (default its first)")
	cmd.Flags().StringVar(&f.receipt, "receipt", "", "receipt to check, as `cohort request --receipt-out` wrote it")
	return cmd
}

func verifyAddress(ctx context.Context, a *frame.App, f verifyFlags, address string) error {
	if _, _, err := net.SplitHostPort(address); err != nil {
		return frame.Usage("ADDRESS: got %q, want HOST:PORT", address)
	}
	t, err := authorityclient.Trust(ctx, a, f.pins)
	if err != nil {
		return err
	}
	r, err := client.Verify(ctx, address, client.Config{Trust: t, ServerName: f.name})
	if err != nil {
		return err
	}
	return a.PrintResult("verify", r, reportTree(r))
}

// verifySession opens a session and closes it: each unit that confirms the end
// has proved that it had it. It sends no request to the program.
func verifySession(ctx context.Context, a *frame.App, f verifyFlags) error {
	t, err := authorityclient.Trust(ctx, a, f.pins)
	if err != nil {
		return err
	}
	c, err := f.session.openSession(ctx, client.OpenConfig{Trust: t})
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
	return a.PrintResult("verify-session", v, v.trustView.String()+v.Session.String())
}
