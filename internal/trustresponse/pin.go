package trustresponse

import (
	"cmp"
	"crypto/x509"
	"slices"
	"time"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/identity"
	"github.com/cohort-tee/cohort/internal/wire"
	"github.com/cohort-tee/cohort/policy"
)

// Pin names what a client accepts in a policy: exactly one of Task, Group, ID and Measurements;
// only Group and ID may be combined.
type Pin struct {
	Task         string
	Group        string
	ID           attest.Digest
	Measurements []attest.Measurement
	PartyKeys    []attest.Digest // with a group: of the party that must approve it
}

// Identity is the identity of one release, or of a group, with its root.
type Identity struct {
	ID      attest.Digest
	Task    string
	Release string
	Group   string            // Task and Release are then empty
	Root    *x509.Certificate // self-signed
	Cross   *x509.Certificate // the root's key, certified by the authority root; nil for a group
}

// String returns "task TASK release RELEASE" or "group GROUP".
func (i Identity) String() string {
	if i.Group != "" {
		return "group " + i.Group
	}
	return "task " + i.Task + " release " + i.Release
}

// Identities returns the pinned identities under a policy, without their roots. It refuses if
// there is none.
func (c Pin) Identities(p policy.Approved, at time.Time) ([]Identity, error) {
	if c.Group != "" {
		return c.ofGroup(p, at)
	}
	var found []Identity
	doc := p.Document()
	for _, task := range doc.TaskNames() {
		for _, release := range doc.Tasks[task].ReleaseNames() {
			id, err := identity.ReleaseID(p, task, release)
			if err != nil {
				return nil, err
			}
			if task == c.Task || id == c.ID || c.hasMeasurements(doc.Tasks[task].Releases[release].References) {
				found = append(found, Identity{ID: id, Task: task, Release: release})
			}
		}
	}
	switch {
	case len(found) > 0:
		return found, nil
	case c.Task != "":
		return nil, wire.Refuse(wire.NotFound, "trust: task", c.Task, doc.TaskNames())
	case !c.ID.IsZero():
		return nil, wire.Refuse(wire.WrongIdentity, "trust: identity", c.ID, "a release of the policy")
	}
	return nil, wire.Refuse(wire.NotMeasured, "trust: measurements", c.Measurements, "those of a release of the policy")
}

// hasMeasurements reports whether the pinned measurements equal the reference values of a
// release, in any order.
func (c Pin) hasMeasurements(references []attest.ReferenceValue) bool {
	if len(c.Measurements) == 0 {
		return false
	}
	want := slices.SortedFunc(slices.Values(c.Measurements), attest.Measurement.Compare)
	got := slices.SortedFunc(slices.Values(references), attest.Measurement.Compare)
	return slices.EqualFunc(got, want, func(a, b attest.Measurement) bool { return a.Compare(b) == 0 })
}

// ofGroup returns the group identity that the parties approve, the trusted party of
// PartyKeys among them, and the predecessors that they still approve. With an ID it
// returns exactly that identity. The parties also approve the root of each identity, so
// that the authority alone can never introduce one.
func (c Pin) ofGroup(p policy.Approved, at time.Time) ([]Identity, error) {
	pact := p.GroupByName(c.Group)
	if pact == nil {
		return nil, wire.Refuse(wire.NotFound, "trust: group", c.Group, p.Document().GroupNames())
	}
	inForce, err := pact.InForce(policy.ApprovedRoot(at), at)
	if err != nil {
		return nil, err
	}
	if !c.ID.IsZero() && c.ID != inForce.ID() {
		return nil, wire.Refuse(wire.StaleRoster, "trust: identity of group "+c.Group, inForce.ID(), c.ID)
	}
	var found []Identity
	for ; inForce != nil; inForce = inForce.Predecessor {
		for _, root := range inForce.Roots(at) {
			unapproved := identity.CheckApprovers(inForce, root, c.PartyKeys, at)
			if unapproved == nil && (c.ID.IsZero() || c.ID == inForce.ID()) {
				found = append(found, Identity{ID: inForce.ID(), Group: c.Group})
				break
			}
			err = cmp.Or(err, unapproved)
		}
	}
	if len(found) == 0 {
		return nil, err
	}
	return found, nil
}
