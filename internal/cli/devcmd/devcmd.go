// Package devcmd is `cohort dev`: run a development cluster, and check one from outside.
//
// Files, each using those before it: checks.go, devcmd.go, rogue.go.
package devcmd

import (
	"context"
	"errors"
	"os"

	"github.com/cohort-tee/cohort/internal/cli/frame"
	"github.com/cohort-tee/cohort/internal/dev"
	"github.com/cohort-tee/cohort/policy/policyfile"
	"github.com/spf13/cobra"
)

// Command is `cohort dev`.
func Command(a *frame.App) *cobra.Command {
	var f dev.Flags
	var example string
	cmd := &cobra.Command{
		Use:   "dev [FILE] [-- PROGRAM ARGS]",
		Short: "Run a whole cluster on this machine, for development",
		Long: "Run an authority, a manager with its gateway, and three units of an example or\n" +
			"of your own program, in the development TEE. No root, no network, and no\n" +
			"protection from this machine.\n" +
			"FILE describes an example, as examples/scoring/dev.toml does. An example may be a group:\n" +
			"examples/jointrisk/dev.toml runs one unit of each of three companies' programs.\n" +
			"With --check, check a fresh cluster from outside and end.",
		RunE: func(cmd *cobra.Command, args []string) error {
			files, program := args, []string(nil)
			if dash := cmd.ArgsLenAtDash(); dash >= 0 {
				files, program = args[:dash], args[dash:]
			}
			if err := describe(&f, example, cmd.Flags().Changed("example"), files, program); err != nil {
				return err
			}
			if err := checkFlags(f); err != nil {
				return err
			}
			switch {
			case f.Cluster != "":
				return checkRunning(cmd.Context(), a, f.Cluster)
			case f.Checking:
				return checkFresh(cmd.Context(), a, f, program)
			}
			return dev.Run(cmd.Context(), a, f, program)
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&f.Dir, "dir", "", "where dev.json and the cluster's state are (default in the state directory)")
	flags.IntVar(&f.BasePort, "base-port", 7440, "first of 11 ports; 0 takes any free ones")
	flags.BoolVar(&f.Checking, "check", false, "check a fresh cluster from outside, one line for each check")
	flags.StringVar(&f.Cluster, "cluster", "", "with --check: check the running cluster that this dev.json describes")
	flags.StringVar(&example, "example", "scoring", "name of an example to run in place of FILE: its description is examples/NAME/dev.toml, or NAME.toml beside this program")
	flags.IntVar(&f.Upgrades, "upgrades", 0, "with --check: then replace the program by so many releases, one after the other, while one session goes on")
	flags.IntVar(&f.Rows, "rows", 0, "with an example that makes data: its size in rows (default as FILE says)")
	flags.StringVar(&f.KeyMode, "key-mode", string(policyfile.Shared), "shared: one certificate for all units; unit: one each")
	return cmd
}

// describe finds the description of the example to run, in FILE or by its name. A program of
// the user's own needs none.
func describe(f *dev.Flags, name string, named bool, files, program []string) (err error) {
	switch {
	case len(files) > 1 || len(files) == 1 && (named || len(program) > 0):
		return frame.Usage("give one FILE, or --example, or a program after --")
	case len(files) == 1:
		f.Example, err = dev.ReadExample(files[0])
	case len(program) > 0 && !named || f.Cluster != "":
		f.Task = "app"
		return nil
	default:
		f.Example, err = dev.FindExample(name)
	}
	f.Task = "app"
	if err == nil && len(program) == 0 {
		f.Task = f.Example.MainTask()
	}
	if err == nil && len(program) > 0 && f.Example.Grouped() {
		err = frame.Usage("--example %s runs programs of its own", name)
	}
	return err
}

// checkFlags reports the first flag that is wrong.
func checkFlags(f dev.Flags) error {
	switch {
	case f.KeyMode != string(policyfile.Shared) && f.KeyMode != string(policyfile.PerUnit):
		return frame.Usage("--key-mode: got %q, want shared or unit", f.KeyMode)
	case f.Upgrades < 0 || f.Upgrades > 0 && (!f.Checking || f.Cluster != ""):
		return frame.Usage("--upgrades needs --check, and a fresh cluster")
	case f.Upgrades > 0 && f.Example.Grouped():
		return frame.Usage("--upgrades does not go with a group, as %s is", f.Example.Name)
	case f.Rows < 0 || f.Rows > 0 && f.Example.Data == nil:
		return frame.Usage("--rows needs an example that makes data, and 1 or more")
	case f.Cluster != "" && !f.Checking:
		return frame.Usage("--cluster needs --check")
	}
	return nil
}

// checkFresh checks a new cluster in a folder of its own.
func checkFresh(ctx context.Context, a *frame.App, f dev.Flags, program []string) (err error) {
	if f.Dir, err = os.MkdirTemp("", "cohort-check-"); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(f.Dir)) }()
	f.BasePort = 0
	return dev.WithCluster(ctx, a, f, program, func(d *dev.Cluster) error {
		return checkStarted(ctx, d, f.Upgrades)
	})
}
