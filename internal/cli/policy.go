package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/cohort-tee/cohort/internal/wire"
	"github.com/cohort-tee/cohort/policy"
	"github.com/spf13/cobra"
	"golang.org/x/crypto/ssh"
)

func (a *app) policyCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "policy", Short: "Write, check, sign and adopt policy"}
	cmd.AddCommand(
		a.policyInitCommand(), a.policyNextCommand(), a.policyCheckCommand(), a.policyDiffCommand(), a.policySignCommand(),
		a.policyProposeCommand(), a.policyApproveCommand(), a.policyCancelCommand(), a.policyStatusCommand(), a.policyShowCommand(),
	)
	return cmd
}

// readPolicy reads and parses a policy file. That it parses says nothing about
// who signed it.
func readPolicy(path string) (*policy.Document, error) {
	b, err := readFile(path, wire.MaxPolicy)
	if err != nil {
		return nil, err
	}
	doc, err := policy.Parse(b)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return doc, nil
}

// readView reads a policy file, or the draft of one, for people.
func readView(path string) (policyView, error) {
	raw, err := readFile(path, wire.MaxPolicy)
	if err != nil {
		return policyView{}, err
	}
	draft, err := policy.ParseDraft(raw)
	if err == nil {
		v := describe(draft.Document())
		v.Draft = draft.Digest().String()
		if draft.Root().IsZero() {
			v.Root, v.Digest = "", ""
		}
		return v, nil
	}
	doc, err := policy.Parse(raw)
	if err != nil {
		return policyView{}, fmt.Errorf("%s: %w", path, err)
	}
	return describe(doc), nil
}

// written is a file that a command made: on stdout, or where --out says.
type written struct {
	File   string `json:"file,omitempty"`
	Digest string `json:"digest"`
	Text   string `json:"text,omitempty"`
}

func (a *app) write(what, out string, content []byte) error {
	w := written{Digest: wire.Sum(content).String()}
	if out == "" {
		w.Text = string(content)
		return a.emit(what, w, w.Text)
	}
	if err := os.WriteFile(out, content, 0o644); err != nil {
		return err
	}
	w.File = out
	return a.emit(what, w, fmt.Sprintf("wrote %s\ndigest %s\n", out, w.Digest))
}

func (a *app) policyInitCommand() *cobra.Command {
	var d draft
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
			d.created = a.now()
			var err error
			if d.owners, err = ownerLines(owners); err != nil {
				return err
			}
			if len(d.machines) == 0 {
				if d.machines, err = softMachines(d.softRoots); err != nil {
					return err
				}
			}
			if len(d.machines) == 0 {
				return usage("--machine: say which machines may hold the root: chip:ID of each, as `cohort evidence inspect` prints it, or any")
			}
			if len(d.task.names) == 0 {
				d.task.names = []string{d.task.name + "." + d.trustDomain}
			}
			text := []byte(d.text())
			return a.writeDraft(out, text)
		},
	}
	f := cmd.Flags()
	f.StringVar(&d.trustDomain, "trust-domain", "", "trust domain, a DNS name")
	f.StringArrayVar(&owners, "owner", nil, "owner, NAME=FILE with FILE an SSH public key; repeat")
	f.IntVar(&d.quorum, "quorum", 1, "how many owners must sign")
	f.StringArrayVar(&d.softRoots, "soft-root", nil, "root of a development TEE (cohort soft prints it); makes the policy one for development")
	f.StringArrayVar(&d.tpmRoots, "tpm-root", nil, "SHA-256 of the public key of an authority over TPMs' endorsement keys; repeat")
	f.StringArrayVar(&d.machines, "machine", nil, "machine that may hold the root, chip:ID, or any for every one (default those of --soft-root); repeat")
	f.StringArrayVar(&d.authority, "authority-reference", nil, "reference value of the authority; repeat")
	f.StringVar(&d.task.name, "task", "", "name of a task")
	f.StringVar(&d.task.keyMode, "key-mode", "", "shared or unit; required with --task")
	f.StringVar(&d.task.release, "release", "1", "name of the task's release")
	f.StringArrayVar(&d.task.names, "name", nil, "DNS name of the task (default TASK.TRUST-DOMAIN); repeat")
	f.StringArrayVar(&d.task.references, "reference", nil, "reference value of the task's release; repeat")
	f.BoolVar(&d.task.dynamic, "dynamic", false, "accept a program that loads shared libraries")
	f.IntVar(&d.task.units, "units", 0, "how many units of the task may hold a place at once, those of a roll-out and of a crash included (default any number)")
	f.StringVar(&out, "out", "", "file to write (default stdout)")
	for _, name := range []string{"trust-domain", "owner", "authority-reference"} {
		_ = cmd.MarkFlagRequired(name)
	}
	return cmd
}

