package partystatement

import (
	"context"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"fmt"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/identity"
	"github.com/cohort-tee/cohort/internal/api"
	"github.com/cohort-tee/cohort/internal/authorityclient"
	"github.com/cohort-tee/cohort/internal/cli/frame"
	"github.com/cohort-tee/cohort/internal/cli/localtee"
	"github.com/cohort-tee/cohort/internal/wire"
	"github.com/cohort-tee/cohort/policy"
)

// Root is the root of a group with the TEE that holds it. Only [AppraisedRoot]
// makes one.
type Root struct {
	Digest attest.Digest // SHA-256 of its SubjectPublicKeyInfo
	holder attest.Result
}

// String is what was appraised, for the party that approves it.
func (g Root) String() string {
	return fmt.Sprintf("group root %s\n  kept by %s\n  on chip %s, appraised just now by the roster's own values", g.Digest, g.holder.Measurement(), g.holder.ChipID())
}

// AppraisedRoot fetches the root of a group with evidence over (nonce, roster, root), and
// appraises the evidence by the values of the roster, whatever the policy in force contains:
// the owners of the policy choose those, the parties approve these.
func AppraisedRoot(ctx context.Context, a *frame.App, c authorityclient.Client, p *policy.GroupState) (root Root, err error) {
	query := api.GroupRootRequest{Roster: p.ID()}
	unverified, evidence, err := askGroupRoot(ctx, c, p.Group.Name, &query)
	if err != nil {
		return root, err
	}
	question := attest.Question{Rules: p.Roster.AuthorityRules(), At: a.Now()}
	in, introduced, err := localtee.Verifier().UnverifiedKeys(evidence)
	if err != nil {
		return root, fmt.Errorf("reading the authority's evidence: %w", err)
	}
	if introduced {
		challenge, err := localtee.Verifier().Challenge(evidence.Platform, in)
		if err != nil {
			return root, fmt.Errorf("challenging the authority: %w", err)
		}
		query.Credential, question.Secret = challenge.Credential, challenge.SecretFor
		if unverified, evidence, err = askGroupRoot(ctx, c, p.Group.Name, &query); err != nil {
			return root, err
		}
	}
	certificate, err := x509.ParseCertificate(unverified.Root)
	if err != nil {
		return root, wire.Refuse(wire.Malformed, "group root", err, "X.509 DER")
	}
	if unverified.Roster != p.ID() {
		return root, wire.Refuse(wire.StaleRoster, "group root: roster", unverified.Roster, p.ID())
	}
	digest := wire.Sum(certificate.RawSubjectPublicKeyInfo)
	question.Evidence, question.ReportData = evidence, identity.GroupRootData(query.Nonce, p.ID(), digest)
	result, err := localtee.Verifier().Appraise(question)
	if err != nil {
		return root, err
	}
	return Root{digest, result}, p.Roster.AdmitAuthority(result)
}

// askGroupRoot asks once, with a nonce of its own.
func askGroupRoot(ctx context.Context, c authorityclient.Client, group string, query *api.GroupRootRequest) (unverified api.GroupRoot, evidence attest.Evidence, err error) {
	query.Nonce = make([]byte, 32)
	rand.Read(query.Nonce)
	if unverified, err = c.GroupRoot(ctx, group, *query); err != nil {
		return unverified, evidence, fmt.Errorf("fetching the group root: %w", err)
	}
	if err = json.Unmarshal(unverified.Evidence, &evidence); err != nil {
		err = wire.Refuse(wire.Malformed, "evidence: wrapper", err, "RFC 9999")
	}
	return unverified, evidence, err
}
