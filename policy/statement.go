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
	"github.com/cohort-tee/cohort/policy/sshsig"
	"golang.org/x/crypto/ssh"
)

// Statement is a statement of a party about a group: it approves the group, under one
// group root, until a time, or withdraws the approval. Statements count by group identity
// and key, and of each the one with the highest number. A withdrawal ends the approval
// under every root, until a statement with a higher number, whatever its NotAfter.
type Statement struct {
	TrustDomain string
	Genesis     attest.Digest
	Group       attest.Digest // identity
	GroupRoot   attest.Digest // SHA-256 of the group root's SubjectPublicKeyInfo
	Party       string
	Key         attest.Digest // [sshsig.KeyDigest] of the key that signs it
	Number      uint64        // from 1 to 2^63-1
	NotAfter    time.Time
	Withdraws   bool
}

const (
	// maxNumber keeps numbers where no arithmetic on them overflows.
	maxNumber = 1<<63 - 1
	// maxNumberStep is how far a number may be above the last: a key cannot come near
	// maxNumber, where it could withdraw no more, within a history.
	maxNumberStep = 1 << 32
)

// The first lines of statements. No policy file begins with one, because a
// history has both.
const (
	approveLine  = "schema = \"cohort/approve/v1\"\n"
	withdrawLine = "schema = \"cohort/withdraw/v1\"\n"
)

// Namespace returns the SSH namespace of the signature.
func (s Statement) Namespace() sshsig.Namespace {
	if s.Withdraws {
		return sshsig.ForWithdraw
	}
	return sshsig.ForApprove
}

// Bytes returns the text that the party signs.
func (s Statement) Bytes() []byte {
	first := approveLine
	if s.Withdraws {
		first = withdrawLine
	}
	return fmt.Appendf(nil, "%strust_domain = %q\ngenesis = %q\ngroup = %q\ngroup_root = %q\nparty = %q\nkey = %q\nnumber = %d\nnot_after = %s\n",
		first, s.TrustDomain, s.Genesis, s.Group, s.GroupRoot, s.Party, s.Key, s.Number, s.NotAfter.UTC().Format(time.RFC3339))
}

// IsStatement reports whether a step of a history is a statement of a party and not a
// policy.
func IsStatement(raw []byte) bool {
	return bytes.HasPrefix(raw, []byte(approveLine)) || bytes.HasPrefix(raw, []byte(withdrawLine))
}

// ParseStatement is the inverse of [Statement.Bytes]. It refuses every other text with
// "malformed". It verifies no signature.
func ParseStatement(b []byte) (Statement, error) {
	malformed := wire.Refuse(wire.Malformed, "statement", fmt.Sprintf("%.60q, of %d bytes", b, len(b)), "the output of `cohort group approve` or `withdraw`")
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
	digest := func(key string) (d attest.Digest) {
		_ = d.UnmarshalText([]byte(quoted(key)))
		return d
	}
	s.Genesis, s.Group, s.GroupRoot = digest("genesis"), digest("group"), digest("group_root")
	s.Party = quoted("party")
	s.Key = digest("key")
	s.Number, _ = strconv.ParseUint(value("number"), 10, 64)
	s.NotAfter, _ = time.Parse(time.RFC3339, value("not_after"))
	// A field that does not parse is zero, and does not encode to the same bytes.
	named := !s.Genesis.IsZero() && !s.Group.IsZero() && !s.GroupRoot.IsZero() && !s.Key.IsZero() && wire.ValidName(s.Party)
	if !named || s.Number == 0 || s.Number > maxNumber || !bytes.Equal(s.Bytes(), b) {
		return Statement{}, malformed
	}
	return s, nil
}

// SignedStatement is a statement and the signature of its party.
type SignedStatement struct {
	Statement []byte `json:"statement"`
	Signature string `json:"signature"` // armored SSH signature
}

// verifiedStatement is a statement whose signature was verified.
type verifiedStatement struct {
	Statement
	signed SignedStatement
	// other is another text of the same number, or nil. A party that signed two has its
	// key in two places, so both count as a withdrawal.
	other *SignedStatement
	step  int // of the history
}

// withdrawn reports whether it withdraws, or counts as if it did.
func (h verifiedStatement) withdrawn() bool { return h.Withdraws || h.other != nil }

