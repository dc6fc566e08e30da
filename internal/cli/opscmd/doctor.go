//go:build linux

package opscmd

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/attest/nvidia"
	"github.com/cohort-tee/cohort/attest/platforms"
	"github.com/cohort-tee/cohort/attest/tpm"
	"github.com/cohort-tee/cohort/internal/api"
	"github.com/cohort-tee/cohort/internal/authority/store"
	"github.com/cohort-tee/cohort/internal/authorityclient"
	"github.com/cohort-tee/cohort/internal/cli/frame"
	"github.com/cohort-tee/cohort/internal/cli/localtee"
	"github.com/cohort-tee/cohort/internal/wire"
)

// finding is the outcome of one check of this machine.
type finding struct {
	Group  string `json:"group"`
	Check  string `json:"check"`
	State  string `json:"state"` // "ok", "warning", "failed" or "skipped"
	Detail string `json:"detail"`
	Hint   string `json:"hint,omitempty"`
}

// examination is one check: what is looked at, and what to do when it fails.
type examination struct {
	group, check, hint string
	look               func(context.Context) (string, error)
}

// errAbsent is the error of a check whose subject this machine need not have, errWarned of one
// that found something to do although everything works.
var (
	errAbsent = errors.New("absent")
	errWarned = errors.New("works without it")
)

// lookPlatforms asks each TEE that a machine can be. One that is absent is no
// fault, unless it is the wanted one.
func lookPlatforms(wanted string, beside *tpm.Machine) []examination {
	var all []examination
	for _, name := range localtee.Names() {
		p := localtee.Openers[attest.Platform(name)]
		if p.Open == nil {
			continue
		}
		platform, _ := platforms.Supported().Lookup(attest.Platform(name))
		all = append(all, examination{"tee", platform.Title, "see docs/how-to/" + name + ".md for what the machine needs", func(ctx context.Context) (string, error) {
			detail, err := lookOpener(ctx, p, *beside)
			if errors.Is(err, wire.NotThisDevice) && name != wanted {
				err = fmt.Errorf("%w: %w", errAbsent, err)
			}
			return detail, err
		}})
	}
	return all
}

// lookOpener asks a TEE for evidence, bound to nothing, and to keep something.
func lookOpener(ctx context.Context, p localtee.Opener, beside tpm.Machine) (string, error) {
	if beside.Path == "" {
		beside.Path = frame.TPMPath
	}
	d, err := p.Open(beside)
	if err != nil {
		return "", err
	}
	evidence, err := d.Attest(ctx, attest.ReportData{})
	if err != nil {
		return "", err
	}
	detail := fmt.Sprintf("gave evidence of %d bytes, with %d endorsements", len(evidence.Raw), len(evidence.Endorsed))
	if _, err := d.Seal(ctx, []byte("cohort doctor"), nil); err != nil {
		return detail + "; units only, no authority: " + frame.OneLine(err.Error()), nil
	}
	return detail + "; keeps an authority's root", nil
}

// Doctor is `cohort doctor`.
func Doctor(a *frame.App) *cobra.Command {
	var p authorityclient.Pins
	var g authorityclient.Gateway
	var socket, platform, database, gpus string
	var beside frame.TPMFlags
	cmd := &cobra.Command{
		Use:   "doctor",
		Short: "Check this machine and what it can reach",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if platform != "" && !slices.Contains(localtee.Names(), platform) {
				return frame.Usage("--platform: got %q, want one of %s", platform, strings.Join(localtee.Names(), ", "))
			}
			if platform == string(attest.TPM) && beside.Machine.Path == "" {
				beside.Machine.Path = frame.TPMPath
			}
			all := []examination{
				{"kernel", "memory files that can be sealed", "a Linux kernel of 3.17 or newer is needed", lookMemfd},
				{"tee", "soft daemon", "start `cohort soft`, and give its --tee-socket", func(ctx context.Context) (string, error) { return lookSocket(ctx, socket) }},
			}
			return examine(cmd.Context(), a, slices.Concat(all, lookPlatforms(platform, &beside.Machine), tpmExaminations(&beside.Machine), []examination{
				{"device", "NVIDIA GPUs", "give --nvidia-gpus as `cohort unit` has it; docs/how-to/gpu.md", func(ctx context.Context) (string, error) { return lookGPUs(ctx, gpus) }},
				{"store", "an authority's, and keeps what it acknowledges", "give --store as `cohort authority run` has it; docs/how-to/postgresql.md", func(ctx context.Context) (string, error) { return lookStore(ctx, database) }},
				{"authority", "reachable and named by policy", "check --authority and --genesis", func(ctx context.Context) (string, error) { return lookAuthority(ctx, a, p) }},
				{"authority", "backup of the root", "an owner makes one with `cohort authority backup`", func(ctx context.Context) (string, error) { return lookBackup(ctx, a, p) }},
				{"manager", "relays, and has units", "start `cohort manager`, and give units --manager and --manager-ca", func(ctx context.Context) (string, error) { return lookGateway(ctx, g) }},
			}))
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&socket, "tee-socket", "", "socket of the soft daemon")
	flags.StringVar(&platform, "platform", "", "platform that this machine must be; others may be absent")
	flags.StringVar(&gpus, "nvidia-gpus", "", "command that prints the evidence of this machine's GPUs")
	flags.StringVar(&database, "store", "", "an authority's database, sqlite:FILE or postgres://USER@HOST/DATABASE")
	flags.StringArrayVar(&p.Authorities, "authority", nil, "https URL of the authority")
	flags.StringVar(&p.Genesis, "genesis", "", "digest of the first policy")
	beside.RegisterMachine(cmd, "")
	g.Register(cmd, "URL of a manager's gateway")
	return cmd
}

