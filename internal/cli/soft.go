package cli

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"

	"github.com/cohort-tee/cohort/attest/soft"
	"github.com/spf13/cobra"
)

func (a *app) softCommand() *cobra.Command {
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
				if dir, err = a.stateDir("soft"); err != nil {
					return err
				}
			}
			if socket == "" {
				socket = filepath.Join(dir, "socket")
			}
			if len(args) == 0 {
				return a.runSoft(cmd.Context(), socket, dir)
			}
			if args[0], err = programPath(args[0]); err != nil {
				return err
			}
			return a.runInside(cmd.Context(), socket, launch{program: args, settings: a.settings()})
		},
	}
	cmd.Flags().StringVar(&socket, "socket", "", "socket of the daemon (default DIR/socket)")
	cmd.Flags().StringVar(&dir, "dir", "", "where the daemon keeps its key (default in the state directory)")
	return cmd
}

// runSoft is the daemon's life. It prints its root once it listens.
func (a *app) runSoft(ctx context.Context, socket, dir string) error {
	daemon, err := soft.NewDaemon(soft.Config{Dir: dir})
	if err != nil {
		return err
	}
	listener, err := soft.Listen(socket)
	if err != nil {
		return errors.Join(err, daemon.Close())
	}
	a.log.Warn("DEVELOPMENT: the soft TEE protects nothing from this machine", "socket", socket, "root", daemon.Root())
	root := map[string]string{"root": daemon.Root().String(), "chip": soft.Chip(daemon.Root()), "socket": socket}
	if err := a.emit("soft", root, fmt.Sprintf("root %s\nchip %s\nsocket %s\n", daemon.Root(), soft.Chip(daemon.Root()), socket)); err != nil {
		return errors.Join(err, listener.Close(), daemon.Close())
	}
	return errors.Join(daemon.Serve(ctx, listener), daemon.Close())
}

// stateDir is a folder of the state directory ($XDG_STATE_HOME).
func (a *app) stateDir(name string) (string, error) {
	if base, ok := a.env("XDG_STATE_HOME"); ok && filepath.IsAbs(base) {
		return filepath.Join(base, "cohort", name), nil
	}
	home, ok := a.env("HOME")
	if !ok {
		return "", usage("neither XDG_STATE_HOME nor HOME is set: give --dir")
	}
	return filepath.Join(home, ".local", "state", "cohort", name), nil
}
