package policy

import (
	"bytes"
	"errors"
	"fmt"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/internal/wire"
)

// Draft is a genesis policy as founders write it before its authority root exists:
// the whole file, with an empty `authority.root`. The authority seals its root
// secret together with the digest of the draft, so that the secret serves no
// other genesis. A Draft is made by [ParseDraft] alone, and is immutable.
type Draft struct {
	before, after []byte      // the file around the root's value
	root          wire.Digest // zero while the value is empty
	doc           *Document   // under a stand-in for an empty root
}

// Lines of a genesis that its draft is found by.
const (
	authorityLine = "[authority]"
	rootPrefix    = `root = "`
)

// ParseDraft reads a genesis with an empty root, or one whose root is filled in.
// Its error is [Faults]: the file is refused for whatever [Parse] refuses in the
// genesis that it becomes, so that no mistake is found only after its root is made.
func ParseDraft(raw []byte) (Draft, error) {
	d, err := splitRoot(raw)
	if err != nil {
		if _, malformed := decode(raw); malformed != nil {
			return Draft{}, malformed
		}
		return Draft{}, err
	}
	root := d.root
	if root.IsZero() {
		root = wire.Hash(wire.LabelDraft) // of no field, so of no draft
	}
	if d.doc, err = Parse(d.with(root)); err != nil {
		return Draft{}, err
	}
	if d.doc.Sequence != 1 {
		return Draft{}, Faults{{Path: "sequence", Rule: "draft", Got: fmt.Sprint(d.doc.Sequence), Want: "1: only the first policy has a draft"}}
	}
	return d, nil
}

// Digest is H("cohort draft v1", the file without the root's value).
func (d Draft) Digest() wire.Digest {
	return wire.Hash(wire.LabelDraft, bytes.Join([][]byte{d.before, d.after}, nil))
}

// Root is the root that the file names, the zero digest while it names none.
func (d Draft) Root() wire.Digest { return d.root }

// Raw is the file as it was read.
func (d Draft) Raw() []byte {
	if d.root.IsZero() {
		return bytes.Join([][]byte{d.before, d.after}, nil)
	}
	return d.with(d.root)
}

// Fill is the genesis that the draft becomes with a root. It refuses, with
// "authority-root", a file that names another.
func (d Draft) Fill(root wire.Digest) ([]byte, error) {
	if !d.root.IsZero() && d.root != root {
		return nil, wire.Refuse(wire.WrongRoot, "draft: authority root", d.root, root)
	}
	return d.with(root), nil
}

func (d Draft) with(root wire.Digest) []byte {
	return bytes.Join([][]byte{d.before, []byte(root.String()), d.after}, nil)
}

// Document is the genesis, nil in the zero Draft. Where the draft names no root,
// the document names a stand-in that is the root of no secret.
func (d Draft) Document() *Document { return d.doc }

// Rules are what the draft says about each platform, for appraisal.
func (d Draft) Rules() map[attest.Platform]attest.Rules {
	if d.doc == nil {
		return nil
	}
	return d.doc.Platforms
}

// AdmitAuthority matches a result with what the draft demands of the authority, as
// [Approved.AdmitAuthority] does. Founders ask before anything is signed.
func (d Draft) AdmitAuthority(result attest.Result) error {
	if d.doc == nil {
		return errNothing
	}
	return d.doc.admitAuthority(result)
}

// splitRoot finds the value of the root: in the one line that begins `root = "`
// between the line `[authority]` and the next line that begins with `[`. What
// is found is not yet known to be what TOML reads; Parse compares.
func splitRoot(raw []byte) (Draft, error) {
	var d Draft
	var sections, roots int
	inside, at := false, 0
	for line := range bytes.Lines(raw) {
		text := bytes.TrimSuffix(line, []byte("\n"))
		switch {
		case string(text) == authorityLine:
			inside = true
			sections++
		case bytes.HasPrefix(text, []byte("[")):
			inside = false
		case inside && bytes.HasPrefix(text, []byte(rootPrefix)):
			roots++
			value := at + len(rootPrefix)
			end := bytes.IndexByte(text[len(rootPrefix):], '"')
			if end < 0 {
				return Draft{}, rootFault("a value without its end", wantRootLine)
			}
			d.before, d.after = raw[:value], raw[value+end:]
			if err := d.readRoot(raw[value : value+end]); err != nil {
				return Draft{}, err
			}
		}
		at += len(line)
	}
	if sections != 1 || roots != 1 {
		return Draft{}, rootFault(fmt.Sprintf("%d lines %s, %d lines %s inside", sections, authorityLine, roots, rootPrefix), "exactly one of each")
	}
	return d, nil
}

const wantRootLine = `root = "" in a draft, else ` + rootPrefix + "sha256:, 64 lower-case hexadecimal digits and a quote"

// readRoot reads the value; two quotes followed by a third would begin other TOML.
func (d *Draft) readRoot(value []byte) error {
	if len(value) == 0 {
		if bytes.HasPrefix(d.after, []byte(`""`)) {
			return rootFault("three quotes", wantRootLine)
		}
		return nil
	}
	if !digestInto(&d.root, string(value)) {
		return rootFault(string(value), wantRootLine)
	}
	return nil
}

func rootFault(got, want string) error {
	return Faults{{Path: "authority.root", Rule: "line of the root", Got: got, Want: want}}
}

// checkRootLine demands of a genesis the one line that its draft is found by, and
// that TOML reads its root from that line and from nowhere else.
func (d *Document) checkRootLine(faults *Faults) {
	if d.Sequence != 1 || d.Authority.Root.IsZero() {
		return // not a genesis, or already a fault
	}
	found, err := splitRoot(d.raw)
	var bad Faults
	switch {
	case errors.As(err, &bad):
		*faults = append(*faults, bad...)
	case found.root != d.Authority.Root:
		faults.add("authority.root", "line of the root", found.root, d.Authority.Root)
	}
}
