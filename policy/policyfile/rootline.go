package policyfile

import (
	"bytes"
	"errors"
	"fmt"

	"github.com/cohort-tee/cohort/internal/wire"
	"github.com/cohort-tee/cohort/policy/policytoml"
)

// RootLine is a genesis file, split at the value of its authority root. [SplitRoot] does
// not read TOML: [Parse] compares the two.
type RootLine struct {
	before, after []byte
	root          wire.Digest // zero while the value is empty
}

// Lines of a genesis that its draft is found by.
const (
	authorityLine = "[authority]"
	rootPrefix    = `root = "`
)

// SplitRoot finds the value of the root: in the one line that begins `root = "` between
// the line `[authority]` and the next line that begins with `[`.
func SplitRoot(raw []byte) (RootLine, error) {
	var r RootLine
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
				return RootLine{}, rootFault("a value without its end", wantRootLine)
			}
			r.before, r.after = raw[:value], raw[value+end:]
			if err := r.readRoot(raw[value : value+end]); err != nil {
				return RootLine{}, err
			}
		}
		at += len(line)
	}
	if sections != 1 || roots != 1 {
		return RootLine{}, rootFault(fmt.Sprintf("%d lines %s, %d lines %s inside", sections, authorityLine, roots, rootPrefix), "exactly one of each")
	}
	return r, nil
}

const wantRootLine = `root = "" in a draft, else ` + rootPrefix + "sha256:, 64 lower-case hexadecimal digits and a quote"

// readRoot reads the value; two quotes followed by a third would begin other TOML.
func (r *RootLine) readRoot(value []byte) error {
	if len(value) == 0 {
		if bytes.HasPrefix(r.after, []byte(`""`)) {
			return rootFault("three quotes", wantRootLine)
		}
		return nil
	}
	if !policytoml.DecodeDigest(&r.root, string(value)) {
		return rootFault(string(value), wantRootLine)
	}
	return nil
}

func rootFault(got, want string) error {
	return policytoml.Faults{{Path: "authority.root", Rule: "line of the root", Got: got, Want: want}}
}

// NamedRoot returns the root that the file names, or the zero digest.
func (r RootLine) NamedRoot() wire.Digest { return r.root }

// Source returns the file as it was read.
func (r RootLine) Source() []byte {
	if r.root.IsZero() {
		return r.withoutRoot()
	}
	return r.WithRoot(r.root)
}

// WithRoot returns the file with a root as the value.
func (r RootLine) WithRoot(root wire.Digest) []byte {
	return bytes.Join([][]byte{r.before, []byte(root.String()), r.after}, nil)
}

// withoutRoot returns the file without the root's value.
func (r RootLine) withoutRoot() []byte { return bytes.Join([][]byte{r.before, r.after}, nil) }

// DraftDigest returns H("cohort draft v1", the file without the root's value).
func (r RootLine) DraftDigest() wire.Digest { return wire.Hash(wire.LabelDraft, r.withoutRoot()) }

// checkRootLine demands that the root of a genesis is in the one line that [SplitRoot]
// finds, and that TOML reads it from that line.
func (d *Document) checkRootLine(faults *policytoml.Faults) {
	if d.Sequence != 1 || d.Authority.Root.IsZero() {
		return // not a genesis, or already a fault
	}
	found, err := SplitRoot(d.raw)
	var bad policytoml.Faults
	switch {
	case errors.As(err, &bad):
		*faults = append(*faults, bad...)
	case found.root != d.Authority.Root:
		faults.Add("authority.root", "line of the root", found.root, d.Authority.Root)
	}
}
