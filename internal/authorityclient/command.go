package authorityclient

import (
	"context"

	"github.com/cohort-tee/cohort/internal/cli/frame"
	"github.com/spf13/cobra"
)

// Flags are what the commands of an authority need.
type Flags struct {
	pins       Pins
	Key        string
	Signatures []string
}

// Command makes a command that runs with a checked authority.
func Command(a *frame.App, use, short string, args cobra.PositionalArgs, run func(context.Context, Client, *Flags, []string) error) (*cobra.Command, *Flags) {
	f := &Flags{}
	cmd := &cobra.Command{
		Use: use, Short: short, Args: args,
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := Dial(cmd.Context(), a, f.pins)
			if err != nil {
				return err
			}
			defer c.Close()
			return run(cmd.Context(), c, f, args)
		},
	}
	f.pins.RegisterAuthority(cmd)
	return cmd, f
}

// RegisterSigning adds the flags that name a key to sign with, or signatures.
func (f *Flags) RegisterSigning(cmd *cobra.Command) {
	cmd.Flags().StringVar(&f.Key, "ssh-key", "", "SSH key to sign with")
	cmd.Flags().StringArrayVar(&f.Signatures, "signature", nil, "file of a signature made before; repeat")
}
