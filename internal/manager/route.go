package manager

import (
	"encoding/base64"
	"slices"

	"github.com/cohort-tee/cohort/internal/bus"
	"github.com/cohort-tee/cohort/internal/envelope"
	"github.com/cohort-tee/cohort/internal/wire"
)

// route selects units for a request in a session of which the manager has no copy: those of
// the identity that the client's ticket names. It refuses with [wire.TicketWanted] a request
// that could belong to several tenants, so that no tenant receives a request of another
// tenant's user.
func (g *gateway) route(w *wanted, session wire.SessionID, ticket string) error {
	if w.target != (wire.UnitID{}) || w.clusters != nil {
		return nil
	}
	if sealed, err := base64.RawURLEncoding.DecodeString(ticket); err == nil {
		if s, err := envelope.ParseSealed(envelope.Session, sealed); err == nil && s.Session == session {
			w.clusters, w.sealedFor = g.registry.clustersOf(s.For), []wire.Digest{s.For}
		}
	}
	if w.clusters == nil && g.registry.ambiguous(*w) {
		return wire.Refuse(wire.TicketWanted, "gateway: session", session, "one that the manager has a copy of, or its ticket")
	}
	return nil
}

// clustersOf returns the clusters of an identity, or of a role of a group.
func (r *registry) clustersOf(d wire.Digest) (list []bus.Cluster) {
	r.mu.RLock()
	defer r.mu.RUnlock()
	for _, m := range r.units {
		u := m.unit
		if (u.Identity == d || u.Group != "" && wire.RoleID(u.Identity, u.Role) == d) && !slices.Contains(list, u.Cluster) {
			list = append(list, u.Cluster)
		}
	}
	if c, known := r.lineage.cluster(d); known && !slices.Contains(list, c) {
		list = append(list, c)
	}
	return list
}

// ambiguous reports whether a request selects no units and there are units of several tenants.
func (r *registry) ambiguous(w wanted) bool {
	r.mu.RLock()
	defer r.mu.RUnlock()
	return w.open() && severalTenants(r.units, w.host)
}

// open reports whether the filter names neither unit, cluster, identity nor task.
func (w wanted) open() bool {
	return w.target == (wire.UnitID{}) && w.clusters == nil && w.identity.IsZero() && w.task == ""
}

// severalTenants reports whether units are of more than one task or group, and no unit has the
// DNS name.
func severalTenants(units map[wire.UnitID]*member, name string) bool {
	several, first := false, ""
	for _, m := range units {
		if m.hasName(name) {
			return false
		}
		holder := m.unit.Holder()
		several = several || first != "" && !sameHolder(first, holder)
		first = holder
	}
	return several
}