// writeDraft checks and writes the draft of a first policy.
func (a *app) writeDraft(out string, text []byte) error {
	draft, err := policy.ParseDraft(text)
	if err != nil {
		return fmt.Errorf("checking the draft: %w", err)
	}
	w := struct {
		File  string `json:"file,omitempty"`
		Draft string `json:"draft"`
		Text  string `json:"text,omitempty"`
	}{out, draft.Digest().String(), string(text)}
	if out == "" {
		return a.emit("draft", w, w.Text)
	}
	w.Text = ""
	if err := os.WriteFile(out, text, 0o644); err != nil {
		return err
	}
	return a.emit("draft", w, fmt.Sprintf("wrote %s\ndraft %s\n", out, w.Draft))
}

// ownerLines reads NAME=FILE pairs.
func ownerLines(pairs []string) ([]ownerLine, error) {
	var lines []ownerLine
	for _, pair := range pairs {
		name, path, ok := strings.Cut(pair, "=")
		if !ok {
			return nil, usage("--owner: got %q, want NAME=FILE", pair)
		}
		b, err := readFile(path, maxKeyFile)
		if err != nil {
			return nil, err
		}
		key, err := policy.ParsePublicKey(b)
		if err != nil {
			return nil, usage("--owner %s: %s: %w", name, path, err)
		}
		lines = append(lines, ownerLine{name, strings.TrimSuffix(string(ssh.MarshalAuthorizedKey(key)), "\n")})
	}
	return lines, nil
}

func (a *app) policyNextCommand() *cobra.Command {
	var out string
	cmd := &cobra.Command{
		Use:   "next FILE",
		Short: "Begin the policy that follows FILE",
		Long:  "Copy FILE with sequence, previous and created set for the policy that follows\nit. Edit the copy, then check and sign it. A group without `authority` is given\nthe trust domain's.",
		Args:  cobra.ExactArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			raw, err := readFile(args[0], wire.MaxPolicy)
			if err != nil {
				return err
			}
			next, err := successor(raw, a.now())
			if err != nil {
				return fmt.Errorf("%s: %w", args[0], err)
			}
			return a.write("policy", out, next)
		},
	}
	cmd.Flags().StringVar(&out, "out", "", "file to write (default stdout)")
	return cmd
}

func (a *app) policyCheckCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "check FILE",
		Short: "Check a policy file and print what will be understood",
		Args:  cobra.ExactArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			v, err := readView(args[0])
			if err != nil {
				return err
			}
			return a.emit("policy", v, v.String()+
				"note: the file is signed as it stands; reformatting it, comments included, voids its signatures\n")
		},
	}
}

func (a *app) policyDiffCommand() *cobra.Command {
	var p pinFlags
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
			if len(p.authorities) == 0 {
				return a.emitDiff(before, after, nil)
			}
			c, err := a.authority(cmd.Context(), p)
			if err != nil {
				return err
			}
			defer c.Close()
			units, err := a.live(cmd.Context(), c)
			if err != nil {
				return err
			}
			return a.emitDiff(before, after, policyChange{before, after, c.policy}.affected(units))
		},
	}
	cmd.Flags().StringArrayVar(&p.authorities, "authority", nil, "https URL of the authority, to show live units that are cut off")
	cmd.Flags().StringVar(&p.genesis, "genesis", "", "digest of the first policy, with --authority")
	return cmd
}

