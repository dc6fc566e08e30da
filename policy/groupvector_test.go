package policy

import (
	"encoding/hex"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestGroupVectors: the bytes of a roster and of both statements never change.
func TestGroupVectors(t *testing.T) {
	member := func(party, task, release, id string) RosterMember {
		return RosterMember{Member{party, task, release}, digest(id)}
	}
	r := Roster{
		TrustDomain: "clinic.example", Root: digest("1"), Genesis: digest("2"), Group: "trial", Quorum: 2, KeyMode: Shared, Until: start, Floors: "{  }",
		Parties: []RosterParty{{"north", digest("3")}, {"south", digest("4")}},
		Roles: []RosterRole{
			{Name: "holder", Members: []RosterMember{member("north", "keys", "1.4", "5")}},
			{Name: "scorer", Calls: []string{"holder"}, Members: []RosterMember{member("south", "scoring", "2026.11", "6")}},
		},
	}
	approve := Statement{TrustDomain: r.TrustDomain, Genesis: r.Genesis, Group: r.ID(), Party: "north", Number: 1, NotAfter: start}
	withdraw := approve
	withdraw.Number, withdraw.Withdraws = 2, true
	for name, got := range map[string]string{
		"roster.hex": hex.EncodeToString(r.Bytes()) + "\n", "identity.txt": r.ID().String() + "\n",
		"approve.txt": string(approve.Bytes()), "withdraw.txt": string(withdraw.Bytes()),
	} {
		path := filepath.Join(vectors, "group", name)
		if *update {
			if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		if want := readVector(t, "group", name); got != string(want) {
			t.Errorf("%s: got %q, want %q", name, got, want)
		}
	}
	raw, err := hex.DecodeString(strings.TrimSpace(string(readVector(t, "group", "roster.hex"))))
	if err != nil {
		t.Fatal(err)
	}
	if parsed, err := ParseRoster(raw); err != nil || parsed.ID() != r.ID() {
		t.Errorf("parsing the vector: %v", err)
	}
}
