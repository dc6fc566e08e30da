package policy

import (
	"bytes"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/internal/wire"
	"golang.org/x/crypto/ssh"
)

// Statement is what a party says of a group: it approves it until a time, or
// withdraws. Of each party the statement with the highest number counts. A
// withdrawal holds until a higher number, whatever its NotAfter.
type Statement struct {
	TrustDomain string
	Genesis     attest.Digest
	Group       attest.Digest // identity
	Party       string
	Number      uint64 // from 1
	NotAfter    time.Time
	Withdraws   bool
}

// The first lines of statements. No policy file begins with one, because a
// history holds both.
const (
	approveLine  = "schema = \"cohort/approve/v1\"\n"
	withdrawLine = "schema = \"cohort/withdraw/v1\"\n"
)

// Namespace is the SSH namespace in which the party signs it.
func (s Statement) Namespace() Namespace {
	if s.Withdraws {
		return ForWithdraw
	}
	return ForApprove
}

// Bytes is the text that the party signs.
func (s Statement) Bytes() []byte {
	first := approveLine
	if s.Withdraws {
		first = withdrawLine
	}
	return fmt.Appendf(nil, "%strust_domain = %q\ngenesis = %q\ngroup = %q\nparty = %q\nnumber = %d\nnot_after = %s\n",
		first, s.TrustDomain, s.Genesis, s.Group, s.Party, s.Number, s.NotAfter.UTC().Format(time.RFC3339))
}

// IsStatement reports whether a step of a history is a party's word and no
// policy.
func IsStatement(raw []byte) bool {
	return bytes.HasPrefix(raw, []byte(approveLine)) || bytes.HasPrefix(raw, []byte(withdrawLine))
}

// ParseStatement is the inverse of [Statement.Bytes]. It refuses every other
// text with "malformed". It checks no signature.
func ParseStatement(b []byte) (Statement, error) {
	malformed := wire.Refuse(wire.Malformed, "statement", "another text", "what `cohort group approve` or `withdraw` writes")
	if len(b) > wire.MaxStatement || !IsStatement(b) {
		return Statement{}, malformed
	}
	s := Statement{Withdraws: bytes.HasPrefix(b, []byte(withdrawLine))}
	_, rest, _ := strings.Cut(string(b), "\n")
	value := func(key string) string {
		line, tail, _ := strings.Cut(rest, "\n")
		rest = tail
		return strings.TrimPrefix(line, key+" = ")
	}
	quoted := func(key string) string {
		text, _ := strconv.Unquote(value(key))
		return text
	}
	s.TrustDomain = quoted("trust_domain")
	_ = digestInto(&s.Genesis, quoted("genesis"))
	_ = digestInto(&s.Group, quoted("group"))
	s.Party = quoted("party")
	s.Number, _ = strconv.ParseUint(value("number"), 10, 64)
	s.NotAfter, _ = time.Parse(time.RFC3339, value("not_after"))
	// What could not be read is zero, and does not read back the same.
	if s.Genesis.IsZero() || s.Group.IsZero() || !wire.NameOK(s.Party) || s.Number == 0 || !bytes.Equal(s.Bytes(), b) {
		return Statement{}, malformed
	}
	return s, nil
}

// Said is a statement as its party signed it.
type Said struct {
	Statement []byte `json:"statement"`
	Signature string `json:"signature"` // armored SSH signature
}

// heard is a statement whose signature was checked.
type heard struct {
	Statement
	said Said
	key  ssh.PublicKey
}

