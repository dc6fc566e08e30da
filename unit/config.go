package unit

import (
	"bytes"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/url"
	"slices"
	"time"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/identity"
	"github.com/cohort-tee/cohort/internal/api"
	"github.com/cohort-tee/cohort/internal/bus"
	"github.com/cohort-tee/cohort/internal/wire"
	"github.com/cohort-tee/cohort/policy"
	"github.com/cohort-tee/cohort/policy/policyfile"
)

// Manager is the cluster manager that a unit connects to. It is untrusted:
// without it, or with a bad one, the sessions of a unit are shared with the
// others by the clients' tickets alone. The unit reads a protocol of Cohort's own
// from it and nothing that a library parses (docs/spec/bus.md).
type Manager struct {
	// URL is tls://host:port of the bus, or those of several managers, with
	// commas between: the unit connects to each of them. Empty is no manager.
	URL string
	// CA is what the managers' certificates chain to. Nil is the system's.
	CA *x509.CertPool
}

// Config is the identity of a unit, and what it trusts.
type Config struct {
	// Authorities are the https URLs of the authority's replicas. They are
	// tried in order, the one that responded last first. They are
	// untrusted.
	Authorities []string
	// Genesis is the digest of the first policy, the one value that all
	// trust follows from.
	Genesis attest.Digest
	// Task is the task whose code this program is. Either it is given, or
	// Group and Role.
	Task string
	// Group and Role are the group that the unit works in, and as what. Its
	// program is then a member of that role.
	Group, Role string
	// PartyKeys are the digests (policy.KeyDigest) of the SSH keys of the unit's own
	// party, required with Group: its key, or its old and its new key. The unit is
	// admitted only under rosters that name exactly this party for its program in
	// its role, and that this party approves; the unit checks both at each renewal.
	// Evidence is bound to the keys, but no measurement covers them: they protect the
	// data of those who configure the unit.
	PartyKeys []attest.Digest
	// Roster is the one roster under which the unit works. Zero is any roster that
	// its party approves.
	Roster attest.Digest
	// PeerParties are, by role, the digests of the SSH keys of the parties whose
	// programs the unit accepts in that role, as caller and as server. Programs of
	// a role that is left out are accepted from each party of the roster.
	PeerParties map[string][]attest.Digest
	// Attester is the TEE the program runs in. It is called from one
	// goroutine at a time.
	Attester attest.Attester
	// Manager is the cluster manager that relays sessions between the units
	// and whose gateway users come through. It is optional.
	Manager Manager
	// Address is the host:port at which the manager's gateway reaches
	// [Unit.Serve]. Empty is the address of its listener.
	Address string
	// Sessions is how many open sessions the unit keeps, those that others
	// opened included, at up to 640 bytes each. It opens a quarter of them
	// at most. Zero is 131,072. Above that, sessions are evicted that were not used yet,
	// or not for 2 minutes; the client's ticket restores them.
	Sessions int
	// Log receives one warning for each step of back-off. Nil discards them.
	Log *slog.Logger
	// Clock reads the machine's wall clock, which its host sets, and the time since
	// some fixed moment, suspended time included. The unit's own time is the wall
	// clock at its start plus what passed since. Nil is the machine's clocks, the
	// latter CLOCK_BOOTTIME.
	Clock func() (wall time.Time, elapsed time.Duration)
	// Fatal ends the program. It is called with a fault that only another
	// start repairs: the wall clock was set more than 2 minutes off and stayed so
	// for 10 seconds ("clock"), or a call locks the unit's sessions and does not
	// end ("internal"). The unit serves nothing then, and Close would wait for
	// Fatal. Nil prints the fault on the standard error and exits with status 1.
	Fatal func(error)
}

// validate returns every fault of a configuration.
func (c Config) validate() error {
	var faults []error
	fault := func(rule string, got, want any) {
		faults = append(faults, wire.Refuse(wire.BadRequest, "unit configuration: "+rule, got, want))
	}
	if len(c.Authorities) == 0 {
		fault("authorities", "no URL", "at least one URL")
	}
	for _, address := range c.Authorities {
		if u, err := url.Parse(address); err != nil || u.Scheme != "https" || u.Host == "" || u.User != nil {
			fault("authority", address, "an https URL")
		}
	}
	if c.Genesis.IsZero() {
		fault("genesis", "no digest", "the digest of the first policy")
	}
	if c.Group == "" && c.Role == "" && !wire.ValidName(c.Task) {
		fault("task", c.Task, "the name of a task")
	}
	if c.Group+c.Role != "" && (c.Task != "" || !wire.ValidName(c.Group) || !wire.ValidName(c.Role)) {
		fault("group and role", c.Group+" "+c.Role, "both, and no task")
	}
	c.checkParties(fault)
	if c.Manager.URL != "" && !bus.ValidURLs(c.Manager.URL) {
		fault("manager", c.Manager.URL, "tls://host:port")
	}
	if !addressOK(c.Address) {
		fault("address", c.Address, "host:port")
	}
	if c.Sessions < 0 {
		fault("sessions", c.Sessions, "a number, or 0 for the default")
	}
	if c.Attester == nil {
		fault("attester", "no attester", "the TEE the program runs in")
	}
	return errors.Join(faults...)
}

