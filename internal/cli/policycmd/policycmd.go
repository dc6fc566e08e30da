// Package policycmd is `cohort policy`: write, check, sign, propose and approve policy. A first
// policy is signed only with evidence of the root that it names.
//
// Files, each using those before it: affected.go, first.go, view.go, policycmd.go,
// remote.go.
package policycmd

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/cohort-tee/cohort/internal/authorityclient"
	"github.com/cohort-tee/cohort/internal/cli/drafttext"
	"github.com/cohort-tee/cohort/internal/cli/frame"
	"github.com/cohort-tee/cohort/internal/cli/sshkey"
	"github.com/cohort-tee/cohort/internal/wire"
	"github.com/cohort-tee/cohort/policy/policydraft"
	"github.com/cohort-tee/cohort/policy/policyfile"
	"github.com/cohort-tee/cohort/policy/sshsig"
	"github.com/spf13/cobra"
)

// Command is `cohort policy`.
func Command(a *frame.App) *cobra.Command {
	cmd := &cobra.Command{Use: "policy", Short: "Write, check, sign and adopt policy"}
	cmd.AddCommand(
		policyInitCommand(a), policyNextCommand(a), policyCheckCommand(a), policyDiffCommand(a), policySignCommand(a),
		policyProposeCommand(a), policyApproveCommand(a), policyCancelCommand(a), policyStatusCommand(a), policyShowCommand(a),
	)
	return cmd
}

// readPolicy reads and parses a policy file. That it parses proves nothing about
// who signed it.
func readPolicy(path string) (*policyfile.Document, error) {
	b, err := frame.ReadFile(path, wire.MaxPolicy)
	if err != nil {
		return nil, err
	}
	doc, err := policyfile.Parse(b)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return doc, nil
}

// readView reads a policy file, or the draft of one, for people.
func readView(path string) (PolicyView, error) {
	raw, err := frame.ReadFile(path, wire.MaxPolicy)
	if err != nil {
		return PolicyView{}, err
	}
	draft, err := policydraft.Parse(raw)
	if err == nil {
		v := Describe(draft.Document())
		v.Draft = draft.Digest().String()
		if draft.NamedRoot().IsZero() {
			v.Root, v.Digest = "", ""
		}
		return v, nil
	}
	doc, err := policyfile.Parse(raw)
	if err != nil {
		return PolicyView{}, fmt.Errorf("%s: %w", path, err)
	}
	return Describe(doc), nil
}

func policyInitCommand(a *frame.App) *cobra.Command {
	var d drafttext.Draft
	var owners []string
	var out string
	cmd := &cobra.Command{
		Use:   "init",
		Short: "Write the draft of the first policy",
		Long: "Write the draft of the first policy (the genesis), with an empty authority.root.\n" +
			"`cohort authority init --draft` makes the root for it, and `cohort policy sign --init`\n" +
			"fills it in. Then its digest is the one value that units and clients are given.\n" +
			"Reference values are lines that `cohort measure` prints.",
		Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			d.Created = a.Now()
			var err error
			if d.Owners, err = drafttext.Owners(owners); err != nil {
				return err
			}
			if len(d.Machines) == 0 {
				if d.Machines, err = drafttext.SoftMachines(d.SoftRoots); err != nil {
					return err
				}
			}
			if len(d.Machines) == 0 {
				return frame.Usage("--machine: name the machines that may keep the root: chip:ID of each, as `cohort evidence inspect` prints it, or any")
			}
			if len(d.Task.Names) == 0 {
				d.Task.Names = []string{d.Task.Name + "." + d.TrustDomain}
			}
			text := []byte(d.PolicyText())
			return writeDraft(a, out, text)
		},
	}
	f := cmd.Flags()
	f.StringVar(&d.TrustDomain, "trust-domain", "", "trust domain, a DNS name")
	f.StringArrayVar(&owners, "owner", nil, "owner, NAME=FILE with FILE an SSH public key; repeat")
	f.IntVar(&d.Quorum, "quorum", 1, "how many owners must sign")
	f.StringArrayVar(&d.SoftRoots, "soft-root", nil, "root of a development TEE (cohort soft prints it); makes the policy one for development")
	f.StringArrayVar(&d.TPMRoots, "tpm-root", nil, "SHA-256 of the public key of an authority over TPMs' endorsement keys; repeat")
	f.StringArrayVar(&d.Machines, "machine", nil, "machine that may hold the root, chip:ID, or any for every one (default those of --soft-root); repeat")
	f.StringArrayVar(&d.Authority, "authority-reference", nil, "reference value of the authority; repeat")
	f.StringVar(&d.Task.Name, "task", "", "name of a task")
	f.StringVar(&d.Task.KeyMode, "key-mode", "", "shared or unit; required with --task")
	f.StringVar(&d.Task.Release, "release", "1", "name of the task's release")
	f.StringArrayVar(&d.Task.Names, "name", nil, "DNS name of the task (default TASK.TRUST-DOMAIN); repeat")
	f.StringArrayVar(&d.Task.References, "reference", nil, "reference value of the task's release; repeat")
	f.BoolVar(&d.Task.Dynamic, "dynamic", false, "accept a program that loads shared libraries")
	f.IntVar(&d.Task.Units, "units", 0, "how many units of the task may hold a place at once, those of a roll-out and of a crash included (default any number)")
	f.StringVar(&out, "out", "", "file to write (default stdout)")
	for _, name := range []string{"trust-domain", "owner", "authority-reference"} {
		_ = cmd.MarkFlagRequired(name)
	}
	return cmd
}

