package cli

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/cohort-tee/cohort/internal/api"
	"github.com/cohort-tee/cohort/internal/wire"
	"github.com/cohort-tee/cohort/policy"
	"github.com/spf13/cobra"
)

// remoteFlags are what the verbs need that talk to an authority.
type remoteFlags struct {
	pins       pinFlags
	key        string
	signatures []string
}

// remote makes a verb that talks to an authority which was checked.
func (a *app) remote(use, short string, args cobra.PositionalArgs, run func(context.Context, authorityClient, *remoteFlags, []string) error) (*cobra.Command, *remoteFlags) {
	f := &remoteFlags{}
	cmd := &cobra.Command{
		Use: use, Short: short, Args: args,
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.authority(cmd.Context(), f.pins)
			if err != nil {
				return err
			}
			defer c.Close()
			return run(cmd.Context(), c, f, args)
		},
	}
	f.pins.registerAuthority(cmd)
	return cmd, f
}

func (a *app) policyProposeCommand() *cobra.Command {
	cmd, f := a.remote("propose FILE", "Propose a policy; the first signature is the proposer's", cobra.ExactArgs(1),
		func(ctx context.Context, c authorityClient, f *remoteFlags, args []string) error {
			doc, err := readPolicy(args[0])
			if err != nil {
				return err
			}
			cut, err := a.foretell(ctx, c, doc)
			if err != nil {
				return err
			}
			a.say("%s%s", diffText(c.policy.Document(), doc), affectedText(cut))
			sigs, err := a.signatures(f.signatures, f.key, doc.Raw())
			if err != nil {
				return err
			}
			p, err := c.Propose(ctx, api.ProposeRequest{Policy: doc.Raw(), Signatures: sigs})
			if err != nil {
				return err
			}
			v := struct {
				api.Proposal
				Affected []affectedUnit `json:"affected"`
			}{p, cut}
			return a.emit("proposal", v, proposalText(p))
		})
	f.registerSigning(cmd)
	return cmd
}

func (f *remoteFlags) registerSigning(cmd *cobra.Command) {
	cmd.Flags().StringVar(&f.key, "ssh-key", "", "SSH key to sign with")
	cmd.Flags().StringArrayVar(&f.signatures, "signature", nil, "file of a signature made before; repeat")
}

func (a *app) policyApproveCommand() *cobra.Command {
	cmd, f := a.remote("approve DIGEST", "Add an owner's signature to a proposal, after showing what it changes", cobra.ExactArgs(1),
		func(ctx context.Context, c authorityClient, f *remoteFlags, args []string) error {
			p, err := proposalOf(ctx, c, args[0])
			if err != nil {
				return err
			}
			if doc, err := policy.Parse(p.Policy); err == nil {
				cut, err := a.foretell(ctx, c, doc)
				if err != nil {
					return err
				}
				a.say("%s%s", diffText(c.policy.Document(), doc), affectedText(cut))
			}
			sigs, err := a.signatures(f.signatures, f.key, p.Policy)
			if err != nil {
				return err
			}
			for _, sig := range sigs {
				if p, err = c.AddSignature(ctx, p.Digest, api.SignatureRequest{Signature: sig}); err != nil {
					return err
				}
			}
			return a.emit("proposal", p, proposalText(p))
		})
	f.registerSigning(cmd)
	return cmd
}

// proposalOf fetches a proposal and demands that its policy has the digest that
// was asked for: that is what gets signed.
func proposalOf(ctx context.Context, c authorityClient, digest string) (api.Proposal, error) {
	d, err := wire.ParseDigest(digest)
	if err != nil {
		return api.Proposal{}, usage("%w", err)
	}
	p, err := c.Proposal(ctx, d)
	if err != nil {
		return p, err
	}
	if got := wire.Sum(p.Policy); got != d || p.Digest != d {
		return p, wire.Refuse(wire.BadDigest, "proposal: digest", got, d)
	}
	return p, nil
}

func (a *app) policyCancelCommand() *cobra.Command {
	cmd, f := a.remote("cancel DIGEST", "Withdraw a proposal; only its proposer can", cobra.ExactArgs(1),
		func(ctx context.Context, c authorityClient, f *remoteFlags, args []string) error {
			d, err := wire.ParseDigest(args[0])
			if err != nil {
				return usage("%w", err)
			}
			statement := policy.CancelStatement(c.policy, d)
			sig, err := a.sshSign(f.key, policy.ForCancel, statement)
			if err != nil {
				return err
			}
			p, err := c.Cancel(ctx, d, api.CancelRequest{Statement: statement, Signature: sig})
			if err != nil {
				return err
			}
			return a.emit("proposal", p, proposalText(p))
		})
	cmd.Flags().StringVar(&f.key, "ssh-key", "", "SSH key to sign with")
	_ = cmd.MarkFlagRequired("ssh-key")
	return cmd
}

