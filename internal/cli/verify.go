package cli

import (
	"fmt"
	"net"
	"strings"

	"github.com/cohort-tee/cohort/client"
	"github.com/spf13/cobra"
)

func (a *app) verifyCommand() *cobra.Command {
	var p pinFlags
	var name string
	cmd := &cobra.Command{
		Use:   "verify ADDRESS",
		Short: "Check what stands at an address: hardware, code, policy, key, cluster",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			address := args[0]
			if _, _, err := net.SplitHostPort(address); err != nil {
				return usage("ADDRESS: got %q, want HOST:PORT", address)
			}
			t, err := a.trust(cmd.Context(), p)
			if err != nil {
				return err
			}
			r, err := client.Verify(cmd.Context(), address, client.Config{Trust: t, ServerName: name})
			if err != nil {
				return err
			}
			var tree strings.Builder
			if err := r.WriteTree(&tree); err != nil {
				return fmt.Errorf("writing the report: %w", err)
			}
			return a.emit("verify", r, tree.String())
		},
	}
	p.register(cmd)
	cmd.Flags().StringVar(&name, "server-name", "", "name of the task to ask for (default its first)")
	return cmd
}
