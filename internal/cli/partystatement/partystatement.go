// Package partystatement signs what a party of a group states, an approval or a withdrawal,
// keeps the signed text, and sends it to the authority.
//
// The group is taken from the history that the authority proved, and the root of the group from
// fresh evidence, which is appraised by the values of the roster: the authority's word counts
// for neither. It refuses an acknowledgement that the authority's key did not sign.
package partystatement

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/identity"
	"github.com/cohort-tee/cohort/internal/api"
	"github.com/cohort-tee/cohort/internal/authorityclient"
	"github.com/cohort-tee/cohort/internal/cli/frame"
	"github.com/cohort-tee/cohort/internal/cli/sshkey"
	"github.com/cohort-tee/cohort/internal/wire"
	"github.com/cohort-tee/cohort/policy"
	"github.com/cohort-tee/cohort/policy/sshsig"
	"github.com/spf13/cobra"
)

// PactOf finds a group of the policy, with exactly the digest that was given.
func PactOf(p policy.Approved, group, digest string) (*policy.GroupState, error) {
	pact := p.GroupByName(group)
	if pact == nil {
		return nil, wire.Refuse(wire.NotFound, "group", group, strings.Join(p.Document().GroupNames(), ", "))
	}
	if digest == "" {
		return pact, nil
	}
	id, err := wire.ParseDigest(digest)
	if err != nil {
		return nil, frame.Usage("--digest: %w", err)
	}
	of := p.GroupByID(id)
	if of == nil || of.Group.Name != group {
		return nil, wire.Refuse(wire.StaleRoster, "group "+group+": identity", pact.ID(), id)
	}
	return of, nil
}

// acknowledged demands the authority's signature that the statement is in the
// history.
func acknowledged(a *frame.App, p policy.Approved, signed api.SignedStatement, h api.StatementReceipt) error {
	if h.Statement != wire.Sum(signed.Statement) || len(h.Chain) != 2 {
		return wire.Refuse(wire.BadDigest, "acknowledgement: statement", h.Statement, wire.Sum(signed.Statement))
	}
	var chain []*x509.Certificate
	for _, der := range h.Chain {
		c, err := x509.ParseCertificate(der)
		if err != nil {
			return wire.Refuse(wire.Malformed, "acknowledgement: certificate", err, "X.509, DER")
		}
		chain = append(chain, c)
	}
	_, err := identity.Check(chain[:1], chain[1], identity.Expect{
		Policy: p, Kinds: []identity.Kind{identity.KindAuthority}, Use: identity.UseSigning, At: a.Now(),
	})
	if err != nil {
		return err
	}
	if chain[0].CheckSignature(x509.ECDSAWithSHA256, api.StatementReceiptMessage(h), h.Signature) != nil {
		return wire.Refuse(wire.BadSignature, "acknowledgement: signature", "a signature that its certificate does not verify", "the authority's")
	}
	return nil
}

const statementSchema = "cohort/statement/v1"

// statementFile keeps the newest statement that a key signed of a group on this
// machine. It is written before the statement is sent: a party whose response was
// lost sends the same bytes again, because two texts of one number count as a
// withdrawal.
type statementFile struct {
	Schema string `json:"schema"`
	policy.SignedStatement
}

// maxStatementFile bounds the file, in bytes: a statement and its signature in JSON.
const maxStatementFile = 4 * (wire.MaxStatement + wire.MaxSignature)

// statementPath is where the newest statement of a key of a group is kept.
func statementPath(a *frame.App, dir string, group, key attest.Digest) (string, error) {
	if dir == "" {
		var err error
		if dir, err = a.StateDir("statements"); err != nil {
			return "", fmt.Errorf("keeping the signed statement: %w", err)
		}
	}
	return filepath.Join(dir, group.Hex()+"-"+key.Hex()+".json"), nil
}

// readStatement reads a kept statement; a file that does not exist is the zero
// statement.
func readStatement(path string) (policy.SignedStatement, policy.Statement, error) {
	b, err := frame.ReadFile(path, maxStatementFile)
	if errors.Is(err, os.ErrNotExist) {
		return policy.SignedStatement{}, policy.Statement{}, nil
	}
	if err != nil {
		return policy.SignedStatement{}, policy.Statement{}, err
	}
	var f statementFile
	if err := json.Unmarshal(b, &f); err != nil || f.Schema != statementSchema {
		return f.SignedStatement, policy.Statement{}, wire.Refuse(wire.Malformed, "kept statement "+path, fmt.Sprintf("schema %q", f.Schema), statementSchema)
	}
	s, err := policy.ParseStatement(f.Statement)
	if err != nil {
		return f.SignedStatement, s, fmt.Errorf("reading %s: %w", path, err)
	}
	return f.SignedStatement, s, nil
}

func writeStatement(path string, signed policy.SignedStatement) error {
	b, err := json.Marshal(statementFile{statementSchema, signed})
	if err != nil {
		return fmt.Errorf("keeping the signed statement: %w", err)
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return err
	}
	return frame.ReplaceFile(path, append(b, '\n'))
}