func (a *app) policyStatusCommand() *cobra.Command {
	cmd, _ := a.remote("status", "Show the policy in force and what waits", cobra.NoArgs,
		func(ctx context.Context, c authorityClient, _ *remoteFlags, _ []string) error {
			all, err := c.Proposals(ctx)
			if err != nil {
				return err
			}
			doc := c.policy.Document()
			v := struct {
				Sequence  uint64         `json:"sequence"`
				Digest    string         `json:"digest"`
				Head      string         `json:"head"`
				Proposals []api.Proposal `json:"proposals"`
				Damaged   []string       `json:"damaged,omitempty"`
				filling
			}{doc.Sequence, doc.Digest().String(), c.policy.Head().String(), all.Proposals, all.Damaged, fillingOf(c.policy)}
			var b strings.Builder
			fmt.Fprintf(&b, "policy %d in force, digest %s\n", doc.Sequence, doc.Digest())
			for _, p := range all.Proposals {
				b.WriteString(proposalText(p))
			}
			for _, row := range all.Damaged {
				fmt.Fprintf(&b, "WARNING: a damaged row of the authority's store is passed over: %s\n", row)
			}
			return a.emit("policy-status", v, b.String()+v.filling.String())
		})
	return cmd
}

func (a *app) policyShowCommand() *cobra.Command {
	cmd, _ := a.remote("show [DIGEST]", "Print the policy in force, or a proposed one, as it was signed", cobra.MaximumNArgs(1),
		func(ctx context.Context, c authorityClient, _ *remoteFlags, args []string) error {
			if len(args) == 1 {
				p, err := proposalOf(ctx, c, args[0])
				if err != nil {
					return err
				}
				return a.write("policy", "", p.Policy)
			}
			raw, err := inForce(ctx, c)
			if err != nil {
				return err
			}
			return a.write("policy", "", raw)
		})
	return cmd
}

// inForce is the newest policy of the history, where the authority that it names
// says that it is the one in force. The owners' signatures alone would not say that
// there is nothing newer.
func inForce(ctx context.Context, c authorityClient) ([]byte, error) {
	now, err := c.Policy(ctx)
	if err != nil {
		return nil, err
	}
	if head := c.policy.Head(); now.Head != head {
		return nil, wire.Refuse(wire.Behind, "policy in force: head", now.Head, head)
	}
	return c.policy.Document().Raw(), nil
}

// proposalText is a proposal for people: how far it is and who is missing.
func proposalText(p api.Proposal) string {
	var b strings.Builder
	fmt.Fprintf(&b, "proposal %s\n  policy %d, %s, proposed by %s at %s\n", p.Digest.Hex(), p.Sequence, p.State, p.Proposer, rfc3339(p.Created))
	fmt.Fprintf(&b, "  signed by %s (%d of %d)\n", strings.Join(p.Signed, ", "), len(p.Signed), p.Quorum)
	if p.State == string(policy.Pending) {
		fmt.Fprintf(&b, "  missing: any %d of %s, until %s\n", p.Quorum-len(p.Signed), strings.Join(p.Missing, ", "), rfc3339(p.Expires))
	}
	if p.State == string(policy.Waiting) {
		fmt.Fprintf(&b, "  loosens: waited %s of %s, while an authority ran\n", time.Duration(p.Waited)*time.Second, time.Duration(p.Delay)*time.Second)
	}
	return b.String()
}

// diffText lists what a policy changes and when that takes effect.
func diffText(before, after *policy.Document) string {
	var b strings.Builder
	for _, c := range policy.Diff(before, after) {
		fmt.Fprintln(&b, c)
	}
	if b.Len() == 0 {
		b.WriteString("no difference\n")
	}
	if policy.Loosens(before, after) {
		fmt.Fprintf(&b, "loosens: waits %v after its quorum\n", before.Owners.Delay)
	} else {
		b.WriteString("tightens or keeps: takes effect with its quorum\n")
	}
	return b.String()
}

// emitDiff is the result of `policy diff`; cut is nil where no authority was
// asked whom the change cuts off.
func (a *app) emitDiff(before, after *policy.Document, cut []affectedUnit) error {
	type change struct {
		Path    string `json:"path"`
		Old     string `json:"old,omitempty"`
		New     string `json:"new,omitempty"`
		Loosens bool   `json:"loosens"`
	}
	v := struct {
		Changes []change `json:"changes"`
		Loosens bool     `json:"loosens"`
		Delay   string   `json:"delay"`

		Affected []affectedUnit `json:"affected,omitempty"`
		Ended    []string       `json:"groups_ended,omitempty"` // by what [authority] says now
	}{Changes: []change{}, Loosens: policy.Loosens(before, after), Delay: before.Owners.Delay.String(), Affected: cut}
	for _, c := range policy.Diff(before, after) {
		v.Changes = append(v.Changes, change{c.Path, c.Old, c.New, c.Loosens})
	}
	text := diffText(before, after)
	for _, w := range policy.GroupsEnded(before, after) {
		v.Ended = append(v.Ended, w.String())
		text += "warning: " + w.String() + "\n"
	}
	if cut != nil {
		text += affectedText(cut)
	}
	return a.emit("policy-diff", v, text)
}