// approves reports whether it approves under a root, whatever the time.
func (h verifiedStatement) approves(root attest.Digest) bool {
	return h.Number > 0 && !h.withdrawn() && h.GroupRoot == root
}

// newestStatements are the newest statements about a group, by key.
type newestStatements map[attest.Digest]*verifiedStatement

// latest returns the newest statement of a key, or the zero one.
func (w newestStatements) latest(key attest.Digest) verifiedStatement {
	if h := w[key]; h != nil {
		return *h
	}
	return verifiedStatement{}
}

// record adds a statement. One with a higher number replaces the last; another text of the
// same number is recorded beside it.
func (w newestStatements) record(h verifiedStatement) {
	last := w.latest(h.Key)
	switch {
	case h.Number > last.Number:
		w[h.Key] = &h
	case h.Number == last.Number && !bytes.Equal(h.signed.Statement, last.signed.Statement):
		last.other = &h.signed
		w[h.Key] = &last
	}
}

// checkFollows refuses, with "sequence", a statement that may not follow the last of its
// key: an older number, the same text again, a text that changes nothing, and a number far
// above the last.
func (w newestStatements) checkFollows(h verifiedStatement) error {
	last := w.latest(h.Key)
	switch {
	case h.Number > last.Number && h.Number-last.Number <= maxNumberStep:
		return nil
	case h.Number == last.Number && !last.withdrawn() && !bytes.Equal(h.signed.Statement, last.signed.Statement):
		return nil
	}
	return wire.Refuse(wire.WrongSequence, "statement: number", h.Number, fmt.Sprintf("%d to %d", last.Number+1, last.Number+maxNumberStep))
}

// verifyStatement verifies one statement about a group: it is about this roster, whose
// identity is id, is signed with the key that it names, and ends no later than the group.
// It does not check that the key is a party's.
func (r Roster) verifyStatement(id attest.Digest, signed SignedStatement) (verifiedStatement, error) {
	s, err := ParseStatement(signed.Statement)
	if err != nil {
		return verifiedStatement{}, err
	}
	switch {
	case s.TrustDomain != r.TrustDomain:
		return verifiedStatement{}, wire.Refuse(wire.WrongDomain, "statement: trust domain", s.TrustDomain, r.TrustDomain)
	case s.Genesis != r.Genesis:
		return verifiedStatement{}, wire.Refuse(wire.WrongGenesis, "statement: genesis", s.Genesis, r.Genesis)
	case s.Group != id:
		return verifiedStatement{}, wire.Refuse(wire.StaleRoster, "statement: group identity", s.Group, id)
	case s.NotAfter.After(r.Until):
		return verifiedStatement{}, wire.Refuse(wire.Expired, "statement: not_after", s.NotAfter.UTC(), "not after the group's end "+r.Until.UTC().Format(time.RFC3339))
	}
	key, err := sshsig.Verify(signed.Signature, s.Namespace(), signed.Statement)
	if err != nil {
		return verifiedStatement{}, err
	}
	if sshsig.KeyDigest(key) != s.Key {
		return verifiedStatement{}, wire.Refuse(wire.NotOwner, "statement: key", sshsig.KeyDigest(key), s.Key)
	}
	return verifiedStatement{Statement: s, signed: signed}, nil
}

// checkParty refuses, with "not-owner", a statement whose name and key are not those of
// one party of the roster.
func (r Roster) checkParty(s Statement) error {
	if slices.Contains(r.Parties, RosterParty{s.Party, s.Key}) {
		return nil
	}
	return wire.Refuse(wire.NotOwner, "statement: party and key", s.Party+" "+s.Key.String(), "name and key of a party of the group")
}

// ApprovalStatus is the result of evaluating the statements about a group, under one group
// root and at a time.
type ApprovalStatus struct {
	Approved  []string  // parties
	Missing   []string  // parties that have not approved, withdrew, or whose approval ended
	OtherRoot []string  // of those, parties that approve another group root
	Quorum    int       // parties needed
	Ends      time.Time // when the quorum ends without further statements; zero without a quorum

	// Former is the status of this roster among the parties of the roster that was
	// approved last under the group's name. It is nil if that is this one, or if there is
	// none. Ends is zero if Former has no quorum.
	Former *ApprovalStatus
}

