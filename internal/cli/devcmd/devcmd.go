// Package devcmd is `cohort dev`: run a development cluster, and check one from outside.
package devcmd

import (
	"context"
	"errors"
	"os"
	"slices"
	"strings"

	"github.com/cohort-tee/cohort/internal/cli/frame"
	"github.com/cohort-tee/cohort/internal/dev"
	"github.com/cohort-tee/cohort/policy"
	"github.com/spf13/cobra"
)

func Command(a *frame.App) *cobra.Command {
	var f dev.Flags
	cmd := &cobra.Command{
		Use:   "dev [-- PROGRAM ARGS]",
		Short: "Run a whole cluster on this machine, for development",
		Long: "Run an authority, a manager with its gateway, and three units of an example or\n" +
			"of your own program, in the development TEE. No root, no network, and no\n" +
			"protection from this machine.\n" +
			"With --check, judge a fresh cluster from outside and end. The example jointrisk is\n" +
			"a group: one unit of each of three companies' programs.",
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := checkFlags(f); err != nil {
				return err
			}
			switch f.Task = f.Example; {
			case f.Example == dev.Joint && len(args) > 0:
				return frame.Usage("--example %s runs programs of its own", dev.Joint)
			case f.Example == dev.Joint:
				f.Task = dev.JointMembers[dev.Joiner].Role
			case len(args) > 0:
				f.Task = "app"
			}
			switch {
			case f.Cluster != "":
				return checkRunning(cmd.Context(), a, f.Cluster)
			case f.Checking:
				return checkFresh(cmd.Context(), a, f, args)
			}
			return dev.Run(cmd.Context(), a, f, args)
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&f.Dir, "dir", "", "where dev.json and the cluster's state are (default in the state directory)")
	flags.IntVar(&f.BasePort, "base-port", 7440, "first of 9 ports; 0 takes any free ones")
	flags.BoolVar(&f.Checking, "check", false, "judge a fresh cluster from outside, one line for each story")
	flags.StringVar(&f.Cluster, "cluster", "", "with --check: judge the running cluster that this dev.json describes")
	flags.StringVar(&f.Example, "example", dev.Examples[0], "example to run: "+strings.Join(dev.Examples, ", "))
	flags.IntVar(&f.Upgrades, "upgrades", 0, "with --check: then replace the program by so many releases, one after the other, while one session goes on")
	flags.IntVar(&f.Rows, "rows", 0, "with --example jointrisk: rows of each table (default 1000000, with --check 20000)")
	flags.StringVar(&f.KeyMode, "key-mode", string(policy.Shared), "shared: one certificate for all units; unit: one each")
	return cmd
}

// checkFlags reports the first flag that is wrong.
func checkFlags(f dev.Flags) error {
	switch {
	case f.KeyMode != string(policy.Shared) && f.KeyMode != string(policy.PerUnit):
		return frame.Usage("--key-mode: got %q, want shared or unit", f.KeyMode)
	case !slices.Contains(dev.Examples, f.Example):
		return frame.Usage("--example: got %q, want one of %s", f.Example, strings.Join(dev.Examples, ", "))
	case f.Upgrades < 0 || f.Upgrades > 0 && (!f.Checking || f.Cluster != ""):
		return frame.Usage("--upgrades needs --check, and a fresh cluster")
	case f.Upgrades > 0 && f.Example == dev.Joint:
		return frame.Usage("--upgrades does not go with --example %s", dev.Joint)
	case f.Rows < 0 || f.Rows > 0 && f.Example != dev.Joint:
		return frame.Usage("--rows needs --example %s, and 1 or more", dev.Joint)
	case f.Cluster != "" && !f.Checking:
		return frame.Usage("--cluster needs --check")
	}
	return nil
}

// checkFresh judges a new cluster in a folder of its own.
func checkFresh(ctx context.Context, a *frame.App, f dev.Flags, program []string) (err error) {
	if f.Dir, err = os.MkdirTemp("", "cohort-check-"); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(f.Dir)) }()
	f.BasePort = 0
	return dev.With(ctx, a, f, program, func(d *dev.Cluster) error {
		return checkStarted(ctx, d, f.Upgrades)
	})
}
