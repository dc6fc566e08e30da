package frame

import (
	"errors"
	"fmt"
	"slices"
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
func (a *App) fillFlags(cmd *cobra.Command) error {
	if err := a.fillFromEnv(cmd); err != nil {
		return err
	}
	if a.Config == "" {
		return nil
	}
	file, err := ReadConfig(a.Config, cmd.Root())
	if err != nil {
		return err
	}
	return setOpenFlags(cmd, func(f *pflag.Flag) ([]string, string, bool) {
		value, ok := file[configKey(cmd, f)]
		return value, a.Config + ": " + f.Name, ok
	})
}

// fillFromEnv sets open flags from their variables. An empty variable of a list has no value: it
// must not count as one authority, for example, without an address.
func (a *App) fillFromEnv(cmd *cobra.Command) error {
	return setOpenFlags(cmd, func(f *pflag.Flag) ([]string, string, bool) {
		text, ok := a.Env(variable(f.Name))
		values := []string{text}
		if _, many := f.Value.(pflag.SliceValue); many {
			values = slices.DeleteFunc(strings.Split(text, ","), func(v string) bool { return v == "" })
		}
		return values, variable(f.Name), ok
	})
}

// setOpenFlags sets the open flags of a command that from knows.
func setOpenFlags(cmd *cobra.Command, from func(*pflag.Flag) (values []string, where string, ok bool)) error {
	var faults []error
	cmd.Flags().VisitAll(func(f *pflag.Flag) {
		values, where, ok := from(f)
		if f.Changed || !ok || f.Name == "help" {
			return
		}
		for _, v := range values {
			if err := cmd.Flags().Set(f.Name, v); err != nil {
				faults = append(faults, Usage("%s: %w", where, err))
			}
		}
	})
	return errors.Join(faults...)
}

// configKey is the place of a command's flag in the file: global flags at
// the top, others in the table of their command, as in "policy.sign.ssh-key".
func configKey(cmd *cobra.Command, f *pflag.Flag) string {
	if cmd.Root().PersistentFlags().Lookup(f.Name) == f {
		return f.Name
	}
	path := strings.Split(cmd.CommandPath(), " ")[1:]
	return strings.Join(append(path, f.Name), ".")
}

// ReadConfig reads a configuration file strictly: every key is a flag of the
// tree. It returns the values by key.
func ReadConfig(path string, root *cobra.Command) (map[string][]string, error) {
	b, err := ReadFile(path, maxConfig)
	if err != nil {
		return nil, err
	}
	var tables map[string]any
	if err := toml.Unmarshal(b, &tables); err != nil {
		return nil, Usage("%s: %w", path, err)
	}
	values := map[string][]string{}
	flatten("", tables, values)
	known := ConfigKeys(root)
	for key := range values {
		if _, ok := known[key]; !ok {
			return nil, &Fault{CodeUsage, fmt.Errorf("%s: unknown key %q", path, key), "see all keys with `cohort config example`"}
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

// ConfigKeys lists every key of the tree with its flag.
func ConfigKeys(cmd *cobra.Command) map[string]*pflag.Flag {
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
		for key, f := range ConfigKeys(sub) {
			keys[key] = f
		}
	}
	return keys
}
