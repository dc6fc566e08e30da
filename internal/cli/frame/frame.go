// Package frame is the frame of all commands of cohort: one run of the command with its
// streams and global flags ([App]), how results and errors are printed, the stable codes of
// errors, where flags get their values, and in which TEE a command runs.
//
// Results go to stdout, as text or with -o json as one object whose "schema"
// is "cohort/WHAT/v1"; everything else goes to stderr. Errors are three lines,
// `error:`, `cause:` and `hint:`, with a stable code that `cohort explain`
// knows. No flag, file or variable turns a check off.
//
// Files, each using those before it: errors.go, config.go, collateral.go, explain.go,
// files.go, frame.go, output.go, tee.go.
package frame

import (
	"encoding/json"
	"io"
	"log/slog"
	"time"

	"github.com/cohort-tee/cohort/internal/cli/localtee"
	"github.com/spf13/cobra"
)

// App is one run of the command: the process it is, as functions and streams,
// and the global flags.
type App struct {
	Args   []string // without the program's name
	Stdin  io.Reader
	Stdout io.Writer // results
	Stderr io.Writer // everything else
	Env    func(string) (string, bool)
	Now    func() time.Time
	// Environ lists all variables, as os.Environ.
	Environ func() []string

	Output    string // "text" or "json"
	Config    string
	LogLevel  string
	LogFormat string
	Log       *slog.Logger
	TEE       localtee.TEE
}

// EnterTEE finds out whether a TEE started this process and, when it did so
// without arguments, takes the command line from the settings.
func (a *App) EnterTEE() error {
	a.TEE = localtee.Inherited()
	text, set := a.Env(localtee.CommandSetting)
	if !a.TEE.Inside() || len(a.Args) > 0 || !set {
		return nil
	}
	if err := json.Unmarshal([]byte(text), &a.Args); err != nil {
		return Usage("setting %s: want a JSON array of strings: %w", localtee.CommandSetting, err)
	}
	return nil
}

// Harden makes every misuse of a command a usage fault: unknown subcommands,
// bad flags and wrong numbers of arguments.
func Harden(cmd *cobra.Command) {
	cmd.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return Usage("%w", err) })
	if check := cmd.Args; check != nil {
		cmd.Args = func(cmd *cobra.Command, args []string) error {
			if err := check(cmd, args); err != nil {
				return Usage("%w", err)
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
			return Usage("unknown command %q for %q", args[0], cmd.CommandPath())
		}
	}
	for _, sub := range cmd.Commands() {
		Harden(sub)
	}
}

// Settle fills in what flags left open, from the environment and the
// configuration file, and opens the log.
func (a *App) Settle(cmd *cobra.Command) error {
	if err := a.fillFlags(cmd); err != nil {
		return err
	}
	if err := cmd.ValidateRequiredFlags(); err != nil {
		return Usage("%w", err)
	}
	if a.Output != "text" && a.Output != "json" {
		return Usage("--output: got %q, want text or json", a.Output)
	}
	var level slog.Level
	if err := level.UnmarshalText([]byte(a.LogLevel)); err != nil {
		return Usage("--log-level: got %q, want debug, info, warn or error", a.LogLevel)
	}
	options := &slog.HandlerOptions{Level: level}
	switch a.LogFormat {
	case "text":
		a.Log = slog.New(slog.NewTextHandler(a.Stderr, options))
	case "json":
		a.Log = slog.New(slog.NewJSONHandler(a.Stderr, options))
	default:
		return Usage("--log-format: got %q, want text or json", a.LogFormat)
	}
	if a.TEE.Development() {
		a.Log = a.Log.With("development", true)
	}
	return nil
}
