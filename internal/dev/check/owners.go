package check

import (
	"context"
	"fmt"
	"path/filepath"
	"strings"
	"time"

	"github.com/cohort-tee/cohort/internal/api"
	"github.com/cohort-tee/cohort/internal/authorityclient"
	"github.com/cohort-tee/cohort/internal/cli/drafttext"
	"github.com/cohort-tee/cohort/internal/cli/localtee"
	"github.com/cohort-tee/cohort/internal/cli/sshkey"
	"github.com/cohort-tee/cohort/internal/dev"
	"github.com/cohort-tee/cohort/policy"
	"github.com/cohort-tee/cohort/policy/sshsig"
)

// Edit changes the text of a policy.
type Edit func(text string) (string, error)

// Replaced returns an Edit that replaces a text, which must occur exactly once.
func Replaced(old, with string) Edit {
	return func(text string) (string, error) {
		if strings.Count(text, old) != 1 {
			return "", fmt.Errorf("the policy has %d places of %q, want one", strings.Count(text, old), old)
		}
		return strings.Replace(text, old, with, 1), nil
	}
}

// After returns an Edit that inserts more after a text, which must occur exactly once.
func After(text, more string) Edit { return Replaced(text, text+more) }

// Appended returns an Edit that appends more to the policy.
func Appended(more string) Edit { return func(text string) (string, error) { return text + more, nil } }

// PolicyText returns the text of the policy in force.
func (c Checker) PolicyText(ctx context.Context) (string, error) {
	a, err := authorityclient.Dial(ctx, c.App, c.ClientPins())
	if err != nil {
		return "", err
	}
	defer a.Close()
	return string(a.Approved.Document().Source()), nil
}

// Adopt signs a text as a quorum of owners and proposes it as the next policy, which the
// authority must adopt. It sets the sequence, predecessor and time in the text.
func (c Checker) Adopt(ctx context.Context, text string) error {
	a, err := authorityclient.Dial(ctx, c.App, c.ClientPins())
	if err != nil {
		return err
	}
	defer a.Close()
	next, err := drafttext.Placed(text, a.Approved.Document().Sequence, a.Approved.Document().Digest(), time.Now())
	if err != nil {
		return err
	}
	owners, err := dev.Owners(filepath.Join(filepath.Dir(c.Cluster.Manager.Data), "owners"))
	if err != nil {
		return err
	}
	request := api.ProposeRequest{Policy: next}
	for _, o := range owners[:a.Approved.Document().Owners.Quorum] {
		sig, err := sshkey.Sign(c.App, o.Path, sshsig.ForPolicy, next)
		if err != nil {
			return err
		}
		request.Signatures = append(request.Signatures, sig)
	}
	adopted, err := a.Propose(ctx, request)
	if err == nil && adopted.State != string(policy.Adopted) {
		err = fmt.Errorf("the proposal is %s, want it adopted", adopted.State)
	}
	return err
}

// Approve appends a release to the policy in force, signs the result as a quorum of owners, and
// proposes it.
func Approve(ctx context.Context, d *dev.Cluster, release int, m localtee.Measurement) error {
	a, err := authorityclient.Dial(ctx, d.App, d.ClientPins())
	if err != nil {
		return err
	}
	defer a.Close()
	text, err := drafttext.Successor(a.Approved.Document().Source(), d.App.Now())
	if err != nil {
		return err
	}
	t := drafttext.Task{Name: d.Doc.Task, Release: fmt.Sprint(release), References: []string{m.Reference}, Dynamic: m.Dynamic}
	text = append(text, t.Continuing(fmt.Sprint(release-1))...)
	owners, err := dev.Owners(filepath.Join(d.State, "owners"))
	if err != nil {
		return err
	}
	request := api.ProposeRequest{Policy: text}
	for _, o := range owners[:a.Approved.Document().Owners.Quorum] {
		sig, err := sshkey.SignPolicy(d.App, o.Path, text)
		if err != nil {
			return err
		}
		request.Signatures = append(request.Signatures, sig)
	}
	_, err = a.Propose(ctx, request)
	return err
}