// addressOK reports whether an advertised address is empty or host:port.
func addressOK(address string) bool {
	host, port, err := net.SplitHostPort(address)
	return address == "" || err == nil && host != "" && port != ""
}

// checkParties reports the faults of what a configuration says of parties.
func (c Config) checkParties(fault func(rule string, got, want any)) {
	if c.Group == "" {
		if len(c.PartyKeys)+len(c.PeerParties) > 0 || !c.Roster.IsZero() {
			fault("party keys, roster, peer parties", "set without a group", "no such pin, or a group")
		}
		return
	}
	if !keysOK(c.PartyKeys) || len(c.PartyKeys) > wire.MaxPartyKeys {
		fault("party keys", c.PartyKeys, fmt.Sprintf("1 to %d keys of the unit's own party, each once", wire.MaxPartyKeys))
	}
	for role, keys := range c.PeerParties {
		if !wire.ValidName(role) || !keysOK(keys) {
			fault("peer parties of role "+role, keys, "at least 1 key, each once")
		}
	}
}

// keysOK reports whether there are keys, each once.
func keysOK(keys []attest.Digest) bool {
	for i, key := range keys {
		if key.IsZero() || slices.Contains(keys[:i], key) {
			return false
		}
	}
	return len(keys) > 0
}

// ownParty is the key of the unit's own party, where the roster of a report names exactly
// that party for the unit's program in its role. That it approves the roster was checked of
// the report's signer: a quorum of others, and the authority's word, count for neither.
func (c Config) ownParty(p policy.Approved, report api.Report) (attest.Digest, error) {
	id, err := identity.ReleaseID(p, report.Task, report.Release)
	if err != nil {
		return attest.Digest{}, err
	}
	_, key, err := p.GroupByID(report.Identity).Roster.Pinned(c.Role, id, policy.Pins{Parties: c.PartyKeys, Roster: c.Roster})
	return key, err
}

// terms are the policy's rules for a unit's certificates.
type terms struct {
	keyMode  policyfile.KeyMode
	lifetime time.Duration
}

// certificateTerms finds them, or refuses with "not-found".
func (c Config) certificateTerms(p policy.Approved) (terms, error) {
	if c.Group == "" {
		task, err := findTask(p, c.Task)
		if err != nil {
			return terms{}, err
		}
		return terms{task.KeyMode, task.Lifetime}, nil
	}
	pact := p.GroupByName(c.Group)
	if pact == nil || pact.Group.Roles[c.Role] == nil {
		return terms{}, wire.Refuse(wire.NotFound, "policy: role of group "+c.Group, c.Role, "a role of the policy")
	}
	return terms{pact.Group.KeyMode, pact.Group.Lifetime}, nil
}

// identity is what the report must be about: a release of the task, or the
// group, under the roster that its parties approve, with the unit's program in
// its role.
func (c Config) identity(p policy.Approved, report api.Report) (attest.Digest, error) {
	if report.Group != c.Group || report.Role != c.Role || c.Group == "" && report.Task != c.Task {
		return attest.Digest{}, wire.Refuse(wire.WrongIdentity, "report: task, group, role",
			report.Task+" "+report.Group+" "+report.Role, c.Task+" "+c.Group+" "+c.Role)
	}
	if c.Group == "" {
		return identity.ReleaseID(p, report.Task, report.Release)
	}
	pact := p.GroupByID(report.Identity)
	if pact == nil || pact.Group.Name != c.Group || !bytes.Equal(report.Roster, pact.Roster.Bytes()) {
		return attest.Digest{}, wire.Refuse(wire.StaleRoster, "report: roster", report.Identity, p.GroupByName(c.Group).ID())
	}
	of := func(m policyfile.Member) bool { return m.Task == report.Task && m.Release == report.Release }
	if role := pact.Group.Roles[c.Role]; role == nil || !slices.ContainsFunc(role.Members, of) {
		return attest.Digest{}, wire.Refuse(wire.WrongRole, "report: member of role "+c.Role, report.Task+" "+report.Release, "a member of the roster")
	}
	return pact.ID(), nil
}
