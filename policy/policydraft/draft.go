// Package policydraft reads the first policy before its authority root exists.
//
// Founders review a [Draft] and the authority makes its root for the digest of the draft;
// [Draft.WithRoot] returns the first policy that founders sign. The package parses the policy
// that the draft becomes, so a fault is reported before the root is made. It trusts nothing
// in the file: that a draft parses does not mean that any founder has seen it.
package policydraft

import (
	"fmt"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/internal/wire"
	"github.com/cohort-tee/cohort/policy/policyfile"
	"github.com/cohort-tee/cohort/policy/policytoml"
)

// Draft is a genesis policy as founders write it before its authority root exists:
// the whole file, with an empty `authority.root`. The authority seals its root secret
// together with the digest of the draft, so that the secret cannot serve another genesis.
// Only [Parse] makes a Draft. It is immutable; the zero Draft admits nothing.
type Draft struct {
	line policyfile.RootLine
	doc  *policyfile.Document // under a stand-in for an empty root
}

// Parse reads a genesis whose root is empty or filled in. Its error is
// [policytoml.Faults]: it refuses everything that [policyfile.Parse] refuses in the genesis
// that the draft becomes.
func Parse(raw []byte) (Draft, error) {
	line, err := policyfile.SplitRoot(raw)
	if err != nil {
		if _, malformed := policytoml.Decode(raw); malformed != nil {
			return Draft{}, malformed
		}
		return Draft{}, err
	}
	d := Draft{line: line}
	root := line.NamedRoot()
	if root.IsZero() {
		root = wire.Hash(wire.LabelDraft) // of no field, so of no draft
	}
	if d.doc, err = policyfile.Parse(line.WithRoot(root)); err != nil {
		return Draft{}, err
	}
	if d.doc.Sequence != 1 {
		return Draft{}, policytoml.Faults{{Path: "sequence", Rule: "draft", Got: fmt.Sprint(d.doc.Sequence), Want: "1: only the first policy has a draft"}}
	}
	return d, nil
}

// Digest returns H("cohort draft v1", the file without the root's value).
func (d Draft) Digest() wire.Digest { return d.line.DraftDigest() }

// NamedRoot returns the root that the file names, or the zero digest if it names none.
func (d Draft) NamedRoot() wire.Digest { return d.line.NamedRoot() }

// Source returns the file as it was read.
func (d Draft) Source() []byte { return d.line.Source() }

// WithRoot returns the genesis that the draft becomes with a root. It refuses, with
// "authority-root", a file that names another.
func (d Draft) WithRoot(root wire.Digest) ([]byte, error) {
	if named := d.line.NamedRoot(); !named.IsZero() && named != root {
		return nil, wire.Refuse(wire.WrongRoot, "draft: authority root", named, root)
	}
	return d.line.WithRoot(root), nil
}

// Document returns the genesis, nil in the zero Draft. Where the draft names no root,
// the document names a stand-in that is the root of no secret.
func (d Draft) Document() *policyfile.Document { return d.doc }

// Rules returns the draft's rules for each platform, for appraisal.
func (d Draft) Rules() map[attest.Platform]attest.Rules {
	if d.doc == nil {
		return nil
	}
	return d.doc.Platforms
}

// AdmitAuthority matches a result with the draft's rules for the authority, as
// policy.Approved.AdmitAuthority does. Founders call it before anything is signed.
func (d Draft) AdmitAuthority(result attest.Result) error {
	if d.doc == nil {
		return wire.Refuse(wire.BadPolicy, "draft: policy", "the zero draft", "a draft that was parsed")
	}
	return d.doc.Authority.Admit(result)
}
