// Package cli is the command line of cohort: one file per subcommand. It is
// the edge of the project: the only place that reads the environment and the
// clock, writes logs, and picks platforms ([platforms]). It decides nothing
// about trust itself; it hands what people pinned on the command line to the
// packages that do.
//
// Results go to stdout, as text or with -o json as one object whose "schema"
// is "cohort/WHAT/v1"; everything else goes to stderr. Errors are three lines,
// `error:`, `cause:` and `hint:`, with a stable code that `cohort explain`
// knows. No flag, file or variable turns a check off.
package cli

import (
	"context"
	"encoding/json"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/spf13/cobra"
)

// commandSetting is the command line, a JSON array of strings, of a cohort
// that was started inside a TEE, where it has no measured arguments.
const commandSetting = "COHORT_COMMAND"

// app is one run of the command: the process it is, as functions and streams,
// and the global flags.
type app struct {
	args []string // without the program's name
	in   io.Reader
	out  io.Writer // results
	talk io.Writer // everything else
	env  func(string) (string, bool)
	now  func() time.Time
	// environ lists all variables, as os.Environ.
	environ func() []string

	output    string // "text" or "json"
	config    string
	logLevel  string
	logFormat string
	log       *slog.Logger
	tee       tee
}

// Main runs this process's command line and gives its exit code.
func Main() int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	a := &app{
		args: os.Args[1:], in: os.Stdin, out: os.Stdout, talk: os.Stderr,
		env: os.LookupEnv, environ: os.Environ, now: time.Now,
	}
	return a.execute(ctx)
}

// execute runs one command line and tells its error, if any.
func (a *app) execute(ctx context.Context) int {
	if err := a.enterTEE(); err != nil {
		return a.tell("cohort", err)
	}
	root := a.commands()
	root.SetArgs(a.args)
	cmd, err := root.ExecuteContextC(ctx)
	if err != nil {
		return a.tell(cmd.CommandPath(), err)
	}
	return exitDone
}

// enterTEE finds out whether a TEE started this process and, when it did so
// without arguments, takes the command line from the settings.
func (a *app) enterTEE() error {
	a.tee = inheritedTEE()
	text, set := a.env(commandSetting)
	if !a.tee.inside() || len(a.args) > 0 || !set {
		return nil
	}
	if err := json.Unmarshal([]byte(text), &a.args); err != nil {
		return usage("setting %s: want a JSON array of strings: %w", commandSetting, err)
	}
	return nil
}

// commands builds the tree of commands.
func (a *app) commands() *cobra.Command {
	root := &cobra.Command{
		Use:               "cohort",
		Short:             "One attested identity for every replica of the same code",
		SilenceErrors:     true,
		SilenceUsage:      true,
		PersistentPreRunE: func(cmd *cobra.Command, _ []string) error { return a.settle(cmd) },
	}
	root.SetIn(a.in)
	root.SetOut(a.out)
	root.SetErr(a.talk)
	flags := root.PersistentFlags()
	flags.StringVarP(&a.output, "output", "o", "text", "form of results: text or json")
	flags.StringVar(&a.config, "config", "", "configuration file (TOML)")
	flags.StringVar(&a.logLevel, "log-level", "info", "debug, info, warn or error")
	flags.StringVar(&a.logFormat, "log-format", "text", "text or json")
	root.AddCommand(
		a.devCommand(), a.authorityCommand(), a.managerCommand(), a.softCommand(), a.unitCommand(),
		a.trustCommand(), a.verifyCommand(), a.requestCommand(),
		a.policyCommand(), a.groupCommand(), a.measureCommand(), a.evidenceCommand(), a.statusCommand(), a.doctorCommand(),
		a.explainCommand(), a.logCommand(), a.versionCommand(), a.configCommand(root),
		a.rogueCommand(),
	)
	root.InitDefaultCompletionCmd()
	harden(root)
	return root
}

// harden makes every misuse of a command a usage fault: unknown subcommands,
// bad flags and wrong numbers of arguments.
func harden(cmd *cobra.Command) {
	cmd.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return usage("%w", err) })
	if check := cmd.Args; check != nil {
		cmd.Args = func(cmd *cobra.Command, args []string) error {
			if err := check(cmd, args); err != nil {
				return usage("%w", err)
			}
			return nil
		}
	}
	if cmd.HasSubCommands() && cmd.RunE == nil {
		cmd.Args = cobra.ArbitraryArgs
		cmd.RunE = func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return cmd.Help()
			}
			return usage("unknown command %q for %q", args[0], cmd.CommandPath())
		}
	}
	for _, sub := range cmd.Commands() {
		harden(sub)
	}
}

// settle fills in what flags left open, from the environment and the
// configuration file, and opens the log.
func (a *app) settle(cmd *cobra.Command) error {
	if err := a.fillFlags(cmd); err != nil {
		return err
	}
	if err := cmd.ValidateRequiredFlags(); err != nil {
		return usage("%w", err)
	}
	if a.output != "text" && a.output != "json" {
		return usage("--output: got %q, want text or json", a.output)
	}
	var level slog.Level
	if err := level.UnmarshalText([]byte(a.logLevel)); err != nil {
		return usage("--log-level: got %q, want debug, info, warn or error", a.logLevel)
	}
	options := &slog.HandlerOptions{Level: level}
	switch a.logFormat {
	case "text":
		a.log = slog.New(slog.NewTextHandler(a.talk, options))
	case "json":
		a.log = slog.New(slog.NewJSONHandler(a.talk, options))
	default:
		return usage("--log-format: got %q, want text or json", a.logFormat)
	}
	if a.tee.development() {
		a.log = a.log.With("development", true)
	}
	return nil
}
