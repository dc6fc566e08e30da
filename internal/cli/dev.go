package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/cohort-tee/cohort/policy"
	"github.com/spf13/cobra"
)

const developmentNotice = "DEVELOPMENT: the soft TEE protects nothing from this machine."

// devExamples are the folders below examples that `cohort dev` runs.
var devExamples = []string{"scoring", devChat, devJoint}

// devChat is the example that streams.
const devChat = "chat"

// devFlags are the flags of `cohort dev`.
type devFlags struct {
	dir      string
	basePort int
	checking bool
	cluster  string
	example  string
	keyMode  string
	upgrades int
	rows     int    // of each table of jointrisk; 0 is the default
	task     string // the example, its main task, or "app" for the user's own program
}

func (a *app) devCommand() *cobra.Command {
	var f devFlags
	cmd := &cobra.Command{
		Use:   "dev [-- PROGRAM ARGS]",
		Short: "Run a whole cluster on this machine, for development",
		Long: "Run an authority, a manager with its gateway, and three units of an example or\n" +
			"of your own program, in the development TEE. No root, no network, and no\n" +
			"protection from this machine.\n" +
			"With --check, judge a fresh cluster from outside and end. The example jointrisk is\n" +
			"a group: one unit of each of three companies' programs.",
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := checkDevFlags(f); err != nil {
				return err
			}
			switch f.task = f.example; {
			case f.example == devJoint && len(args) > 0:
				return usage("--example %s runs programs of its own", devJoint)
			case f.example == devJoint:
				f.task = jointMembers[joiner].role
			case len(args) > 0:
				f.task = "app"
			}
			switch {
			case f.cluster != "":
				return a.checkCluster(cmd.Context(), f.cluster)
			case f.checking:
				return a.checkFresh(cmd.Context(), f, args)
			}
			return a.runDev(cmd.Context(), f, args)
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&f.dir, "dir", "", "where dev.json and the cluster's state are (default in the state directory)")
	flags.IntVar(&f.basePort, "base-port", 7440, "first of 9 ports; 0 takes any free ones")
	flags.BoolVar(&f.checking, "check", false, "judge a fresh cluster from outside, one line for each story")
	flags.StringVar(&f.cluster, "cluster", "", "with --check: judge the running cluster that this dev.json describes")
	flags.StringVar(&f.example, "example", devExamples[0], "example to run: "+strings.Join(devExamples, ", "))
	flags.IntVar(&f.upgrades, "upgrades", 0, "with --check: then replace the program by so many releases, one after the other, while one session goes on")
	flags.IntVar(&f.rows, "rows", 0, "with --example jointrisk: rows of each table (default 1000000, with --check 20000)")
	flags.StringVar(&f.keyMode, "key-mode", string(policy.Shared), "shared: one certificate for all units; unit: one each")
	return cmd
}

// checkDevFlags reports the first flag that is wrong.
func checkDevFlags(f devFlags) error {
	switch {
	case f.keyMode != string(policy.Shared) && f.keyMode != string(policy.PerUnit):
		return usage("--key-mode: got %q, want shared or unit", f.keyMode)
	case !slices.Contains(devExamples, f.example):
		return usage("--example: got %q, want one of %s", f.example, strings.Join(devExamples, ", "))
	case f.upgrades < 0 || f.upgrades > 0 && (!f.checking || f.cluster != ""):
		return usage("--upgrades needs --check, and a fresh cluster")
	case f.upgrades > 0 && f.example == devJoint:
		return usage("--upgrades does not go with --example %s", devJoint)
	case f.rows < 0 || f.rows > 0 && f.example != devJoint:
		return usage("--rows needs --example %s, and 1 or more", devJoint)
	case f.cluster != "" && !f.checking:
		return usage("--cluster needs --check")
	}
	return nil
}

// runDev runs a cluster until ctx is done.
func (a *app) runDev(ctx context.Context, f devFlags, program []string) error {
	if f.dir == "" {
		var err error
		if f.dir, err = a.stateDir("dev"); err != nil {
			return err
		}
	}
	return a.withCluster(ctx, f, program, func(d *dev) error {
		if err := a.emit("dev", d.described(), d.banner()); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			a.say("stopping the cluster")
			return nil
		case <-d.tee.exited:
			return &fault{codeProgram, errors.New("the development TEE ended, and the cluster with it"), "its log is " + filepath.Join(d.state, "soft.log")}
		}
	})
}

// checkFresh judges a new cluster in a folder of its own.
func (a *app) checkFresh(ctx context.Context, f devFlags, program []string) (err error) {
	if f.dir, err = os.MkdirTemp("", "cohort-check-"); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(f.dir)) }()
	f.basePort = 0
	return a.withCluster(ctx, f, program, func(d *dev) error {
		return checkNew(ctx, d, f.upgrades)
	})
}

// withCluster starts a cluster in f.dir, runs use, and stops it.
func (a *app) withCluster(ctx context.Context, f devFlags, program []string, use func(*dev) error) (err error) {
	dir, err := filepath.Abs(f.dir)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	a.say(developmentNotice)
	lock, err := lockDir(dir)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, lock.Close()) }()
	b, err := f.findBinaries(ctx, dir, program)
	if err != nil {
		return err
	}
	d, err := a.newDev(f, dir, b)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, d.stop()) }()
	if err := d.start(ctx); err != nil {
		return err
	}
	return use(d)
}

// banner says what runs and what to try.
func (d *dev) banner() string {
	c := d.described()
	var b strings.Builder
	line := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }
	line(developmentNotice + "\n")
	line("authority  %s\ngenesis    %s\ngateway    %s\ntask       %s, key mode %s", c.Authority, c.Genesis, c.Gateway, c.Task, c.KeyMode)
	if c.Group != "" {
		return b.String() + d.jointBanner(c)
	}
	for i, u := range c.Units {
		line("unit %d     https://%s  (pid %d, health %s)", i+1, u.Address, u.PID, u.Health)
	}
	first := c.Units[0]
	line("\ntry:\n  curl --cacert %s --connect-to ::%s https://%s/", c.Root, first.Address, c.ServerName)
	line("  kill -9 %d    # it comes back on the same address", first.PID)
	pins := fmt.Sprintf("--authority %s --genesis %s --task %s", c.Authority, c.Genesis, c.Task)
	line("  %s verify %s %s", d.bin.cohort, first.Address, pins)
	line("  %s request https://%s/ --session --receipt --gateway %s %s", d.bin.cohort, c.ServerName, c.Gateway, pins)
	line("\nCtrl-C stops everything. State: %s", d.dir)
	return b.String()
}
