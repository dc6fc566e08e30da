package policycmd

import (
	"bytes"
	"strings"
	"testing"
	"time"

	"github.com/cohort-tee/cohort/internal/cli/clitest"
	"github.com/cohort-tee/cohort/internal/cli/drafttext"
	"github.com/cohort-tee/cohort/internal/cli/frame"
	"github.com/cohort-tee/cohort/internal/testworld"
	"github.com/cohort-tee/cohort/internal/wire"
	"github.com/cohort-tee/cohort/policy/policydraft"
	"github.com/cohort-tee/cohort/policy/policyfile"
)

func TestDraftParsesAsWritten(t *testing.T) {
	d := clitest.Draft(t)
	draft, err := policydraft.Parse([]byte(d.PolicyText()))
	if err != nil {
		t.Fatalf("%v\n%s", err, d.PolicyText())
	}
	doc := draft.Document()
	release := doc.Tasks["scoring"].Releases["1"]
	if !doc.Development || doc.Owners.Quorum != 2 || len(doc.Owners.Keys) != 3 || !release.Dynamic {
		t.Errorf("got %+v, want what the draft says", doc)
	}
	want := wire.Hash(wire.LabelArguments, []byte(`a"b\c`), []byte("tab\t"), []byte("ä"))
	if got := release.References[0].Registers[2].Value; !bytes.Equal(got, want[:]) {
		t.Errorf("arguments: got %x, want %x", got, want)
	}
}

func TestSuccessor(t *testing.T) {
	draft, err := policydraft.Parse([]byte(clitest.Draft(t).PolicyText()))
	if err != nil {
		t.Fatal(err)
	}
	doc := draft.Document()
	b, err := drafttext.Successor(doc.Source(), doc.Created.Add(time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	next, err := policyfile.Parse(b)
	if err != nil {
		t.Fatal(err)
	}
	if next.Sequence != 2 || next.Previous != doc.Digest() || !next.Created.Equal(doc.Created.Add(time.Hour)) {
		t.Errorf("got %d %s %s, want the next step", next.Sequence, next.Previous, next.Created)
	}
	if changes := policyfile.Compare(doc, next); len(changes) != 0 {
		t.Errorf("got changes %v, want none", changes)
	}
}

// TestSuccessorCopiesAuthority: the step after a file with a group without a table for
// its authority gets the trust domain's.
func TestSuccessorCopiesAuthority(t *testing.T) {
	raw := strings.Replace(clitest.Policy, clitest.PolicyOwner, testworld.NewKey().AuthorizedKey(), 1) + strings.Replace(clitest.Group, clitest.Custody, "", 1)
	for letter, digit := range map[string]string{"A": "a", "B": "b", "C": "c"} {
		raw = strings.ReplaceAll(raw, `"`+letter+`"`, `"sha384:`+strings.Repeat(digit, 96)+`"`)
	}
	if _, err := policyfile.Parse([]byte(raw)); err == nil {
		t.Fatal("the group says nothing of its authority, and is taken")
	}
	b, err := drafttext.Successor([]byte(raw), time.Date(2026, 11, 23, 9, 0, 0, 0, time.UTC))
	if err != nil {
		t.Fatal(err)
	}
	next, err := policyfile.Parse(b)
	if err != nil || next.Previous != wire.Sum([]byte(raw)) {
		t.Fatalf("got previous %v, %v, want the file as it stood", next.Previous, err)
	}
	if ended := policyfile.GroupsEnded(nil, next); len(ended) != 0 || !next.Groups["trial"].Authority.Machines.Any {
		t.Errorf("got %v, want the trust domain's authority", ended)
	}
}

func TestSuccessorRefusesWhatItCannotEdit(t *testing.T) {
	for _, change := range [][2]string{{"sequence     =", `"sequence"   =`}, {"previous     =", "  previous   ="}} {
		draft, err := policydraft.Parse([]byte(strings.Replace(clitest.Draft(t).PolicyText(), change[0], change[1], 1)))
		if err != nil {
			t.Fatal(err)
		}
		doc := draft.Document()
		if _, err := drafttext.Successor(doc.Source(), doc.Created); frame.Classify(err).Code != frame.CodeUsage {
			t.Errorf("%q: got %v, want a usage fault", change[1], err)
		}
	}
}