// hear checks one statement about a group: that it is about this roster, signed
// with a key whose digest the roster has for its party, and for no longer than
// the group.
func (r Roster) hear(said Said) (heard, error) {
	s, err := ParseStatement(said.Statement)
	if err != nil {
		return heard{}, err
	}
	switch {
	case s.TrustDomain != r.TrustDomain:
		return heard{}, wire.Refuse(wire.WrongDomain, "statement: trust domain", s.TrustDomain, r.TrustDomain)
	case s.Genesis != r.Genesis:
		return heard{}, wire.Refuse(wire.WrongGenesis, "statement: genesis", s.Genesis, r.Genesis)
	case s.Group != r.ID():
		return heard{}, wire.Refuse(wire.StaleRoster, "statement: group identity", s.Group, r.ID())
	case s.NotAfter.After(r.Until):
		return heard{}, wire.Refuse(wire.Expired, "statement: not_after", s.NotAfter.UTC(), "not after the group's end "+r.Until.UTC().Format(time.RFC3339))
	}
	i := slices.IndexFunc(r.Parties, func(p RosterParty) bool { return p.Name == s.Party })
	if i < 0 {
		return heard{}, wire.Refuse(wire.NotOwner, "statement: party", s.Party, "a party of the group")
	}
	key, err := Verify(said.Signature, s.Namespace(), said.Statement)
	if err != nil {
		return heard{}, err
	}
	if KeyDigest(key) != r.Parties[i].Key {
		return heard{}, wire.Refuse(wire.NotOwner, "statement: key", KeyDigest(key), "that of party "+s.Party)
	}
	return heard{s, said, key}, nil
}

// Agreement is what the statements about a group come to at a time.
type Agreement struct {
	Approved []string  // parties
	Missing  []string  // parties that have not approved, withdrew, or whose approval ended
	Silent   int       // of those, parties that have said nothing yet
	Quorum   int       // parties needed
	Ends     time.Time // when the quorum is lost if nobody says more; zero without a quorum
}

// agree counts the newest statement of each party.
func (r Roster) agree(newest map[string]heard, at time.Time) Agreement {
	a := Agreement{Quorum: r.Quorum}
	var ends []time.Time
	for _, p := range r.Parties {
		s, said := newest[p.Name]
		if !said || s.Withdraws || !at.Before(s.NotAfter) {
			a.Missing = append(a.Missing, p.Name)
			if !said {
				a.Silent++
			}
			continue
		}
		a.Approved, ends = append(a.Approved, p.Name), append(ends, s.NotAfter)
	}
	if len(ends) >= r.Quorum && r.Quorum > 0 && at.Before(r.Until) {
		slices.SortFunc(ends, func(x, y time.Time) int { return y.Compare(x) })
		a.Ends = ends[r.Quorum-1]
	}
	return a
}

// err refuses, with "expired" or "quorum", a group that is not agreed on.
func (r Roster) err(a Agreement, at time.Time) error {
	switch {
	case !a.Ends.IsZero():
		return nil
	case !at.Before(r.Until):
		return wire.Refuse(wire.Expired, "group "+r.Group+": time", at.UTC(), "before its end "+r.Until.Format(time.RFC3339))
	}
	got := fmt.Sprintf("%d of %d (%s)", len(a.Approved), r.Quorum, strings.Join(a.Approved, ", "))
	return wire.Refuse(wire.NoQuorum, "group "+r.Group+": parties that approve", got, "also any of "+strings.Join(a.Missing, ", "))
}

// Check judges a roster offline: what its parties said must be a quorum at this
// time, and each of the keys that the caller trusts must be a party's that
// approves. Without a key it refuses, because anybody can write a roster; who
// knows the policy history asks [Approved.Pact] instead.
func (r Roster) Check(all []Said, trusted []ssh.PublicKey, at time.Time) (Agreement, error) {
	newest := map[string]heard{}
	for _, said := range all {
		s, err := r.hear(said)
		if err != nil {
			return Agreement{}, err
		}
		if s.Number > newest[s.Party].Number {
			newest[s.Party] = s
		}
	}
	a := r.agree(newest, at)
	if err := r.err(a, at); err != nil {
		return a, err
	}
	if len(trusted) == 0 {
		return a, wire.Refuse(wire.NotOwner, "roster: trusted keys", "none", "at least one party's")
	}
	for _, key := range trusted {
		i := slices.IndexFunc(r.Parties, func(p RosterParty) bool { return p.Key == KeyDigest(key) })
		if i < 0 || !slices.Contains(a.Approved, r.Parties[i].Name) {
			return a, wire.Refuse(wire.NotOwner, "roster: trusted key", KeyDigest(key), "that of a party that approves")
		}
	}
	return a, nil
}
