// Package cli is the command line of cohort: it puts the commands of each family together
// and runs one. The families are packages below, over [frame]. They are the edge of the
// project: only they read the environment and the clock, write logs, and pick platforms. They
// decide nothing about trust themselves; they hand what people pinned on the command line to
// the packages that do.
//
// Files, each using those before it: explain.go, version.go, cli_linux.go, cli_other.go, cli.go,
// config.go.
package cli

import (
	"context"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/cohort-tee/cohort/internal/cli/clientcmd"
	"github.com/cohort-tee/cohort/internal/cli/evidencecmd"
	"github.com/cohort-tee/cohort/internal/cli/frame"
	"github.com/cohort-tee/cohort/internal/cli/groupcmd"
	"github.com/cohort-tee/cohort/internal/cli/opscmd"
	"github.com/cohort-tee/cohort/internal/cli/policycmd"
	"github.com/spf13/cobra"
)

// Main runs this process's command line and returns its exit code.
func Main() int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	a := &frame.App{
		Args: os.Args[1:], Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr,
		Env: os.LookupEnv, Environ: os.Environ, Now: time.Now,
	}
	return execute(ctx, a)
}

// execute runs one command line and prints its error, if any.
func execute(ctx context.Context, a *frame.App) int {
	if err := a.EnterTEE(); err != nil {
		return a.ReportError("cohort", err)
	}
	root := commands(a)
	root.SetArgs(a.Args)
	cmd, err := root.ExecuteContextC(ctx)
	if err != nil {
		return a.ReportError(cmd.CommandPath(), err)
	}
	return frame.ExitDone
}

// commands builds the tree of commands.
func commands(a *frame.App) *cobra.Command {
	root := &cobra.Command{
		Use:               "cohort",
		Short:             "One attested identity for every replica of the same code",
		SilenceErrors:     true,
		SilenceUsage:      true,
		PersistentPreRunE: func(cmd *cobra.Command, _ []string) error { return a.Settle(cmd) },
	}
	root.SetIn(a.Stdin)
	root.SetOut(a.Stdout)
	root.SetErr(a.Stderr)
	flags := root.PersistentFlags()
	flags.StringVarP(&a.Output, "output", "o", "text", "form of results: text or json")
	flags.StringVar(&a.Config, "config", "", "configuration file (TOML)")
	flags.StringVar(&a.LogLevel, "log-level", "info", "debug, info, warn or error")
	flags.StringVar(&a.LogFormat, "log-format", "text", "text or json")
	root.AddCommand(
		clientcmd.Trust(a), clientcmd.Verify(a), clientcmd.Request(a), clientcmd.Proxy(a),
		policycmd.Command(a), groupcmd.Command(a), evidencecmd.Measure(a), evidencecmd.Evidence(a),
		opscmd.Status(a), opscmd.LogCommand(a), explainCommand(a), versionCommand(a), configCommand(a, root),
	)
	root.AddCommand(linuxCommands(a)...)
	root.InitDefaultCompletionCmd()
	frame.Harden(root)
	return root
}
