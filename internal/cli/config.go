package cli

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/pelletier/go-toml/v2"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// maxConfig bounds the configuration file, in bytes.
const maxConfig = 1 << 20

// variable is the environment variable of a flag.
func variable(flag string) string {
	return "COHORT_" + strings.ToUpper(strings.ReplaceAll(flag, "-", "_"))
}

// fillFlags sets each flag that the command line left open, from its variable
// or else from the configuration file.
func (a *app) fillFlags(cmd *cobra.Command) error {
	if err := a.fillFromEnv(cmd); err != nil {
		return err
	}
	if a.config == "" {
		return nil
	}
	file, err := readConfig(a.config, cmd.Root())
	if err != nil {
		return err
	}
	return fill(cmd, func(f *pflag.Flag) ([]string, string, bool) {
		value, ok := file[configKey(cmd, f)]
		return value, a.config + ": " + f.Name, ok
	})
}

func (a *app) fillFromEnv(cmd *cobra.Command) error {
	return fill(cmd, func(f *pflag.Flag) ([]string, string, bool) {
		text, ok := a.env(variable(f.Name))
		values := []string{text}
		if _, many := f.Value.(pflag.SliceValue); many {
			values = strings.Split(text, ",")
		}
		return values, variable(f.Name), ok
	})
}

// fill sets the open flags of a command that from knows.
func fill(cmd *cobra.Command, from func(*pflag.Flag) (values []string, where string, ok bool)) error {
	var faults []error
	cmd.Flags().VisitAll(func(f *pflag.Flag) {
		values, where, ok := from(f)
		if f.Changed || !ok || f.Name == "help" {
			return
		}
		for _, v := range values {
			if err := cmd.Flags().Set(f.Name, v); err != nil {
				faults = append(faults, usage("%s: %w", where, err))
			}
		}
	})
	return errors.Join(faults...)
}

// configKey is where a flag of a command stands in the file: global flags at
// the top, others in the table of their command, as in "policy.sign.ssh-key".
func configKey(cmd *cobra.Command, f *pflag.Flag) string {
	if cmd.Root().PersistentFlags().Lookup(f.Name) == f {
		return f.Name
	}
	path := strings.Split(cmd.CommandPath(), " ")[1:]
	return strings.Join(append(path, f.Name), ".")
}

// readConfig reads a configuration file strictly: every key is a flag of the
// tree. It gives the values by key.
func readConfig(path string, root *cobra.Command) (map[string][]string, error) {
	b, err := readFile(path, maxConfig)
	if err != nil {
		return nil, err
	}
	var tables map[string]any
	if err := toml.Unmarshal(b, &tables); err != nil {
		return nil, usage("%s: %w", path, err)
	}
	values := map[string][]string{}
	flatten("", tables, values)
	known := configKeys(root)
	for key := range values {
		if _, ok := known[key]; !ok {
			return nil, &fault{codeUsage, fmt.Errorf("%s: unknown key %q", path, key), "see all keys with `cohort config example`"}
		}
	}
	return values, nil
}

// flatten writes the leaves of nested tables under dotted keys.
func flatten(prefix string, table map[string]any, into map[string][]string) {
	for key, value := range table {
		switch v := value.(type) {
		case map[string]any:
			flatten(prefix+key+".", v, into)
		case []any:
			for _, item := range v {
				into[prefix+key] = append(into[prefix+key], fmt.Sprint(item))
			}
		default:
			into[prefix+key] = []string{fmt.Sprint(v)}
		}
	}
}

// configKeys lists every key of the tree with its flag.
func configKeys(cmd *cobra.Command) map[string]*pflag.Flag {
	keys := map[string]*pflag.Flag{}
	visit := func(f *pflag.Flag) {
		if f.Name != "help" && f.Name != "config" && !f.Hidden {
			keys[configKey(cmd, f)] = f
		}
	}
	cmd.LocalFlags().VisitAll(visit)
	cmd.InheritedFlags().VisitAll(visit)
	for _, sub := range cmd.Commands() {
		if sub.Name() == "completion" || sub.Name() == "help" || sub.Hidden {
			continue
		}
		for key, f := range configKeys(sub) {
			keys[key] = f
		}
	}
	return keys
}

func (a *app) configCommand(root *cobra.Command) *cobra.Command {
	cmd := &cobra.Command{Use: "config", Short: "Show or check the configuration file"}
	cmd.AddCommand(&cobra.Command{
		Use:   "example",
		Short: "Print a configuration file with every key, commented out",
		Args:  cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			text := "# Flags win over COHORT_* variables, and those over this file.\n" + configExample(root)
			return a.emit("config", map[string]string{"toml": text}, text)
		},
	}, &cobra.Command{
		Use:   "check FILE",
		Short: "Check a configuration file",
		Args:  cobra.ExactArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			values, err := readConfig(args[0], root)
			if err != nil {
				return err
			}
			if err := checkValues(values, (&app{}).commands()); err != nil {
				return fmt.Errorf("%s: %w", args[0], err)
			}
			return a.emit("config", map[string]any{"file": args[0], "values": values}, fmt.Sprintf("ok: %d values\n", len(values)))
		},
	})
	return cmd
}

// checkValues tries each value on its flag, in a tree of its own.
func checkValues(values map[string][]string, root *cobra.Command) error {
	known := configKeys(root)
	for key, list := range values {
		for _, v := range list {
			if err := known[key].Value.Set(v); err != nil {
				return usage("%s: %w", key, err)
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

// readFile reads a file of at most limit bytes.
func readFile(path string, limit int64) ([]byte, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if info.Size() > limit {
		return nil, usage("%s: got %d bytes, want at most %d", path, info.Size(), limit)
	}
	return os.ReadFile(path)
}
