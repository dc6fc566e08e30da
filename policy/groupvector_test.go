package policy

import (
	"encoding/hex"
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/cohort-tee/cohort/internal/wire"
	"github.com/cohort-tee/cohort/policy/policyfile"
	"github.com/cohort-tee/cohort/policy/policytest"
)

// groupVectors returns the roster and the approval of the vectors.
func groupVectors() (Roster, Statement) {
	member := func(party, task, release, id string) RosterMember {
		return RosterMember{policyfile.Member{Party: party, Task: task, Release: release}, policytest.Digest(id)}
	}
	r := Roster{
		TrustDomain: "clinic.example", Root: policytest.Digest("1"), Genesis: policytest.Digest("2"), Group: "trial", Quorum: 2, KeyMode: policyfile.Shared, Until: policytest.Start, Floors: "{  }",
		Authority: `{ machines = "any", platform = { soft = { roots = ["` + policytest.Digest("7").String() + `"] } }, reference = [{ platform = "soft", program = "` + policytest.Digest("8").String() + `" }] }`,
		Parties:   []RosterParty{{"north", policytest.Digest("3")}, {"south", policytest.Digest("4")}},
		Roles: []RosterRole{
			{Name: "holder", Members: []RosterMember{member("north", "keys", "1.4", "5")}},
			{Name: "scorer", Calls: []string{"holder"}, Members: []RosterMember{member("south", "scoring", "2026.11", "6")}},
		},
	}
	return r, Statement{TrustDomain: r.TrustDomain, Genesis: r.Genesis, Group: r.ID(), GroupRoot: policytest.Digest("9"), Party: "north", Key: policytest.Digest("3"), Number: 1, NotAfter: policytest.Start}
}

// TestGroupVectors: the bytes of a roster and of both kinds of statements never change.
func TestGroupVectors(t *testing.T) {
	r, approve := groupVectors()
	withdraw := approve
	withdraw.Number, withdraw.Withdraws = 2, true
	for name, got := range map[string]string{
		"roster.hex": hex.EncodeToString(r.Bytes()) + "\n", "identity.txt": r.ID().String() + "\n",
		"approve.txt": string(approve.Bytes()), "withdraw.txt": string(withdraw.Bytes()),
	} {
		path := filepath.Join(policytest.Vectors, "group", name)
		if *policytest.Update {
			if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		if want := policytest.ReadVector(t, "group", name); got != string(want) {
			t.Errorf("%s: got %q, want %q", name, got, want)
		}
	}
	raw, err := hex.DecodeString(strings.TrimSpace(string(policytest.ReadVector(t, "group", "roster.hex"))))
	if err != nil {
		t.Fatal(err)
	}
	if parsed, err := ParseRoster(raw); err != nil || parsed.ID() != r.ID() {
		t.Errorf("parsing the vector: %v", err)
	}
}

// groupVector is a statement as text, or a roster in hexadecimal, with the expected result of
// parsing it.
type groupVector struct {
	Name   string `json:"name"`
	Text   string `json:"text,omitempty"`
	Roster string `json:"roster,omitempty"`
	Expect string `json:"expect"` // "ok", or the reason
}

// TestGroupTexts: each smallest change of a good statement or roster is parsed or refused as in
// the vectors.
func TestGroupTexts(t *testing.T) {
	roster, approve := groupVectors()
	var made []groupVector
	text := func(name, expect string, edits ...string) {
		made = append(made, groupVector{Name: name, Text: strings.NewReplacer(edits...).Replace(string(approve.Bytes())), Expect: expect})
	}
	text("approval", "ok")
	text("withdrawal", "ok", "approve/v1", "withdraw/v1")
	text("highest number", "ok", "number = 1", "number = 9223372036854775807")
	for name, edit := range map[string][]string{
		"number 2^63": {"number = 1", "number = 9223372036854775808"}, "number 2^64-1": {"number = 1", "number = 18446744073709551615"},
		"number 0": {"number = 1", "number = 0"}, "number with a zero before it": {"number = 1", "number = 01"}, "another schema": {"approve/v1", "approve/v2"},
		"no group root": {"group_root = \"" + policytest.Digest("9").String() + "\"\n", ""}, "group root of zeros": {strings.Repeat("9", 64), strings.Repeat("0", 64)},
		"no key": {"key = \"" + policytest.Digest("3").String() + "\"\n", ""}, "key of zeros": {strings.Repeat("3", 64), strings.Repeat("0", 64)},
		"party in capitals": {"north", "North"}, "time with an offset": {"09:00:00Z", "09:00:00+00:00"}, "CR": {"\n", "\r\n"},
		"a line more": {"number = 1", "number = 1\n"}, "another order": {"party = \"north\"\n", "", "number = 1\n", "number = 1\nparty = \"north\"\n"},
	} {
		text(name, string(wire.Malformed), edit...)
	}
	change := func(name, expect string, edit func(*Roster)) {
		r := roster
		edit(&r)
		made = append(made, groupVector{Name: name, Roster: hex.EncodeToString(r.Bytes()), Expect: expect})
	}
	change("roster", "ok", func(*Roster) {})
	change("roster that names no authority", string(wire.Malformed), func(r *Roster) { r.Authority = "" })
	change("authority with another space", string(wire.Malformed), func(r *Roster) { r.Authority = strings.Replace(r.Authority, "{ ", "{  ", 1) })
	change("authority by a name", string(wire.Malformed), func(r *Roster) {
		r.Authority = strings.Replace(r.Authority, policytest.Digest("8").String(), "@agent-1", 1)
	})
	change("quorum above the parties", string(wire.Malformed), func(r *Roster) { r.Quorum = 3 })
	slices.SortStableFunc(made, func(a, b groupVector) int { return strings.Compare(a.Name, b.Name) })
	path := filepath.Join(policytest.Vectors, "group", "texts.json")
	if *policytest.Update {
		b, err := json.MarshalIndent(made, "", "  ")
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, append(b, '\n'), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	var all []groupVector
	if err := json.Unmarshal([]byte(policytest.ReadVector(t, "group", "texts.json")), &all); err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(all, made) {
		t.Error("the vectors are others than this test makes: -update writes them")
	}
	for _, v := range all {
		_, err := ParseStatement([]byte(v.Text))
		if v.Roster != "" {
			raw, bad := hex.DecodeString(v.Roster)
			if bad != nil {
				t.Fatal(bad)
			}
			_, err = ParseRoster(raw)
		}
		got := "ok"
		if err != nil {
			got = string(wire.ReasonOf(err))
		}
		if got != v.Expect {
			t.Errorf("%s: got %s (%v), want %s", v.Name, got, err, v.Expect)
		}
	}
}