// writeDraft checks and writes the draft of a first policy.
func writeDraft(a *frame.App, out string, text []byte) error {
	draft, err := policydraft.Parse(text)
	if err != nil {
		return fmt.Errorf("checking the draft: %w", err)
	}
	w := struct {
		File  string `json:"file,omitempty"`
		Draft string `json:"draft"`
		Text  string `json:"text,omitempty"`
	}{out, draft.Digest().String(), string(text)}
	if out == "" {
		return a.PrintResult("draft", w, w.Text)
	}
	w.Text = ""
	if err := os.WriteFile(out, text, 0o644); err != nil {
		return err
	}
	return a.PrintResult("draft", w, fmt.Sprintf("wrote %s\ndraft %s\n", out, w.Draft))
}

func policyNextCommand(a *frame.App) *cobra.Command {
	var out string
	cmd := &cobra.Command{
		Use:   "next FILE",
		Short: "Begin the policy that follows FILE",
		Long:  "Copy FILE with sequence, previous and created set for the policy that follows\nit. Edit the copy, then check and sign it. A group without `authority` is given\nthe trust domain's.",
		Args:  cobra.ExactArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			raw, err := frame.ReadFile(args[0], wire.MaxPolicy)
			if err != nil {
				return err
			}
			next, err := drafttext.Successor(raw, a.Now())
			if err != nil {
				return fmt.Errorf("%s: %w", args[0], err)
			}
			return a.Write("policy", out, next)
		},
	}
	cmd.Flags().StringVar(&out, "out", "", "file to write (default stdout)")
	return cmd
}

func policyCheckCommand(a *frame.App) *cobra.Command {
	return &cobra.Command{
		Use:   "check FILE",
		Short: "Check a policy file and print what will be understood",
		Args:  cobra.ExactArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			v, err := readView(args[0])
			if err != nil {
				return err
			}
			return a.PrintResult("policy", v, v.String()+
				"note: the file is signed as it is; reformatting it, comments included, voids its signatures\n")
		},
	}
}

