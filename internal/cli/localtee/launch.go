//go:build linux

package localtee

import (
	"context"
	"encoding/json"
	"fmt"
	"os"

	"github.com/cohort-tee/cohort/attest/soft"
)

// Launch is one program to start in the development TEE.
type Launch struct {
	Agent    string // path, empty for none
	Program  []string
	Settings map[string]string

	Stdin, Stdout, Stderr *os.File
}

// Start asks the soft daemon for the program.
func (l Launch) Start(ctx context.Context, socket string) (*soft.Process, error) {
	dir, err := os.Getwd()
	if err != nil {
		return nil, err
	}
	r := soft.LaunchRequest{Args: l.Program[1:], Settings: l.Settings, Dir: dir, Stdin: l.Stdin, Stdout: l.Stdout, Stderr: l.Stderr}
	if r.Program, err = os.Open(l.Program[0]); err != nil {
		return nil, err
	}
	defer r.Program.Close()
	if l.Agent != "" {
		if r.Agent, err = os.Open(l.Agent); err != nil {
			return nil, err
		}
		defer r.Agent.Close()
	}
	p, err := soft.Launch(ctx, socket, r)
	if err != nil {
		return nil, fmt.Errorf("launching %s: %w", l.Program[0], err)
	}
	return p, nil
}

// CommandSettings hands a command line to a measured cohort.
func CommandSettings(args []string) (map[string]string, error) {
	b, err := json.Marshal(args)
	if err != nil {
		return nil, fmt.Errorf("encoding the command line: %w", err)
	}
	return map[string]string{CommandSetting: string(b)}, nil
}
