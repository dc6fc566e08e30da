package cli

import (
	"fmt"
	"strings"

	"github.com/cohort-tee/cohort/internal/cli/frame"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

func configCommand(a *frame.App, root *cobra.Command) *cobra.Command {
	cmd := &cobra.Command{Use: "config", Short: "Show or check the configuration file"}
	cmd.AddCommand(&cobra.Command{
		Use:   "example",
		Short: "Print a configuration file with every key, commented out",
		Args:  cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			text := "# Flags win over COHORT_* variables, and those over this file.\n" + configExample(root)
			return a.PrintResult("config", map[string]string{"toml": text}, text)
		},
	}, &cobra.Command{
		Use:   "check FILE",
		Short: "Check a configuration file",
		Args:  cobra.ExactArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			values, err := frame.ReadConfig(args[0], root)
			if err != nil {
				return err
			}
			if err := checkValues(values, commands((&frame.App{}))); err != nil {
				return fmt.Errorf("%s: %w", args[0], err)
			}
			return a.PrintResult("config", map[string]any{"file": args[0], "values": values}, fmt.Sprintf("ok: %d values\n", len(values)))
		},
	})
	return cmd
}

// checkValues tries each value on its flag, in a tree of its own.
func checkValues(values map[string][]string, root *cobra.Command) error {
	known := frame.ConfigKeys(root)
	for key, list := range values {
		for _, v := range list {
			if err := known[key].Value.Set(v); err != nil {
				return frame.Usage("%s: %w", key, err)
			}
		}
	}
	return nil
}

// configExample writes the keys of a command and of those below it.
func configExample(cmd *cobra.Command) string {
	var b strings.Builder
	path := strings.Split(cmd.CommandPath(), " ")[1:]
	var lines []string
	flags := cmd.NonInheritedFlags()
	flags.VisitAll(func(f *pflag.Flag) {
		if f.Name != "help" && f.Name != "config" && !f.Hidden {
			lines = append(lines, fmt.Sprintf("# %s = %s  # %s", f.Name, exampleValue(f), f.Usage))
		}
	})
	if len(lines) > 0 {
		if len(path) > 0 {
			fmt.Fprintf(&b, "\n[%s]\n", strings.Join(path, "."))
		}
		b.WriteString(strings.Join(lines, "\n") + "\n")
	}
	for _, sub := range cmd.Commands() {
		if sub.Name() != "completion" && sub.Name() != "help" && !sub.Hidden {
			b.WriteString(configExample(sub))
		}
	}
	return b.String()
}

func exampleValue(f *pflag.Flag) string {
	switch {
	case f.Value.Type() == "bool" || f.Value.Type() == "int":
		return f.DefValue
	case strings.HasSuffix(f.Value.Type(), "Array"):
		return "[]"
	}
	return fmt.Sprintf("%q", f.DefValue)
}
