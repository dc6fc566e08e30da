package runcmd

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"

	"github.com/cohort-tee/cohort/attest/soft"
	"github.com/cohort-tee/cohort/internal/cli/frame"
	"github.com/cohort-tee/cohort/internal/cli/localtee"
	"github.com/spf13/cobra"
)

// SoftCommand is `cohort soft`.
func SoftCommand(a *frame.App) *cobra.Command {
	var socket, dir string
	cmd := &cobra.Command{
		Use:   "soft [-- PROGRAM ARGS]",
		Short: "Run the development TEE, or launch a program in it",
		Long: "Run the development TEE: a daemon that launches what it measures. It protects\n" +
			"nothing from the machine it runs on. With a program, launch that program,\n" +
			"measured, in the daemon that listens on --socket.",
		RunE: func(cmd *cobra.Command, args []string) error {
			var err error
			if dir == "" {
				if dir, err = a.StateDir("soft"); err != nil {
					return err
				}
			}
			if socket == "" {
				socket = filepath.Join(dir, "socket")
			}
			if len(args) == 0 {
				return runSoft(cmd.Context(), a, socket, dir)
			}
			if args[0], err = frame.ProgramPath(args[0]); err != nil {
				return err
			}
			return a.RunInside(cmd.Context(), socket, localtee.Launch{Program: args, Settings: a.Settings()})
		},
	}
	cmd.Flags().StringVar(&socket, "socket", "", "socket of the daemon (default DIR/socket)")
	cmd.Flags().StringVar(&dir, "dir", "", "where the daemon keeps its key (default in the state directory)")
	return cmd
}

// runSoft runs the daemon until it ends. It prints its root once it listens.
func runSoft(ctx context.Context, a *frame.App, socket, dir string) error {
	daemon, err := soft.NewDaemon(soft.Config{Dir: dir})
	if err != nil {
		return err
	}
	listener, err := soft.Listen(socket)
	if err != nil {
		return errors.Join(err, daemon.Close())
	}
	a.Log.Warn("DEVELOPMENT: the soft TEE protects nothing from this machine", "socket", socket, "root", daemon.RootDigest())
	root := map[string]string{"root": daemon.RootDigest().String(), "chip": soft.ChipOf(daemon.RootDigest()), "socket": socket}
	if err := a.PrintResult("soft", root, fmt.Sprintf("root %s\nchip %s\nsocket %s\n", daemon.RootDigest(), soft.ChipOf(daemon.RootDigest()), socket)); err != nil {
		return errors.Join(err, listener.Close(), daemon.Close())
	}
	return errors.Join(daemon.Serve(ctx, listener), daemon.Close())
}
