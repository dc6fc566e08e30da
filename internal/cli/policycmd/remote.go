package policycmd

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/cohort-tee/cohort/internal/api"
	"github.com/cohort-tee/cohort/internal/authorityclient"
	"github.com/cohort-tee/cohort/internal/cli/frame"
	"github.com/cohort-tee/cohort/internal/cli/sshkey"
	"github.com/cohort-tee/cohort/internal/wire"
	"github.com/cohort-tee/cohort/policy"
	"github.com/cohort-tee/cohort/policy/policyfile"
	"github.com/cohort-tee/cohort/policy/sshsig"
	"github.com/spf13/cobra"
)

func policyProposeCommand(a *frame.App) *cobra.Command {
	cmd, f := authorityclient.Command(a, "propose FILE", "Propose a policy; the first signature is the proposer's", cobra.ExactArgs(1),
		func(ctx context.Context, c authorityclient.Client, f *authorityclient.Flags, args []string) error {
			doc, err := readPolicy(args[0])
			if err != nil {
				return err
			}
			cut, err := previewImpact(ctx, a, c, doc)
			if err != nil {
				return err
			}
			a.Notef("%s%s", diffText(c.Approved.Document(), doc), affectedText(cut))
			sigs, err := signatures(a, f.Signatures, f.Key, doc.Source())
			if err != nil {
				return err
			}
			p, err := c.Propose(ctx, api.ProposeRequest{Policy: doc.Source(), Signatures: sigs})
			if err != nil {
				return err
			}
			v := struct {
				api.Proposal
				Affected []affectedUnit `json:"affected"`
			}{p, cut}
			return a.PrintResult("proposal", v, ProposalText(p))
		})
	f.RegisterSigning(cmd)
	return cmd
}

func policyApproveCommand(a *frame.App) *cobra.Command {
	cmd, f := authorityclient.Command(a, "approve DIGEST", "Add an owner's signature to a proposal, after showing what it changes", cobra.ExactArgs(1),
		func(ctx context.Context, c authorityclient.Client, f *authorityclient.Flags, args []string) error {
			p, err := proposalOf(ctx, c, args[0])
			if err != nil {
				return err
			}
			if doc, err := policyfile.Parse(p.Policy); err == nil {
				cut, err := previewImpact(ctx, a, c, doc)
				if err != nil {
					return err
				}
				a.Notef("%s%s", diffText(c.Approved.Document(), doc), affectedText(cut))
			}
			sigs, err := signatures(a, f.Signatures, f.Key, p.Policy)
			if err != nil {
				return err
			}
			for _, sig := range sigs {
				if p, err = c.AddSignature(ctx, p.Digest, api.SignatureRequest{Signature: sig}); err != nil {
					return err
				}
			}
			return a.PrintResult("proposal", p, ProposalText(p))
		})
	f.RegisterSigning(cmd)
	return cmd
}