func (a *app) policySignCommand() *cobra.Command {
	var f signFlags
	cmd := &cobra.Command{
		Use:   "sign FILE --ssh-key KEY",
		Short: "Sign a policy file with an SSH key",
		Long: "Sign FILE as it stands, in the form of `ssh-keygen -Y sign -n cohort-policy`, and\n" +
			"write FILE.KEY.sig. KEY is a private key file, or a public one whose private\nhalf the SSH agent holds.\n\n" +
			"The first policy needs --init: its evidence is appraised by FILE itself, your own\ncopy of the draft, and the root is written into FILE before it is signed.",
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			f.policy = args[0]
			return a.signPolicyFile(cmd.Context(), f)
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&f.key, "ssh-key", "", "SSH key to sign with")
	flags.StringVar(&f.out, "out", "", "file to write (default FILE.KEY.sig)")
	flags.StringVar(&f.init, "init", "", "what `cohort authority init --draft` printed; required for the first policy")
	flags.StringVar(&f.proof, "proof", "", "what `cohort authority init --open` printed, where the machine was challenged")
	flags.StringVar(&f.challenge, "challenge", "", "file to write a challenge to (default FILE.KEY.challenge)")
	f.collateral.register(cmd)
	_ = cmd.MarkFlagRequired("ssh-key")
	return cmd
}

func (a *app) signPolicyFile(ctx context.Context, f signFlags) error {
	raw, err := readFile(f.policy, wire.MaxPolicy)
	if err != nil {
		return err
	}
	beside := f.policy + "." + strings.TrimSuffix(filepath.Base(f.key), ".pub")
	f.out, f.challenge = cmp.Or(f.out, beside+".sig"), cmp.Or(f.challenge, beside+".challenge")
	draft, err := policy.ParseDraft(raw)
	if err == nil {
		if f.founders, err = a.stateDir("founder"); err != nil {
			return err
		}
		return a.signFirst(ctx, f, draft)
	}
	doc, later := policy.Parse(raw)
	if later != nil {
		return fmt.Errorf("%s: %w", f.policy, err)
	}
	if f.init != "" || f.proof != "" {
		return usage("--init and --proof are for the first policy, and %s is policy %d", f.policy, doc.Sequence)
	}
	sig, err := a.signPolicy(f.key, doc.Raw())
	if err != nil {
		return err
	}
	return a.write("signature", f.out, []byte(sig))
}

// signPolicy signs a policy that is not the first. A hostile authority could show a first
// policy as a proposal; that is signed by [app.signFirst], with the evidence of its root.
func (a *app) signPolicy(key string, raw []byte) (string, error) {
	doc, err := policy.Parse(raw)
	if err != nil {
		return "", fmt.Errorf("checking the policy to sign: %w", err)
	}
	if doc.Sequence == 1 {
		return "", wire.Refuse(wire.EvidenceMissing, "sign: the first policy", "no evidence of its authority root", "`cohort policy sign --init`")
	}
	return a.sshSign(key, policy.ForPolicy, raw)
}

// sshSign signs one statement with the key that a path names.
func (a *app) sshSign(key string, ns policy.Namespace, message []byte) (string, error) {
	signer, closeAgent, err := a.signer(key)
	if err != nil {
		return "", err
	}
	defer closeAgent()
	return policy.Sign(signer, ns, message)
}

// signatures reads signature files and makes one more with a key, whichever
// were given.
func (a *app) signatures(files []string, key string, message []byte) ([]string, error) {
	var sigs []string
	for _, path := range files {
		b, err := readFile(path, wire.MaxSignature)
		if err != nil {
			return nil, err
		}
		if _, err := policy.Verify(string(b), policy.ForPolicy, message); err != nil {
			return nil, fmt.Errorf("%s: %w", path, err)
		}
		sigs = append(sigs, string(b))
	}
	if key != "" {
		sig, err := a.signPolicy(key, message)
		if err != nil {
			return nil, err
		}
		sigs = append(sigs, sig)
	}
	if len(sigs) == 0 {
		return nil, &fault{codeUsage, errors.New("no signature"), "give --ssh-key KEY or --signature FILE"}
	}
	return sigs, nil
}