// examine runs the checks and refuses when one failed.
func examine(ctx context.Context, a *frame.App, all []examination) error {
	findings := make([]finding, 0, len(all))
	var b strings.Builder
	failed := 0
	for _, e := range all {
		f := finding{Group: e.group, Check: e.check, State: "ok"}
		detail, err := e.look(ctx)
		switch {
		case errors.Is(err, errSkipped), errors.Is(err, errAbsent):
			f.State, f.Detail = "skipped", frame.OneLine(err.Error())
		case errors.Is(err, errWarned):
			f.State, f.Detail, f.Hint = "warning", detail, e.hint
		case err != nil:
			f.State, f.Detail, f.Hint = "failed", frame.OneLine(err.Error()), e.hint
			failed++
		default:
			f.Detail = detail
		}
		findings = append(findings, f)
		fmt.Fprintf(&b, "%-10s %-8s %s: %s\n", f.Group, f.State, f.Check, f.Detail)
		if f.Hint != "" {
			fmt.Fprintf(&b, "%-19s hint: %s\n", "", f.Hint)
		}
	}
	if err := a.PrintResult("doctor", map[string]any{"findings": findings}, b.String()); err != nil {
		return err
	}
	if failed > 0 {
		return &frame.Fault{Code: frame.CodeCheckFailed, Cause: fmt.Errorf("%d of %d checks failed", failed, len(all)), Hint: "see the hints above"}
	}
	return nil
}

// lookMemfd makes a memory file and seals it, as the soft daemon does.
func lookMemfd(context.Context) (string, error) {
	fd, err := unix.MemfdCreate("cohort-doctor", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		return "", err
	}
	defer unix.Close(fd)
	if _, err := unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, unix.F_SEAL_WRITE); err != nil {
		return "", err
	}
	return "made and sealed one", nil
}

func lookSocket(ctx context.Context, socket string) (string, error) {
	if socket == "" {
		return "", errSkipped
	}
	conn, err := (&net.Dialer{}).DialContext(ctx, "unixpacket", socket)
	if err != nil {
		return "", err
	}
	return "listens on " + socket, conn.Close()
}

// lookGPUs asks for evidence and does not appraise it.
func lookGPUs(ctx context.Context, command string) (string, error) {
	if command == "" {
		return "", errSkipped
	}
	gpus, err := nvidia.NewCollector(strings.Fields(command)...)
	if err != nil {
		return "", err
	}
	e, err := gpus.Attest(ctx, attest.ReportData{})
	return fmt.Sprintf("%d gave evidence", 1+len(e.Devices)), err
}

func lookStore(ctx context.Context, dsn string) (string, error) {
	if dsn == "" {
		return "", errSkipped
	}
	return store.Examine(ctx, dsn)
}

func lookAuthority(ctx context.Context, a *frame.App, p authorityclient.Pins) (string, error) {
	if len(p.Authorities) == 0 || p.Genesis == "" {
		return "", errSkipped
	}
	c, err := authorityclient.Dial(ctx, a, p)
	if err != nil {
		return "", err
	}
	defer c.Close()
	in, err := c.Policy(ctx)
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("policy %d of %s in force", in.Sequence, c.Approved.Document().TrustDomain), nil
}

func lookBackup(ctx context.Context, a *frame.App, p authorityclient.Pins) (string, error) {
	if len(p.Authorities) == 0 || p.Genesis == "" {
		return "", errSkipped
	}
	c, err := authorityclient.Dial(ctx, a, p)
	if err != nil {
		return "", err
	}
	defer c.Close()
	kept, err := c.Backup(ctx)
	if err == nil && kept.State != api.BackupCurrent {
		err = errWarned
	}
	return backupText(kept), err
}

// tpmExaminations are the checks of a TPM.
func tpmExaminations(machine *tpm.Machine) []examination {
	check := func(what, hint string, look func(tpm.Machine) (string, error)) examination {
		return examination{"tpm", what, hint, func(context.Context) (string, error) {
			if machine.Path == "" {
				return "", errSkipped
			}
			return look(*machine)
		}}
	}
	return []examination{
		check("device", "load the kernel's TPM driver, switch the TPM on in the firmware, and run as root", tpm.Machine.Manufacturer),
		check("endorsement key's certificate", "ask the maker for it and write it to NV 0x1c00002 or 0x1c0000a; a virtual TPM gets one when it is made", tpm.Machine.Certificate),
		check("SHA-256 bank", "activate the SHA-256 bank in the firmware's setup", tpm.Machine.CheckBank),
		check("attestation key", "the storage hierarchy needs an empty authorization; clear it in the firmware's setup", tpm.Machine.MakesKeys),
	}
}
