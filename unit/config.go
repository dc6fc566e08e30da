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

// Manager configures the cluster manager that a unit connects to. The manager is untrusted:
// without it, or with a malicious one, units share sessions only through clients' tickets. The
// unit parses only Cohort's own protocol from it, without third-party parsers
// (docs/spec/bus.md).
type Manager struct {
	// URL is tls://host:port of the bus, or the URLs of several managers separated by commas:
	// the unit connects to each of them. Empty means no manager.
	URL string
	// CA contains the roots for the managers' certificates. Nil means the system's roots.
	CA *x509.CertPool
}

// Config configures a unit: its identity, its trust anchors and its TEE.
type Config struct {
	// Authorities are the https URLs of the authority's replicas. The unit tries them in order,
	// beginning with the one that issued the last certificate. The URLs are untrusted.
	Authorities []string
	// Genesis is the digest of the first policy, the only trust anchor.
	Genesis attest.Digest
	// Task is the task of this program. Set either Task, or Group and Role.
	Task string
	// Group and Role are the group that the unit joins and its role there. The policy must name
	// the unit's program as a member of that role.
	Group, Role string
	// PartyKeys are the digests (policy.KeyDigest) of the SSH keys of the unit's own party: its
	// key, or its old and its new key. They are required with Group. The unit is admitted only
	// under a roster that names exactly this party for the unit's program in its role, and that
	// this party approves. The unit checks both at each renewal. Evidence is bound to the keys,
	// but no measurement covers them: they protect the data of those who configure the unit.
	PartyKeys []attest.Digest
	// Roster is the only roster that the unit accepts. Zero means any roster that its party
	// approves.
	Roster attest.Digest
	// PeerParties maps a role to the digests of the SSH keys of parties. In that role the unit
	// accepts only programs of these parties, as callers and as servers. In a role without an
	// entry it accepts programs of every party of the roster.
	PeerParties map[string][]attest.Digest
	// Attester is the TEE in which the program runs. The unit calls it from one goroutine at a
	// time.
	Attester attest.Attester
	// Manager is the cluster manager that relays sessions between units and forwards users'
	// requests to them. It is optional.
	Manager Manager
	// Address is the host:port at which the manager's gateway connects to [Unit.Serve]. Empty
	// means the address of the listener.
	Address string
	// Sessions is the maximum number of open sessions in memory, of up to 640 bytes each,
	// including sessions that other units opened. At most a quarter of them are opened by this
	// unit. Zero means 131,072. Above the maximum, the unit evicts sessions that were not yet
	// used, or not for 2 minutes; the client's ticket restores them.
	Sessions int
	// Log receives warnings, for example one for each failed round of attempts to get a
	// certificate. Nil discards all records.
	Log *slog.Logger
	// Clock reads the machine's wall clock, which the host controls, and the time elapsed since
	// some fixed moment, including suspended time. The unit's own time is the wall clock at its
	// start plus the time elapsed since then. Nil means the machine's clocks, with
	// CLOCK_BOOTTIME for elapsed.
	Clock func() (wall time.Time, elapsed time.Duration)
	// Fatal must end the program. The unit calls it with a fault that only a restart repairs:
	// the wall clock was more than 2 minutes off for 10 seconds ("clock"), or a call locks the
	// unit's sessions and does not return ("internal"). The unit then serves no requests, and
	// Close would wait for Fatal to return. Nil prints the fault to standard error and exits
	// with status 1.
	Fatal func(error)
}

// validate reports all faults of a configuration together.
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

// checkParties reports the faults of the fields about parties.
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

// keysOK reports whether there is at least one key and no key is zero or repeated.
func keysOK(keys []attest.Digest) bool {
	for i, key := range keys {
		if key.IsZero() || slices.Contains(keys[:i], key) {
			return false
		}
	}
	return len(keys) > 0
}

// ownParty returns the key of the unit's own party, if the roster of a report names exactly that
// party for the unit's program in its role. The check of the report's signer already verified
// that the party approves the roster. Neither a quorum of other parties nor a statement of the
// authority replaces these two checks.
func (c Config) ownParty(p policy.Approved, report api.Report) (attest.Digest, error) {
	id, err := identity.ReleaseID(p, report.Task, report.Release)
	if err != nil {
		return attest.Digest{}, err
	}
	_, key, err := p.GroupByID(report.Identity).Roster.Pinned(c.Role, id, policy.Pins{Parties: c.PartyKeys, Roster: c.Roster})
	return key, err
}

// terms are the policy's terms for a unit's certificates.
type terms struct {
	keyMode  policyfile.KeyMode
	lifetime time.Duration
}

// certificateTerms returns the terms for this unit, or refuses with "not-found".
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

// identity returns the identity that the report must have: that of a release of the task, or
// that of the group. A report about a group must have the policy's roster, with the unit's
// program as a member of its role.
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
