package policy

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/internal/wire"
	"github.com/cohort-tee/cohort/policy/policyfile"
)

// Roster is the text of a group that its parties approve. Its digest is the group's
// identity. With the roster and the approvals a program can verify a group offline. A
// parsed Roster is not an approved one.
type Roster struct {
	TrustDomain string
	Root        attest.Digest // authority root
	Genesis     attest.Digest
	Group       string
	Quorum      int
	KeyMode     policyfile.KeyMode
	Until       time.Time
	Floors      string // rules of platforms and members when the group was introduced, as TOML
	Authority   string // authorities that may have the group's root, and their platforms, as TOML
	Parties     []RosterParty
	Roles       []RosterRole
}

// RosterParty is a party and the SHA-256 of its SSH public key.
type RosterParty struct {
	Name string
	Key  attest.Digest
}

// RosterRole is a role with its members and the roles it may call.
type RosterRole struct {
	Name    string
	Calls   []string
	Members []RosterMember
}

// RosterMember is a member and the identity of its release.
type RosterMember struct {
	policyfile.Member
	Identity attest.Digest
}

// ID returns the group's identity.
func (r Roster) ID() attest.Digest { return wire.Sum(r.Bytes()) }

// hasMember reports whether the code with an identity is a member of a role.
func (r Roster) hasMember(role string, id attest.Digest) bool {
	return slices.ContainsFunc(r.members(role), func(m RosterMember) bool { return m.Identity == id && !id.IsZero() })
}

func (r Roster) members(role string) []RosterMember {
	for _, x := range r.Roles {
		if x.Name == role {
			return x.Members
		}
	}
	return nil
}

// Number of fields before parties and roles.
const rosterFields = 9

// Bytes returns the one encoding, which [ParseRoster] reads: the framing under "cohort
// group v1" of trust domain, authority root, genesis, name, quorum, key mode, end, floors,
// authority, then one field for each party and each role.
func (r Roster) Bytes() []byte {
	fields := [][]byte{
		[]byte(r.TrustDomain), r.Root[:], r.Genesis[:], []byte(r.Group), wire.Uint64(uint64(r.Quorum)),
		[]byte(r.KeyMode), wire.Uint64(uint64(r.Until.Unix())), []byte(r.Floors), []byte(r.Authority),
	}
	for _, p := range r.Parties {
		fields = append(fields, wire.Frame(wire.LabelGroupParty, []byte(p.Name), p.Key[:]))
	}
	for _, role := range r.Roles {
		inner := [][]byte{[]byte(role.Name), []byte(strings.Join(role.Calls, " "))}
		for _, m := range role.Members {
			inner = append(inner, []byte(strings.Join([]string{m.Party, m.Task, m.Release, m.Identity.Hex()}, " ")))
		}
		fields = append(fields, wire.Frame(wire.LabelGroupRole, inner...))
	}
	return wire.Frame(wire.LabelGroup, fields...)
}

// ParseRoster parses a roster of at most 256 KiB. It refuses with "malformed" every
// encoding but one, and groups that no policy could have: names out of order, repeated or
// unknown, and a quorum below one or above the number of parties.
func ParseRoster(b []byte) (Roster, error) {
	if len(b) > wire.MaxPolicy {
		return Roster{}, wire.Refuse(wire.TooLarge, "roster: size in bytes", len(b), wire.MaxPolicy)
	}
	f, err := wire.Unframe(wire.LabelGroup, b, -1)
	if err != nil {
		return Roster{}, err
	}
	if len(f) < rosterFields {
		return Roster{}, badRoster("number of fields", len(f), rosterFields)
	}
	r := Roster{TrustDomain: string(f[0]), Group: string(f[3]), KeyMode: policyfile.KeyMode(f[5]), Floors: string(f[7]), Authority: string(f[8])}
	copy(r.Root[:], f[1])
	copy(r.Genesis[:], f[2])
	r.Quorum, r.Until = int(number64(f[4])&0xffff), time.Unix(int64(number64(f[6])), 0).UTC()
	for _, entry := range f[rosterFields:] {
		if p, err := wire.Unframe(wire.LabelGroupParty, entry, 2); err == nil {
			party := RosterParty{Name: string(p[0])}
			copy(party.Key[:], p[1])
			r.Parties = append(r.Parties, party)
		} else if role, err := wire.Unframe(wire.LabelGroupRole, entry, -1); err == nil && len(role) > 1 {
			r.Roles = append(r.Roles, parseRole(role))
		}
	}
	// Whatever was passed over above does not encode to the same bytes.
	if !bytes.Equal(r.Bytes(), b) {
		return Roster{}, badRoster("encoding", fmt.Sprint(len(b), " bytes of another form"), "the one of docs/spec/group.md")
	}
	return r, r.validate()
}