// proposalOf fetches a proposal and demands that its policy has the digest that
// was asked for: that is what gets signed.
func proposalOf(ctx context.Context, c authorityclient.Client, digest string) (api.Proposal, error) {
	d, err := wire.ParseDigest(digest)
	if err != nil {
		return api.Proposal{}, frame.Usage("%w", err)
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

func policyCancelCommand(a *frame.App) *cobra.Command {
	cmd, f := authorityclient.Command(a, "cancel DIGEST", "Withdraw a proposal; only its proposer can", cobra.ExactArgs(1),
		func(ctx context.Context, c authorityclient.Client, f *authorityclient.Flags, args []string) error {
			d, err := wire.ParseDigest(args[0])
			if err != nil {
				return frame.Usage("%w", err)
			}
			statement := policy.CancelStatement(c.Approved, d)
			sig, err := sshkey.Sign(a, f.Key, sshsig.ForCancel, statement)
			if err != nil {
				return err
			}
			p, err := c.Cancel(ctx, d, api.CancelRequest{Statement: statement, Signature: sig})
			if err != nil {
				return err
			}
			return a.PrintResult("proposal", p, ProposalText(p))
		})
	cmd.Flags().StringVar(&f.Key, "ssh-key", "", "SSH key to sign with")
	_ = cmd.MarkFlagRequired("ssh-key")
	return cmd
}

func policyStatusCommand(a *frame.App) *cobra.Command {
	cmd, _ := authorityclient.Command(a, "status", "Show the policy in force and pending proposals", cobra.NoArgs,
		func(ctx context.Context, c authorityclient.Client, _ *authorityclient.Flags, _ []string) error {
			all, err := c.Proposals(ctx)
			if err != nil {
				return err
			}
			doc := c.Approved.Document()
			v := struct {
				Sequence  uint64         `json:"sequence"`
				Digest    string         `json:"digest"`
				Head      string         `json:"head"`
				Proposals []api.Proposal `json:"proposals"`
				Damaged   []string       `json:"damaged,omitempty"`
				authorityclient.Filling
			}{doc.Sequence, doc.Digest().String(), c.Approved.PolicyHead().String(), all.Proposals, all.Damaged, authorityclient.FillingOf(c.Approved)}
			var b strings.Builder
			fmt.Fprintf(&b, "policy %d in force, digest %s\n", doc.Sequence, doc.Digest())
			for _, p := range all.Proposals {
				b.WriteString(ProposalText(p))
			}
			for _, row := range all.Damaged {
				fmt.Fprintf(&b, "WARNING: a damaged row of the authority's store is passed over: %s\n", row)
			}
			return a.PrintResult("policy-status", v, b.String()+v.Filling.String())
		})
	return cmd
}

func policyShowCommand(a *frame.App) *cobra.Command {
	cmd, _ := authorityclient.Command(a, "show [DIGEST]", "Print the policy in force, or a proposed one, as it was signed", cobra.MaximumNArgs(1),
		func(ctx context.Context, c authorityclient.Client, _ *authorityclient.Flags, args []string) error {
			if len(args) == 1 {
				p, err := proposalOf(ctx, c, args[0])
				if err != nil {
					return err
				}
				return a.Write("policy", "", p.Policy)
			}
			raw, err := inForce(ctx, c)
			if err != nil {
				return err
			}
			return a.Write("policy", "", raw)
		})
	return cmd
}

// inForce is the newest policy of the history, where the authority that it names
// confirms that it is the one in force. The owners' signatures alone do not prove that
// there is nothing newer.
func inForce(ctx context.Context, c authorityclient.Client) ([]byte, error) {
	now, err := c.Policy(ctx)
	if err != nil {
		return nil, err
	}
	if head := c.Approved.PolicyHead(); now.Head != head {
		return nil, wire.Refuse(wire.Behind, "policy in force: head", now.Head, head)
	}
	return c.Approved.Document().Source(), nil
}

// ProposalText is a proposal for people: how far it is and who is missing.
func ProposalText(p api.Proposal) string {
	var b strings.Builder
	fmt.Fprintf(&b, "proposal %s\n  policy %d, %s, proposed by %s at %s\n", p.Digest.Hex(), p.Sequence, p.State, p.Proposer, frame.RFC3339(p.Created))
	fmt.Fprintf(&b, "  signed by %s (%d of %d)\n", strings.Join(p.Signed, ", "), len(p.Signed), p.Quorum)
	if p.State == string(policy.Pending) {
		fmt.Fprintf(&b, "  missing: any %d of %s, until %s\n", p.Quorum-len(p.Signed), strings.Join(p.Missing, ", "), frame.RFC3339(p.Expires))
	}
	if p.State == string(policy.Waiting) {
		fmt.Fprintf(&b, "  loosens: waited %s of %s, while an authority ran\n", time.Duration(p.Waited)*time.Second, time.Duration(p.Delay)*time.Second)
	}
	return b.String()
}

// diffText lists what a policy changes and when that takes effect.
func diffText(before, after *policyfile.Document) string {
	var b strings.Builder
	for _, c := range policyfile.Compare(before, after) {
		fmt.Fprintln(&b, c)
	}
	if b.Len() == 0 {
		b.WriteString("no difference\n")
	}
	if policyfile.Loosens(before, after) {
		fmt.Fprintf(&b, "loosens: waits %v after its quorum\n", before.Owners.Delay)
	} else {
		b.WriteString("tightens or keeps: takes effect with its quorum\n")
	}
	return b.String()
}

// emitDiff is the result of `policy diff`; cut is nil where no authority was
// asked whom the change cuts off.
func emitDiff(a *frame.App, before, after *policyfile.Document, cut []affectedUnit) error {
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
		Ended    []string       `json:"groups_ended,omitempty"` // by the present table [authority]
	}{Changes: []change{}, Loosens: policyfile.Loosens(before, after), Delay: before.Owners.Delay.String(), Affected: cut}
	for _, c := range policyfile.Compare(before, after) {
		v.Changes = append(v.Changes, change{Path: c.Path, Old: c.Old, New: c.New, Loosens: c.Loosens})
	}
	text := diffText(before, after)
	for _, w := range policyfile.GroupsEnded(before, after) {
		v.Ended = append(v.Ended, w.String())
		text += "warning: " + w.String() + "\n"
	}
	if cut != nil {
		text += affectedText(cut)
	}
	return a.PrintResult("policy-diff", v, text)
}
