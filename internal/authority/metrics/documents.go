package metrics

import (
	"time"

	"github.com/cohort-tee/cohort/internal/authority/trustedclock"
	"github.com/cohort-tee/cohort/internal/collateral"
	"github.com/prometheus/client_golang/prometheus"
)

// Documents collects metrics of the vendors' documents, by role: the age of the oldest, the time
// left of the one that expires first, and how many could not be renewed at the last try.
type Documents struct {
	Stats func() []collateral.Status
	Clock trustedclock.Source
}

var (
	collateralAge    = prometheus.NewDesc("cohort_authority_collateral_age_seconds", "Age of the vendor's oldest document of a role.", []string{"role"}, nil)
	collateralLeft   = prometheus.NewDesc("cohort_authority_collateral_left_seconds", "Time until the first document of a role ends; negative when one has.", []string{"role"}, nil)
	collateralFaults = prometheus.NewDesc("cohort_authority_collateral_faults", "Documents of a role that could not be renewed at the last try.", []string{"role"}, nil)
)

// Describe implements [prometheus.Collector].
func (Documents) Describe(out chan<- *prometheus.Desc) {
	out <- collateralAge
	out <- collateralLeft
	out <- collateralFaults
}

// Collect implements [prometheus.Collector].
func (d Documents) Collect(out chan<- prometheus.Metric) {
	type extremes struct {
		oldest, first time.Time
		faults        int
	}
	roles := map[string]extremes{}
	for _, s := range d.Stats() {
		e := roles[s.Role]
		if s.Fault != nil {
			e.faults++
		}
		if there := !s.Fetched.IsZero(); there && (e.oldest.IsZero() || s.Fetched.Before(e.oldest)) {
			e.oldest = s.Fetched
		}
		if there := !s.Fetched.IsZero(); there && (e.first.IsZero() || s.Expires.Before(e.first)) {
			e.first = s.Expires
		}
		roles[s.Role] = e
	}
	now, _ := d.Clock()
	for role, e := range roles {
		out <- prometheus.MustNewConstMetric(collateralFaults, prometheus.GaugeValue, float64(e.faults), role)
		if !e.oldest.IsZero() {
			out <- prometheus.MustNewConstMetric(collateralAge, prometheus.GaugeValue, now.Sub(e.oldest).Seconds(), role)
			out <- prometheus.MustNewConstMetric(collateralLeft, prometheus.GaugeValue, e.first.Sub(now).Seconds(), role)
		}
	}
}
