package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"
	"syscall"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/attest/soft"
	"github.com/spf13/cobra"
)

// teeFlags say in which TEE a command is to run that was started outside one.
type teeFlags struct {
	platform, socket string
	tpm              tpmFlags
}

func (t *teeFlags) register(cmd *cobra.Command) {
	cmd.Flags().StringVar(&t.platform, "platform", "", "TEE to run in: soft, tpm, snp, azure-snp, tdx, sgx, nitro (default: the one that started this process)")
	cmd.Flags().StringVar(&t.socket, "tee-socket", "", "socket of the soft daemon, with --platform soft")
	t.tpm.register(cmd)
}

// launch is one program to start in the development TEE.
type launch struct {
	agent    string // path, empty for none
	program  []string
	settings map[string]string

	stdin, stdout, stderr *os.File
}

// start asks the soft daemon for the program.
func (l launch) start(ctx context.Context, socket string) (*soft.Process, error) {
	dir, err := os.Getwd()
	if err != nil {
		return nil, err
	}
	r := soft.LaunchRequest{Args: l.program[1:], Settings: l.settings, Dir: dir, Stdin: l.stdin, Stdout: l.stdout, Stderr: l.stderr}
	if r.Program, err = os.Open(l.program[0]); err != nil {
		return nil, err
	}
	defer r.Program.Close()
	if l.agent != "" {
		if r.Agent, err = os.Open(l.agent); err != nil {
			return nil, err
		}
		defer r.Agent.Close()
	}
	p, err := soft.Launch(ctx, socket, r)
	if err != nil {
		return nil, fmt.Errorf("launching %s: %w", l.program[0], err)
	}
	return p, nil
}

// commandSettings hands a command line to a measured cohort.
func commandSettings(args []string) (map[string]string, error) {
	b, err := json.Marshal(args)
	if err != nil {
		return nil, fmt.Errorf("encoding the command line: %w", err)
	}
	return map[string]string{commandSetting: string(b)}, nil
}

// within runs a command in its TEE: here, when a TEE started this process or
// --platform names the one that this machine is, else launched in one. With a
// program, this cohort is its agent.
func (a *app) within(ctx context.Context, t teeFlags, run func(context.Context) error, program ...string) error {
	switch named := attest.Platform(t.platform); {
	case a.tee.inside() && named != "" && named != a.tee.platform:
		return usage("--platform: got %q, and %q started this process", named, a.tee.platform)
	case a.tee.inside():
		return run(ctx)
	case named == attest.TPM:
		d, err := a.launchTPM(t.tpm, program)
		if err != nil {
			return err
		}
		a.tee = tee{d, named}
		return run(ctx)
	case openers[named].open != nil:
		d, err := openers[named].open(t.tpm.machine)
		if err != nil {
			return err
		}
		a.tee = tee{machine{d, program}, named}
		return run(ctx)
	}
	return a.enter(ctx, t, program...)
}

// enter runs this very command line inside a TEE, through the soft daemon, with
// this process's streams, and waits for its end. With a program, this cohort is
// its agent.
func (a *app) enter(ctx context.Context, tee teeFlags, program ...string) error {
	if err := tee.check(); err != nil {
		return err
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	settings, err := commandSettings(a.args)
	if err != nil {
		return err
	}
	for name, value := range a.settings() {
		settings[name] = value
	}
	l := launch{program: []string{self}, settings: settings}
	if len(program) > 0 {
		l.agent, l.program = self, program
	}
	return a.runInside(ctx, tee.socket, l)
}

func (t teeFlags) check() error {
	switch {
	case t.platform == "":
		return &fault{codeNoTEE, errors.New("this process was not started inside a TEE"), ""}
	case attest.Platform(t.platform).IsDevice():
		return usage("--platform: %s is a device beside a TEE, not one to run in", t.platform)
	case t.platform != string(attest.Soft):
		return usage("--platform: got %q, want one of %s", t.platform, strings.Join(platformNames(), ", "))
	case t.socket == "":
		return usage("--platform soft needs --tee-socket")
	}
	return nil
}

// settings are the COHORT_ variables of this process: what its host chose.
func (a *app) settings() map[string]string {
	found := map[string]string{}
	for _, pair := range a.environ() {
		name, value, _ := strings.Cut(pair, "=")
		if strings.HasPrefix(name, "COHORT_") && name != commandSetting {
			found[name] = value
		}
	}
	return found
}

// runInside starts a program in the TEE, passes this process's streams and its
// end on, and gives the program's exit as its own.
func (a *app) runInside(ctx context.Context, socket string, l launch) error {
	l.stdin, _ = a.in.(*os.File)
	l.stdout, _ = a.out.(*os.File)
	l.stderr, _ = a.talk.(*os.File)
	p, err := l.start(ctx, socket)
	if err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { _ = p.Signal(syscall.SIGTERM) })
	defer stop()
	exit, err := p.Wait()
	if err != nil {
		return fmt.Errorf("waiting for the program: %w", err)
	}
	if exit.Signal != 0 {
		return fmt.Errorf("the program in the TEE was ended by %v", exit)
	}
	if exit.Code != 0 {
		return exitStatus(exit.Code)
	}
	return nil
}

// exitStatus is the exit code of a program that has told its error itself.
type exitStatus int

func (e exitStatus) Error() string { return fmt.Sprintf("exit status %d", int(e)) }
