package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/internal/api"
	"github.com/cohort-tee/cohort/internal/wire"
	"github.com/cohort-tee/cohort/policy"
	"github.com/spf13/cobra"
)

const statementSchema = "cohort/statement/v1"

// statementFile keeps the newest statement that a key signed of a group on this
// machine. It is written before the statement is sent: a party whose response was
// lost sends the same bytes again, because two texts of one number count as a
// withdrawal.
type statementFile struct {
	Schema string `json:"schema"`
	policy.Said
}

// maxStatementFile bounds the file, in bytes: a statement and its signature in JSON.
const maxStatementFile = 4 * (wire.MaxStatement + wire.MaxSignature)

// statementPath is where the newest statement of a key of a group is kept.
func (a *app) statementPath(dir string, group, key attest.Digest) (string, error) {
	if dir == "" {
		var err error
		if dir, err = a.stateDir("statements"); err != nil {
			return "", fmt.Errorf("keeping the signed statement: %w", err)
		}
	}
	return filepath.Join(dir, group.Hex()+"-"+key.Hex()+".json"), nil
}

// readStatement reads a kept statement; a file that does not exist is the zero
// statement.
func readStatement(path string) (policy.Said, policy.Statement, error) {
	b, err := readFile(path, maxStatementFile)
	if errors.Is(err, os.ErrNotExist) {
		return policy.Said{}, policy.Statement{}, nil
	}
	if err != nil {
		return policy.Said{}, policy.Statement{}, err
	}
	var f statementFile
	if err := json.Unmarshal(b, &f); err != nil || f.Schema != statementSchema {
		return f.Said, policy.Statement{}, wire.Refuse(wire.Malformed, "kept statement "+path, "another file", statementSchema)
	}
	s, err := policy.ParseStatement(f.Statement)
	if err != nil {
		return f.Said, s, fmt.Errorf("reading %s: %w", path, err)
	}
	return f.Said, s, nil
}

func writeStatement(path string, said policy.Said) error {
	b, err := json.Marshal(statementFile{statementSchema, said})
	if err != nil {
		return fmt.Errorf("keeping the signed statement: %w", err)
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return err
	}
	return replaceFile(path, append(b, '\n'))
}

// numbered gives a statement its number, above that of the statement that was signed
// last here. again reports that the kept statement differs in its number alone and that
// the history has no newer one: it may have been lost on its way, so its bytes are sent
// again and no second text is signed.
func numbered(want, kept policy.Statement, p *policy.Pact) (s policy.Statement, again bool) {
	next := want.Number
	want.Number = kept.Number
	same := kept.Number > 0 && bytes.Equal(want.Bytes(), kept.Bytes())
	if same && (kept.Number >= next || p.Knows(kept.Bytes())) {
		return kept, true
	}
	want.Number = max(next, kept.Number+1)
	return want, false
}

// statementFlags are what a party's statement is made of.
type statementFlags struct {
	digest, party, key string
	notAfter           string
	kept               string // directory of statements that were signed
}

func (s *statementFlags) register(cmd *cobra.Command) {
	cmd.Flags().StringVar(&s.party, "party", "", "name of the party (default the one that has the key)")
	cmd.Flags().StringVar(&s.key, "ssh-key", "", "SSH key of the party")
	cmd.Flags().StringVar(&s.kept, "statements", "", "directory that keeps the statements signed here (default in the state directory)")
	_ = cmd.MarkFlagRequired("ssh-key")
}

func (a *app) groupApproveCommand() *cobra.Command {
	var s statementFlags
	cmd, _ := a.remote("approve GROUP --digest D", "Approve a group, as one of its parties", cobra.ExactArgs(1),
		func(ctx context.Context, c authorityClient, _ *remoteFlags, args []string) error {
			return a.stateOfGroup(ctx, c, args[0], s, policy.ForApprove)
		})
	cmd.Long = "Approve the group whose identity has the digest D, with the party's SSH key. D\n" +
		"is what the parties agreed on beside Cohort; what a server shows is never signed.\n" +
		"The group's root is fetched with evidence, which is appraised by the roster's own\n" +
		"values, and stands in the statement."
	s.register(cmd)
	cmd.Flags().StringVar(&s.digest, "digest", "", "identity of the group that is approved, from `cohort group show`")
	cmd.Flags().StringVar(&s.notAfter, "not-after", "", "end of the approval, as 2026-12-01T00:00:00Z (default the group's end)")
	_ = cmd.MarkFlagRequired("digest")
	return cmd
}

