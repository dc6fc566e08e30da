package clitest

import (
	"os"
	"strings"
	"testing"
	"time"

	"github.com/cohort-tee/cohort/internal/cli/drafttext"
	"github.com/cohort-tee/cohort/internal/cli/sshkey"
	"github.com/cohort-tee/cohort/internal/wire"
	"github.com/cohort-tee/cohort/policy"
	"github.com/cohort-tee/cohort/policy/policydraft"
	"github.com/cohort-tee/cohort/policy/policyfile"
	"github.com/cohort-tee/cohort/policy/sshsig"
	"golang.org/x/crypto/ssh"
)

const Policy = `schema = "cohort/policy/v1"
trust_domain = "clinic.example"
sequence = 1
previous = ""
created = 2026-11-22T09:00:00Z
[owners]
quorum = 1
approve_within = "168h"
delay = "0s"
keys = [ { name = "ana", ssh = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIBK0z9HK0HpCq0HnJ7rPAxQ7mOQeWf0BCKxV0GmWwv7a" } ]
[platform.tdx]
roots = ["sha256:1111111111111111111111111111111111111111111111111111111111111111"]
chips = "any"
[authority]
root = "sha256:3333333333333333333333333333333333333333333333333333333333333333"
machines = "any"
reference = [ { platform = "tdx", any = ["mrtd", "mrconfigid", "rtmr0", "rtmr1", "rtmr2"], rtmr3 = "A" } ]
[task.scoring]
key_mode = "shared"
[task.scoring.release.1]
reference = [ { platform = "tdx", any = ["mrtd", "mrconfigid", "rtmr0", "rtmr1", "rtmr2"], rtmr3 = "B" } ]
[task.scoring.release.2]
reference = [ { platform = "tdx", any = ["mrtd", "mrconfigid", "rtmr0", "rtmr1", "rtmr2"], rtmr3 = "C" } ]
`

// Parsed is the policy above, edited.
func Parsed(t *testing.T, edits ...string) *policyfile.Document {
	t.Helper()
	text := Policy
	for i := 0; i < len(edits); i += 2 {
		if !strings.Contains(text, edits[i]) {
			t.Fatalf("the policy has no %q", edits[i])
		}
		text = strings.Replace(text, edits[i], edits[i+1], 1)
	}
	register := func(digit string) string { return "sha384:" + strings.Repeat(digit, 96) }
	text = strings.NewReplacer(`"A"`, `"`+register("a")+`"`, `"B"`, `"`+register("b")+`"`, `"C"`, `"`+register("c")+`"`, `"D"`, `"`+register("d")+`"`).Replace(text)
	doc, err := policyfile.Parse([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return doc
}

// Custody is the table of the group below for its authority.
const Custody = `authority = { machines = "any", platform = { tdx = { chips = "any", roots = ["sha256:1111111111111111111111111111111111111111111111111111111111111111"] } }, reference = [ { platform = "tdx", any = ["mrtd", "mrconfigid", "rtmr0", "rtmr1", "rtmr2"], rtmr3 = "A" } ] }
`

// Group is a group of the policy above.
const Group = `[group.trial]
key_mode = "shared"
quorum = 1
until = 2026-12-01T00:00:00Z
` + Custody + `party = [ { name = "east", ssh = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIBK0z9HK0HpCq0HnJ7rPAxQ7mOQeWf0BCKxV0GmWwv7a" } ]
[group.trial.role]
asker = { members = [ { party = "east", task = "scoring", release = "1" } ], calls = ["scorer"] }
scorer = { members = [ { party = "east", task = "scoring", release = "2" } ] }
`

// PolicyOwner is the owner of the policy above, whose private key no test has.
const PolicyOwner = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIBK0z9HK0HpCq0HnJ7rPAxQ7mOQeWf0BCKxV0GmWwv7a"

// ApprovedTwice makes a history of two policies, and returns both stages of it.
func ApprovedTwice(t *testing.T) (first, second policy.Approved) {
	t.Helper()
	first, second, _ = ApprovedForks(t)
	return first, second
}

// ApprovedForks makes two histories of one genesis, and returns their stages.
func ApprovedForks(t *testing.T) (first, second, fork policy.Approved) {
	t.Helper()
	o := sshkey.Pair{Name: "one", Path: t.TempDir() + "/one"}
	if err := sshkey.WritePair(o); err != nil {
		t.Fatal(err)
	}
	d := Draft(t)
	var err error
	if d.Owners, err = drafttext.Owners([]string{o.Name + "=" + o.Path + ".pub"}); err != nil {
		t.Fatal(err)
	}
	d.Quorum = 1
	step := func(raw []byte) policy.Step {
		pem, err := os.ReadFile(o.Path)
		if err != nil {
			t.Fatal(err)
		}
		signer, err := ssh.ParsePrivateKey(pem)
		if err != nil {
			t.Fatal(err)
		}
		sig, err := sshsig.Sign(signer, sshsig.ForPolicy, raw)
		if err != nil {
			t.Fatal(err)
		}
		return policy.Step{Policy: raw, Signatures: []string{sig}}
	}
	draft, err := policydraft.Parse([]byte(d.PolicyText()))
	if err != nil {
		t.Fatal(err)
	}
	raw := draft.Document().Source()
	if first, err = policy.Genesis(wire.Sum(raw), step(raw)); err != nil {
		t.Fatal(err)
	}
	next := func(created time.Time) policy.Approved {
		raw, err := drafttext.Successor(first.Document().Source(), created)
		if err != nil {
			t.Fatal(err)
		}
		approved, err := first.Next(step(raw))
		if err != nil {
			t.Fatal(err)
		}
		return approved
	}
	return first, next(d.Created.Add(time.Hour)), next(d.Created.Add(2 * time.Hour))
}