// numbered sets the number of a statement, above that of the statement that was signed
// last here. again reports that the kept statement differs in its number alone and that
// the history has no newer one: it may have been lost on its way, so its bytes are sent
// again and no second text is signed.
func numbered(want, kept policy.Statement, p *policy.GroupState) (s policy.Statement, again bool) {
	next := want.Number
	want.Number = kept.Number
	same := kept.Number > 0 && bytes.Equal(want.Bytes(), kept.Bytes())
	if same && (kept.Number >= next || p.Knows(kept.Bytes())) {
		return kept, true
	}
	want.Number = max(next, kept.Number+1)
	return want, false
}

// Flags are what a party's statement is made of.
type Flags struct {
	Digest, Party, Key string
	NotAfter           string
	Kept               string // directory of statements that were signed
}

// Register adds the flags to a command.
func (s *Flags) Register(cmd *cobra.Command) {
	cmd.Flags().StringVar(&s.Party, "party", "", "name of the party (default the one that has the key)")
	cmd.Flags().StringVar(&s.Key, "ssh-key", "", "SSH key of the party")
	cmd.Flags().StringVar(&s.Kept, "statements", "", "directory that keeps the statements signed here (default in the state directory)")
	_ = cmd.MarkFlagRequired("ssh-key")
}

// Submit signs what a party states of a group, keeps the text, and sends it to the
// authority, whose acknowledgement it checks. The group with the digest is taken from
// the history that the authority proved, and the group's root from evidence: the
// authority's own word counts for neither.
func Submit(ctx context.Context, a *frame.App, c authorityclient.Client, group string, f Flags, ns sshsig.Namespace) (s policy.Statement, receipt api.StatementReceipt, err error) {
	pact, err := PactOf(c.Approved, group, f.Digest)
	if err != nil {
		return s, receipt, err
	}
	signer, closeAgent, err := sshkey.Signer(a, f.Key)
	if err != nil {
		return s, receipt, err
	}
	defer closeAgent()
	key := sshsig.KeyDigest(signer.PublicKey())
	path, err := statementPath(a, f.Kept, pact.ID(), key)
	if err != nil {
		return s, receipt, err
	}
	signed, kept, err := readStatement(path)
	if err != nil {
		return s, receipt, err
	}
	root, err := statedRoot(ctx, a, c, pact, key, kept, ns)
	if err != nil {
		return s, receipt, err
	}
	want, err := f.statement(pact, key, root, ns)
	if err != nil {
		return s, receipt, err
	}
	s, again := numbered(want, kept, pact)
	a.Notef("%s", s.Bytes())
	if again {
		a.Notef("statement %d was signed before: sending the same bytes again", s.Number)
	} else {
		signed.Statement = s.Bytes()
		if signed.Signature, err = sshsig.Sign(signer, ns, signed.Statement); err != nil {
			return s, receipt, err
		}
		if err := writeStatement(path, signed); err != nil {
			return s, receipt, err
		}
	}
	if receipt, err = c.SubmitStatement(ctx, group, api.SignedStatement(signed)); err != nil {
		return s, receipt, err
	}
	if err := acknowledged(a, c.Approved, api.SignedStatement(signed), receipt); err != nil {
		return s, receipt, fmt.Errorf("checking the acknowledgement: %w", err)
	}
	return s, receipt, nil
}

// statement is the statement of the flags, with the number that the history leaves to the key.
func (f Flags) statement(p *policy.GroupState, key, root attest.Digest, ns sshsig.Namespace) (policy.Statement, error) {
	s, err := p.Statement(key, root)
	if err != nil {
		return s, err
	}
	if f.Party != "" && f.Party != s.Party {
		return s, wire.Refuse(wire.NotOwner, "group "+p.Group.Name+": key of party", s.Party, f.Party)
	}
	if s.Withdraws = ns == sshsig.ForWithdraw; f.NotAfter != "" {
		if s.NotAfter, err = time.Parse(time.RFC3339, f.NotAfter); err != nil {
			return s, frame.Usage("--not-after: got %q, want a time such as 2026-12-01T00:00:00Z", f.NotAfter)
		}
	}
	return s, nil
}

// statedRoot is the group root that a statement names: of an approval the one that the
// authority proves just now, of a withdrawal one that the key approved, which ends the
// approval under every root.
func statedRoot(ctx context.Context, a *frame.App, c authorityclient.Client, p *policy.GroupState, key attest.Digest, kept policy.Statement, ns sshsig.Namespace) (attest.Digest, error) {
	if ns == sshsig.ForWithdraw {
		for _, s := range Statements(p) {
			if s.Key == key {
				return s.GroupRoot, nil
			}
		}
		if kept.Number == 0 {
			return attest.Digest{}, wire.Refuse(wire.NotFound, "group "+p.Group.Name+": statement of this key", "no approval signed by it", "an approval to withdraw")
		}
		return kept.GroupRoot, nil
	}
	root, err := AppraisedRoot(ctx, a, c, p)
	if err != nil {
		return attest.Digest{}, fmt.Errorf("appraising the root of group %s: %w", p.Group.Name, err)
	}
	a.Notef("%s", root)
	return root.Digest, nil
}

// Statements are the newest statements of a pact's parties, read.
func Statements(p *policy.GroupState) (all []policy.Statement) {
	for _, signed := range p.SignedStatements() {
		if s, err := policy.ParseStatement(signed.Statement); err == nil {
			all = append(all, s)
		}
	}
	return all
}
