package manager

import (
	"encoding/base64"
	"slices"

	"github.com/cohort-tee/cohort/internal/bus"
	"github.com/cohort-tee/cohort/internal/envelope"
	"github.com/cohort-tee/cohort/internal/relay"
	"github.com/cohort-tee/cohort/internal/wire"
)

// routeByTicket handles a request in a session of which the manager has no copy: it restricts
// the filter to units of the identity that the client's ticket names. It refuses a request that
// could belong to several tenants with [wire.TicketWanted], so that no tenant receives a request
// of another tenant's user.
func (g *gateway) routeByTicket(w *unitFilter, session wire.SessionID, ticket string) error {
	if w.unit != (wire.UnitID{}) || w.clusters != nil {
		return nil
	}
	if sealed, err := base64.RawURLEncoding.DecodeString(ticket); err == nil {
		if s, err := envelope.ParseSealed(envelope.Session, sealed); err == nil && s.Session == session {
			w.clusters, w.sealedFor = g.registry.clustersOf(s.For), []wire.Digest{s.For}
		}
	}
	if w.clusters == nil && g.registry.isAmbiguous(*w) {
		return wire.Refuse(wire.TicketWanted, "gateway: session", session, "a session that the manager has a copy of, or its ticket")
	}
	return nil
}

// clustersOf returns the clusters of an identity or of a group's role.
func (r *registry) clustersOf(d wire.Digest) (list []bus.Cluster) {
	r.mu.RLock()
	defer r.mu.RUnlock()
	for _, m := range r.units {
		u := m.unit
		if (u.Identity == d || u.Group != "" && wire.RoleID(u.Identity, u.Role) == d) && !slices.Contains(list, u.Cluster) {
			list = append(list, u.Cluster)
		}
	}
	if c, known := r.successors.ClusterOf(d); known && !slices.Contains(list, c) {
		list = append(list, c)
	}
	return list
}

// isAmbiguous reports whether the filter names no target while there are units of several
// tenants.
func (r *registry) isAmbiguous(w unitFilter) bool {
	r.mu.RLock()
	defer r.mu.RUnlock()
	return w.isUnpinned() && hasSeveralTenants(r.units, w.host)
}

// isUnpinned reports whether the filter names neither unit, cluster, identity nor task.
func (w unitFilter) isUnpinned() bool {
	return w.unit == (wire.UnitID{}) && w.clusters == nil && w.identity.IsZero() && w.task == ""
}

// hasSeveralTenants reports whether the units belong to more than one task or group and none has
// the DNS name.
func hasSeveralTenants(units map[wire.UnitID]*backend, name string) bool {
	several, first := false, ""
	for _, m := range units {
		if m.hasName(name) {
			return false
		}
		holder := m.unit.Holder()
		several = several || first != "" && !relay.SameTenant(first, holder)
		first = holder
	}
	return several
}