// approvalStatus evaluates the newest statement of each party, except those of steps
// before since.
func (r Roster) approvalStatus(newest newestStatements, root attest.Digest, since int, at time.Time) ApprovalStatus {
	a := ApprovalStatus{Quorum: r.Quorum}
	var ends []time.Time
	for _, p := range r.Parties {
		s := newest.latest(p.Key)
		if s.step >= since && s.approves(root) && at.Before(s.NotAfter) {
			a.Approved, ends = append(a.Approved, p.Name), append(ends, s.NotAfter)
			continue
		}
		a.Missing = append(a.Missing, p.Name)
		if s.step >= since && s.approves(s.GroupRoot) && at.Before(s.NotAfter) {
			a.OtherRoot = append(a.OtherRoot, p.Name)
		}
	}
	if len(ends) >= r.Quorum && r.Quorum > 0 {
		slices.SortFunc(ends, func(x, y time.Time) int { return y.Compare(x) })
		a.Ends = ends[r.Quorum-1]
	}
	return a
}

// approvedRoots returns the roots that a quorum of the parties approves, whatever the
// time, by statements of the step since and later.
func (r Roster) approvedRoots(newest newestStatements, since int) map[attest.Digest]bool {
	approvals, agreed := map[attest.Digest]int{}, map[attest.Digest]bool{}
	for _, p := range r.Parties {
		s := newest.latest(p.Key)
		if s.step < since || !s.approves(s.GroupRoot) {
			continue
		}
		if approvals[s.GroupRoot]++; approvals[s.GroupRoot] == r.Quorum {
			agreed[s.GroupRoot] = true
		}
	}
	return agreed
}

// checkApproved refuses, with "expired" or "quorum", a group that is not approved.
func (r Roster) checkApproved(a ApprovalStatus, at time.Time) error {
	switch {
	case !at.Before(r.Until):
		return wire.Refuse(wire.Expired, "group "+r.Group+": time", at.UTC(), "before its end "+r.Until.Format(time.RFC3339))
	case len(a.Approved) < a.Quorum || a.Quorum == 0:
		return wire.Refuse(wire.NoQuorum, "group "+r.Group+": parties that approve", a.count(), "also any of "+strings.Join(a.Missing, ", "))
	case a.Former != nil && len(a.Former.Approved) < a.Former.Quorum:
		return wire.Refuse(wire.NoQuorum, "group "+r.Group+": parties of the roster agreed on before that approve", a.Former.count(), "also any of "+strings.Join(a.Former.Missing, ", "))
	}
	return nil
}

// count is how many parties approve, of those needed, and which.
func (a ApprovalStatus) count() string {
	return fmt.Sprintf("%d of %d (%s)", len(a.Approved), a.Quorum, strings.Join(a.Approved, ", "))
}

// Check verifies a roster offline: the statements must be a quorum of approvals under a
// group root at this time, and each of the trusted keys must be that of a party that
// approves. It refuses an empty list of keys, because anyone can write a roster. A caller
// that has the policy history uses [Approved.GroupByID] instead, which also includes
// former rosters and later statements.
func (r Roster) Check(root attest.Digest, all []SignedStatement, trusted []ssh.PublicKey, at time.Time) (ApprovalStatus, error) {
	newest, id := newestStatements{}, r.ID()
	for _, signed := range all {
		s, err := r.verifyStatement(id, signed)
		if err == nil {
			err = r.checkParty(s.Statement)
		}
		if err != nil {
			return ApprovalStatus{}, err
		}
		newest.record(s)
	}
	a := r.approvalStatus(newest, root, 0, at)
	if err := r.checkApproved(a, at); err != nil {
		return a, err
	}
	if len(trusted) == 0 {
		return a, wire.Refuse(wire.NotOwner, "roster: number of trusted keys", 0, "at least 1, of a party")
	}
	for _, key := range trusted {
		i := slices.IndexFunc(r.Parties, func(p RosterParty) bool { return p.Key == sshsig.KeyDigest(key) })
		if i < 0 || !slices.Contains(a.Approved, r.Parties[i].Name) {
			return a, wire.Refuse(wire.NotOwner, "roster: trusted key", sshsig.KeyDigest(key), "that of a party that approves")
		}
	}
	return a, nil
}