func (a *app) groupWithdrawCommand() *cobra.Command {
	var s statementFlags
	cmd, _ := a.remote("withdraw GROUP", "Withdraw from a group, as one of its parties", cobra.ExactArgs(1),
		func(ctx context.Context, c authorityClient, _ *remoteFlags, args []string) error {
			return a.stateOfGroup(ctx, c, args[0], s, policy.ForWithdraw)
		})
	s.register(cmd)
	cmd.Flags().StringVar(&s.digest, "digest", "", "identity of the group (default the one of the newest policy)")
	return cmd
}

// stateOfGroup signs and sends what a party states of a group, and prints that it is in
// the history.
func (a *app) stateOfGroup(ctx context.Context, c authorityClient, group string, s statementFlags, ns policy.Namespace) error {
	statement, heard, err := a.sayOfGroup(ctx, c, group, s, ns)
	if err != nil {
		return err
	}
	return a.emit("group-statement", heard, fmt.Sprintf("heard: statement %d of party %s, in the history up to head %s\n", statement.Number, statement.Party, heard.Head))
}

// sayOfGroup signs what a party states of a group, keeps the text, and sends it to the
// authority, whose acknowledgement it checks. The group with the digest is taken from
// the history that the authority proved, and the group's root from evidence: the
// authority's own word counts for neither.
func (a *app) sayOfGroup(ctx context.Context, c authorityClient, group string, f statementFlags, ns policy.Namespace) (s policy.Statement, heard api.StatementReceipt, err error) {
	pact, err := pactOf(c.policy, group, f.digest)
	if err != nil {
		return s, heard, err
	}
	signer, closeAgent, err := a.signer(f.key)
	if err != nil {
		return s, heard, err
	}
	defer closeAgent()
	key := policy.KeyDigest(signer.PublicKey())
	path, err := a.statementPath(f.kept, pact.ID(), key)
	if err != nil {
		return s, heard, err
	}
	said, kept, err := readStatement(path)
	if err != nil {
		return s, heard, err
	}
	root, err := a.statedRoot(ctx, c, pact, key, kept, ns)
	if err != nil {
		return s, heard, err
	}
	want, err := f.statement(pact, key, root, ns)
	if err != nil {
		return s, heard, err
	}
	s, again := numbered(want, kept, pact)
	a.say("%s", s.Bytes())
	if again {
		a.say("statement %d was signed before: sending the same bytes again", s.Number)
	} else {
		said.Statement = s.Bytes()
		if said.Signature, err = policy.Sign(signer, ns, said.Statement); err != nil {
			return s, heard, err
		}
		if err := writeStatement(path, said); err != nil {
			return s, heard, err
		}
	}
	if heard, err = c.SubmitStatement(ctx, group, api.SignedStatement(said)); err != nil {
		return s, heard, err
	}
	if err := a.acknowledged(c.policy, api.SignedStatement(said), heard); err != nil {
		return s, heard, fmt.Errorf("checking the acknowledgement: %w", err)
	}
	return s, heard, nil
}

// statement is what the flags say, with the number that the history leaves to the key.
func (f statementFlags) statement(p *policy.Pact, key, root attest.Digest, ns policy.Namespace) (policy.Statement, error) {
	s, err := p.Statement(key, root)
	if err != nil {
		return s, err
	}
	if f.party != "" && f.party != s.Party {
		return s, wire.Refuse(wire.NotOwner, "group "+p.Group.Name+": key of party", s.Party, f.party)
	}
	if s.Withdraws = ns == policy.ForWithdraw; f.notAfter != "" {
		if s.NotAfter, err = time.Parse(time.RFC3339, f.notAfter); err != nil {
			return s, usage("--not-after: got %q, want a time such as 2026-12-01T00:00:00Z", f.notAfter)
		}
	}
	return s, nil
}

// statedRoot is the group root that a statement names: of an approval the one that the
// authority proves just now, of a withdrawal one that the key approved, which ends the
// approval under every root.
func (a *app) statedRoot(ctx context.Context, c authorityClient, p *policy.Pact, key attest.Digest, kept policy.Statement, ns policy.Namespace) (attest.Digest, error) {
	if ns == policy.ForWithdraw {
		for _, s := range statements(p) {
			if s.Key == key {
				return s.GroupRoot, nil
			}
		}
		if kept.Number == 0 {
			return attest.Digest{}, wire.Refuse(wire.NotFound, "group "+p.Group.Name+": statement of this key", "none", "an approval to withdraw")
		}
		return kept.GroupRoot, nil
	}
	root, err := a.groupRoot(ctx, c, p)
	if err != nil {
		return attest.Digest{}, fmt.Errorf("appraising the root of group %s: %w", p.Group.Name, err)
	}
	a.say("%s", root)
	return root.digest, nil
}

// statements are the newest statements of a pact's parties, read.
func statements(p *policy.Pact) (all []policy.Statement) {
	for _, said := range p.Said() {
		if s, err := policy.ParseStatement(said.Statement); err == nil {
			all = append(all, s)
		}
	}
	return all
}
