package cli

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/cohort-tee/cohort/internal/cli/frame"
	"github.com/spf13/cobra"
)

func explainCommand(a *frame.App) *cobra.Command {
	return &cobra.Command{
		Use:   "explain [CODE]",
		Short: "Explain an error code, a reason or an exit code",
		Args:  cobra.MaximumNArgs(1),
		ValidArgsFunction: func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
			return slices.Sorted(maps.Keys(frame.Explanations)), cobra.ShellCompDirectiveNoFileComp
		},
		RunE: func(_ *cobra.Command, args []string) error {
			if len(args) == 0 {
				return explainAll(a)
			}
			return explainOne(a, args[0])
		},
	}
}

type explained struct {
	Code    string `json:"code"`
	Exit    int    `json:"exit"`
	Meaning string `json:"meaning"`
	Hint    string `json:"hint,omitempty"`
}

func explainOne(a *frame.App, code string) error {
	if n, err := strconv.Atoi(code); err == nil {
		words, ok := frame.ExitWords[n]
		if !ok {
			return frame.Usage("exit code %d: want 0 to %d", n, frame.ExitHTTP)
		}
		return a.PrintResult("explain", explained{Code: code, Exit: n, Meaning: words}, fmt.Sprintf("exit code %d: %s\n", n, words))
	}
	e, ok := frame.Explanations[code]
	if !ok {
		return &frame.Fault{Code: frame.CodeUsage, Cause: fmt.Errorf("unknown code %q", code), Hint: "list all codes with `cohort explain`"}
	}
	text := fmt.Sprintf("%s\n  %s\n  hint: %s\n  exit code %d: %s\n", code, e.Meaning, e.Hint, e.Exit, frame.ExitWords[e.Exit])
	return a.PrintResult("explain", explained{code, e.Exit, e.Meaning, e.Hint}, text)
}

func explainAll(a *frame.App) error {
	var text strings.Builder
	var all struct {
		Codes []explained `json:"codes"`
	}
	for _, code := range slices.Sorted(maps.Keys(frame.Explanations)) {
		e := frame.Explanations[code]
		all.Codes = append(all.Codes, explained{code, e.Exit, e.Meaning, e.Hint})
		fmt.Fprintf(&text, "%-20s %d  %s\n", code, e.Exit, e.Meaning)
	}
	return a.PrintResult("explain", all, text.String())
}
