package cli

import (
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
		Short: "Write the first policy",
		Long: "Write the first policy (the genesis). Its digest is the one value that units\n" +
			"and clients are given. Reference values are lines that `cohort measure` prints.",
		Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			d.created = a.now()
			var err error
			if d.owners, err = ownerLines(owners); err != nil {
				return err
			}
			if len(d.task.names) == 0 {
				d.task.names = []string{d.task.name + "." + d.trustDomain}
			}
			text := []byte(d.text())
			if _, err := policy.Parse(text); err != nil {
				return fmt.Errorf("checking the policy: %w", err)
			}
			return a.write("policy", out, text)
		},
	}
	f := cmd.Flags()
	f.StringVar(&d.trustDomain, "trust-domain", "", "trust domain, a DNS name")
	f.StringArrayVar(&owners, "owner", nil, "owner, NAME=FILE with FILE an SSH public key; repeat")
	f.IntVar(&d.quorum, "quorum", 1, "how many owners must sign")
	f.StringArrayVar(&d.softRoots, "soft-root", nil, "root of a development TEE (cohort soft prints it); makes the policy one for development")
	f.StringArrayVar(&d.tpmRoots, "tpm-root", nil, "SHA-256 of the public key of an authority over TPMs' endorsement keys; repeat")
	f.StringVar(&d.root, "root", "", "authority root (cohort authority init prints it)")
	f.StringArrayVar(&d.authority, "authority-reference", nil, "reference value of the authority; repeat")
	f.StringVar(&d.task.name, "task", "", "name of a task")
	f.StringVar(&d.task.keyMode, "key-mode", "", "shared or unit; required with --task")
	f.StringVar(&d.task.release, "release", "1", "name of the task's release")
	f.StringArrayVar(&d.task.names, "name", nil, "DNS name of the task (default TASK.TRUST-DOMAIN); repeat")
	f.StringArrayVar(&d.task.references, "reference", nil, "reference value of the task's release; repeat")
	f.BoolVar(&d.task.dynamic, "dynamic", false, "accept a program that loads shared libraries")
	f.IntVar(&d.task.units, "units", 50, "how many units of the task may run at once")
	f.StringVar(&out, "out", "", "file to write (default stdout)")
	for _, name := range []string{"trust-domain", "owner", "root", "authority-reference"} {
		_ = cmd.MarkFlagRequired(name)
	}
	return cmd
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
		key, _, _, _, err := ssh.ParseAuthorizedKey(b)
		if err != nil {
			return nil, usage("--owner %s: %s is not an SSH public key", name, path)
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
		Long:  "Copy FILE with sequence, previous and created set for the policy that follows\nit. Edit the copy, then check and sign it.",
		Args:  cobra.ExactArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			doc, err := readPolicy(args[0])
			if err != nil {
				return err
			}
			next, err := successor(doc, a.now())
			if err != nil {
				return err
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
			doc, err := readPolicy(args[0])
			if err != nil {
				return err
			}
			return a.emit("policy", describe(doc), describe(doc).String()+
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
	var key, out string
	cmd := &cobra.Command{
		Use:   "sign FILE --ssh-key KEY",
		Short: "Sign a policy file with an SSH key",
		Long: "Sign FILE as it stands, in the form of `ssh-keygen -Y sign -n cohort-policy`, and\n" +
			"write FILE.KEY.sig. KEY is a private key file, or a public one whose private\nhalf the SSH agent holds.",
		Args: cobra.ExactArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			doc, err := readPolicy(args[0])
			if err != nil {
				return err
			}
			sig, err := a.sshSign(key, policy.ForPolicy, doc.Raw())
			if err != nil {
				return err
			}
			if out == "" {
				out = args[0] + "." + strings.TrimSuffix(filepath.Base(key), ".pub") + ".sig"
			}
			return a.write("signature", out, []byte(sig))
		},
	}
	cmd.Flags().StringVar(&key, "ssh-key", "", "SSH key to sign with")
	cmd.Flags().StringVar(&out, "out", "", "file to write (default FILE.KEY.sig)")
	_ = cmd.MarkFlagRequired("ssh-key")
	return cmd
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
		sig, err := a.sshSign(key, policy.ForPolicy, message)
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
