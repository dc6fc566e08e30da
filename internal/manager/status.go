package manager

import (
	"cmp"
	"runtime/debug"
	"slices"
	"time"

	"github.com/cohort-tee/cohort/internal/manager/statuspage"
)

// status returns what the manager knows, for its operator.
func (m *Manager) status() statuspage.Status {
	now, history := m.config.Clock(), m.mirror.current.Load()
	s := statuspage.Status{
		At: now, Started: m.started, Version: buildVersion(), Joined: m.isJoined(), BusConnections: m.connectedUnits(),
		InFlight: m.gateway.slots.InUse(), PolicySteps: len(history.heads), Units: m.registry.describe(now),
	}
	s.Copies, s.CopiesBytes = m.copies.Totals()
	if head := history.lastHead(); !head.IsZero() {
		s.PolicyHead = head.Hex()
	}
	return s
}

// buildVersion returns the version of this program.
func buildVersion() string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "unknown"
	}
	return info.Main.Version
}

// describe returns the units, ordered by task, release and id.
func (r *registry) describe(now time.Time) []statuspage.Unit {
	r.mu.RLock()
	defer r.mu.RUnlock()
	units := make([]statuspage.Unit, 0, len(r.units))
	for _, m := range r.units {
		state := statuspage.NotReady
		switch {
		case m.heartbeat.Ready && m.restLeft(now) > 0:
			state = statuspage.Paused
		case m.heartbeat.Ready:
			state = statuspage.Ready
		}
		units = append(units, statuspage.Unit{
			ID: m.id.String(), Task: m.unit.Holder(), Identity: m.unit.Identity.Hex(), Address: m.heartbeat.Address, State: state,
			InFlight: m.heartbeat.InFlight, Here: m.inFlight.Load(), Sessions: m.heartbeat.Sessions, Seen: m.lastSeen, NotAfter: m.unit.NotAfter,
		})
	}
	slices.SortFunc(units, func(a, b statuspage.Unit) int {
		return cmp.Or(cmp.Compare(a.Task, b.Task), cmp.Compare(a.Identity, b.Identity), cmp.Compare(a.ID, b.ID))
	})
	return units
}
