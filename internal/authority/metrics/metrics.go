// Package metrics has an authority's Prometheus metrics. Their labels are bounded: tasks are
// those of the policy; reasons, routes and quotas are closed lists.
package metrics

import (
	"net/http"
	"slices"
	"time"

	"github.com/cohort-tee/cohort/internal/authority/admission"
	"github.com/cohort-tee/cohort/internal/limit"
	"github.com/cohort-tee/cohort/internal/wire"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// Metrics are the metrics of one authority.
type Metrics struct {
	Registry  *prometheus.Registry
	requests  *prometheus.HistogramVec // seconds, by route and HTTP status
	Issued    *prometheus.CounterVec   // by task
	refused   *prometheus.CounterVec   // by reason
	quotas    *prometheus.CounterVec   // by quota
	Unknown   prometheus.Counter
	Sequence  prometheus.Gauge
	Lease     prometheus.Gauge
	Damaged   *prometheus.GaugeVec // rows, by table
	Forks     prometheus.Gauge
	Behind    prometheus.Gauge
	Recovered prometheus.Counter
}

// quotas are the quotas that are counted, each by the rule of its refusals.
var quotas = []string{admission.QuotaRate, admission.QuotaRequests, admission.QuotaTrusts, admission.QuotaTotal, admission.QuotaPolls, admission.QuotaOthers}

// New returns metrics at zero.
func New() *Metrics {
	m := &Metrics{
		Registry: prometheus.NewRegistry(),
		requests: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "cohort_authority_request_seconds", Help: "Time to respond to a request.",
			Buckets: prometheus.ExponentialBuckets(0.001, 3, 9),
		}, []string{"route", "status"}),
		Issued: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "cohort_authority_issued_total", Help: "Certificate reports issued.",
		}, []string{"task"}),
		refused: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "cohort_authority_refused_total", Help: "Requests refused.",
		}, []string{"reason"}),
		quotas: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "cohort_authority_crowded_total", Help: "Requests refused by a quota, by its name in the refusal.",
		}, []string{"quota"}),
		Unknown: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "cohort_authority_collateral_unknown_refused_total", Help: "Requests refused because the budget for documents of unknown chips was spent.",
		}),
		Sequence: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "cohort_authority_policy_sequence", Help: "Sequence of the policy in force.",
		}),
		Lease: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "cohort_authority_ring_lease", Help: "1 while this authority makes ring keys, 0 while another of its store does.",
		}),
		Damaged: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "cohort_authority_damaged_rows", Help: "Rows of a table that were passed over when it was last read, because they are not as an authority of this root wrote them.",
		}, []string{"table"}),
		Forks: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "cohort_authority_contradictions", Help: "Pairs of policy heads that both took effect under this root, of which neither extends the other: the store was copied or put back.",
		}),
		Behind: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "cohort_authority_behind", Help: "1 while a row of this root names a policy head that the history does not know; nothing is issued.",
		}),
		Recovered: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "cohort_authority_steps_recovered_total", Help: "Steps of the history that the store had lost and that were written again.",
		}),
	}
	m.Registry.MustRegister(m.requests, m.Issued, m.refused, m.quotas, m.Unknown, m.Sequence, m.Lease, m.Damaged, m.Forks, m.Behind, m.Recovered,
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return m
}

// CountRequest counts a request. reason is empty when the request was not refused.
func (m *Metrics) CountRequest(route, status string, reason wire.Reason, took time.Duration) {
	m.requests.WithLabelValues(route, status).Observe(took.Seconds())
	if reason != "" {
		m.refused.WithLabelValues(string(reason)).Inc()
	}
}

// CountQuota counts a refusal by one of the quotas, and ignores other errors.
func (m *Metrics) CountQuota(err error) {
	if quota, ok := limit.QuotaOf(err); ok && slices.Contains(quotas, quota) {
		m.quotas.WithLabelValues(quota).Inc()
	}
}

// Handler serves the metrics in the Prometheus format.
func (m *Metrics) Handler() http.Handler {
	return promhttp.HandlerFor(m.Registry, promhttp.HandlerOpts{MaxRequestsInFlight: 2})
}