func policyDiffCommand(a *frame.App) *cobra.Command {
	var p authorityclient.Pins
	cmd := &cobra.Command{
		Use:   "diff OLD NEW",
		Short: "Show what a policy changes, whether the change waits for the delay, and with --authority whom it cuts off",
		Args:  cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			before, err := readPolicy(args[0])
			if err != nil {
				return err
			}
			after, err := readPolicy(args[1])
			if err != nil {
				return err
			}
			if len(p.Authorities) == 0 {
				return emitDiff(a, before, after, nil)
			}
			c, err := authorityclient.Dial(cmd.Context(), a, p)
			if err != nil {
				return err
			}
			defer c.Close()
			units, err := authorityclient.LiveUnits(cmd.Context(), a, c)
			if err != nil {
				return err
			}
			return emitDiff(a, before, after, policyChange{before, after, c.Approved}.affected(units))
		},
	}
	cmd.Flags().StringArrayVar(&p.Authorities, "authority", nil, "https URL of the authority, to show live units that are cut off")
	cmd.Flags().StringVar(&p.Genesis, "genesis", "", "digest of the first policy, with --authority")
	return cmd
}

func policySignCommand(a *frame.App) *cobra.Command {
	var f signFlags
	cmd := &cobra.Command{
		Use:   "sign FILE --ssh-key KEY",
		Short: "Sign a policy file with an SSH key",
		Long: "Sign FILE as it is, in the form of `ssh-keygen -Y sign -n cohort-policy`, and\n" +
			"write FILE.KEY.sig. KEY is a private key file, or a public one whose private\nhalf the SSH agent holds.\n\n" +
			"The first policy needs --init: its evidence is appraised by FILE itself, your own\ncopy of the draft, and the root is written into FILE before it is signed.",
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			f.policy = args[0]
			return signPolicyFile(cmd.Context(), a, f)
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&f.key, "ssh-key", "", "SSH key to sign with")
	flags.StringVar(&f.out, "out", "", "file to write (default FILE.KEY.sig)")
	flags.StringVar(&f.init, "init", "", "what `cohort authority init --draft` printed; required for the first policy")
	flags.StringVar(&f.proof, "proof", "", "what `cohort authority init --open` printed, where the machine was challenged")
	flags.StringVar(&f.challenge, "challenge", "", "file to write a challenge to (default FILE.KEY.challenge)")
	f.collateral.Register(cmd)
	_ = cmd.MarkFlagRequired("ssh-key")
	return cmd
}

func signPolicyFile(ctx context.Context, a *frame.App, f signFlags) error {
	raw, err := frame.ReadFile(f.policy, wire.MaxPolicy)
	if err != nil {
		return err
	}
	beside := f.policy + "." + strings.TrimSuffix(filepath.Base(f.key), ".pub")
	f.out, f.challenge = cmp.Or(f.out, beside+".sig"), cmp.Or(f.challenge, beside+".challenge")
	draft, err := policydraft.Parse(raw)
	if err == nil {
		if f.founders, err = a.StateDir("founder"); err != nil {
			return err
		}
		return signFirst(ctx, a, f, draft)
	}
	doc, later := policyfile.Parse(raw)
	if later != nil {
		return fmt.Errorf("%s: %w", f.policy, err)
	}
	if f.init != "" || f.proof != "" {
		return frame.Usage("--init and --proof are for the first policy, and %s is policy %d", f.policy, doc.Sequence)
	}
	sig, err := sshkey.SignPolicy(a, f.key, doc.Source())
	if err != nil {
		return err
	}
	return a.Write("signature", f.out, []byte(sig))
}

// signatures reads signature files and makes one more with a key, whichever
// were given.
func signatures(a *frame.App, files []string, key string, message []byte) ([]string, error) {
	var sigs []string
	for _, path := range files {
		b, err := frame.ReadFile(path, wire.MaxSignature)
		if err != nil {
			return nil, err
		}
		if _, err := sshsig.Verify(string(b), sshsig.ForPolicy, message); err != nil {
			return nil, fmt.Errorf("%s: %w", path, err)
		}
		sigs = append(sigs, string(b))
	}
	if key != "" {
		sig, err := sshkey.SignPolicy(a, key, message)
		if err != nil {
			return nil, err
		}
		sigs = append(sigs, sig)
	}
	if len(sigs) == 0 {
		return nil, &frame.Fault{Code: frame.CodeUsage, Cause: errors.New("no signature"), Hint: "give --ssh-key KEY or --signature FILE"}
	}
	return sigs, nil
}