func parseRole(f [][]byte) RosterRole {
	role := RosterRole{Name: string(f[0]), Calls: strings.Fields(string(f[1]))}
	for _, text := range f[2:] {
		words := append(strings.Split(string(text), " "), "", "", "", "")
		m := RosterMember{Member: policyfile.Member{Party: words[0], Task: words[1], Release: words[2]}}
		m.Identity, _ = wire.ParseDigest(words[3])
		role.Members = append(role.Members, m)
	}
	return role
}

func number64(b []byte) uint64 {
	if len(b) != 8 {
		return 0
	}
	return binary.BigEndian.Uint64(b)
}

func badRoster(rule string, got, want any) error {
	return wire.Refuse(wire.Malformed, "roster: "+rule, got, want)
}

// validate checks a roster by the rules of policy files.
func (r Roster) validate() error {
	var parties, roles []string
	keys := map[attest.Digest]bool{}
	for _, p := range r.Parties {
		parties, keys[p.Key] = append(parties, p.Name), true
	}
	for _, role := range r.Roles {
		roles = append(roles, role.Name)
	}
	switch {
	case !policyfile.TrustDomainOK(r.TrustDomain) || !wire.ValidName(r.Group) || r.Root.IsZero() || r.Genesis.IsZero():
		return badRoster("place", r.TrustDomain+" "+r.Group, "a group of a trust domain")
	case r.KeyMode != policyfile.Shared && r.KeyMode != policyfile.PerUnit:
		return badRoster("key mode", r.KeyMode, "shared or unit")
	case r.Quorum < 1 || r.Quorum > len(r.Parties):
		return badRoster("quorum", r.Quorum, "1 to the number of parties")
	case len(keys) < len(parties):
		return badRoster("keys", len(keys), "one for each party")
	case !ascendingNames(parties) || !ascendingNames(roles) || len(roles) == 0:
		return badRoster("parties and roles", append(parties, roles...), "names in order, each once, none confusable")
	}
	for _, role := range r.Roles {
		if err := role.validate(parties, roles); err != nil {
			return err
		}
	}
	if _, err := policyfile.ParseCustody(r.Authority); err != nil {
		return badRoster("authority", err, "one line of TOML, as docs/spec/group.md has it")
	}
	return nil
}

func (r RosterRole) validate(parties, roles []string) error {
	if len(r.Members) == 0 {
		return badRoster("role "+r.Name, "a role without members", "at least 1 member")
	}
	for i, m := range r.Members {
		named := slices.Contains(parties, m.Party) && wire.ValidName(m.Task) && wire.ValidReleaseName(m.Release) && !m.Identity.IsZero()
		if !named || i > 0 && r.Members[i-1].Member.Compare(m.Member) >= 0 {
			return badRoster("member of role "+r.Name, m.Member, "known parties, in order, each once")
		}
	}
	for i, call := range r.Calls {
		if !slices.Contains(roles, call) || i > 0 && r.Calls[i-1] >= call {
			return badRoster("call of role "+r.Name, call, "known roles, in order, each once")
		}
	}
	return nil
}

func ascendingNames(names []string) bool {
	for i, name := range names {
		if !wire.ValidName(name) || i > 0 && names[i-1] >= name {
			return false
		}
	}
	return !policyfile.Confusable(names)
}

// AuthorityRules returns the rules of the roster for the platforms of authorities, for
// appraisal. The rules of the policy may differ.
func (r Roster) AuthorityRules() map[attest.Platform]attest.Rules {
	c, err := policyfile.ParseCustody(r.Authority)
	if err != nil {
		return nil
	}
	return c.Rules
}

// AdmitAuthority matches a result with the authorities that the roster names, as
// [Approved.AdmitAuthority] does with those of the policy. The result is one of
// appraisal by [Roster.AuthorityRules].
func (r Roster) AdmitAuthority(result attest.Result) error {
	c, err := policyfile.ParseCustody(r.Authority)
	if err != nil {
		return err
	}
	return c.Admit(result)
}
