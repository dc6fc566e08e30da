package authority

import (
	"net/http"
	"slices"
	"time"

	"github.com/cohort-tee/cohort/internal/limit"
	"github.com/cohort-tee/cohort/internal/wire"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// metrics are the authority's own numbers. Labels are bounded: tasks are those
// of policy, reasons and routes are closed lists.
type metrics struct {
	registry *prometheus.Registry
	requests *prometheus.HistogramVec // seconds, by route and HTTP status
	issued   *prometheus.CounterVec   // by task
	refused  *prometheus.CounterVec   // by reason
	quotas   *prometheus.CounterVec   // by quota
	unknown  prometheus.Counter
	sequence prometheus.Gauge
	lease    prometheus.Gauge
	damaged  *prometheus.GaugeVec // rows, by table
	forks    prometheus.Gauge
	behind   prometheus.Gauge
	again    prometheus.Counter
}

// quotas are the labels of refusals, each the rule of its refusals.
var quotas = []string{quotaRate, quotaRequests, quotaTrusts, quotaTotal, quotaPolls, quotaOthers}

func newMetrics() *metrics {
	m := &metrics{
		registry: prometheus.NewRegistry(),
		requests: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "cohort_authority_request_seconds", Help: "Time to answer a request.",
			Buckets: prometheus.ExponentialBuckets(0.001, 3, 9),
		}, []string{"route", "status"}),
		issued: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "cohort_authority_issued_total", Help: "Certificate reports issued.",
		}, []string{"task"}),
		refused: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "cohort_authority_refused_total", Help: "Requests refused.",
		}, []string{"reason"}),
		quotas: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "cohort_authority_crowded_total", Help: "Requests refused by a quota, by its name in the refusal.",
		}, []string{"quota"}),
		unknown: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "cohort_authority_collateral_unknown_refused_total", Help: "Requests refused because the budget for documents of unknown chips was spent.",
		}),
		sequence: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "cohort_authority_policy_sequence", Help: "Sequence of the policy in force.",
		}),
		lease: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "cohort_authority_ring_lease", Help: "1 while this authority gives ring keys, 0 while another of its store does.",
		}),
		damaged: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "cohort_authority_damaged_rows", Help: "Rows of a table that were passed over when it was last read, because they are not as an authority of this root wrote them.",
		}, []string{"table"}),
		forks: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "cohort_authority_contradictions", Help: "Pairs of policy heads that both took effect under this root, of which neither extends the other: the store was copied or put back.",
		}),
		behind: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "cohort_authority_behind", Help: "1 while a row of this root names a policy head that the history does not know; nothing is issued.",
		}),
		again: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "cohort_authority_steps_recovered_total", Help: "Steps of the history that the store had lost and that were written again.",
		}),
	}
	m.registry.MustRegister(m.requests, m.issued, m.refused, m.quotas, m.unknown, m.sequence, m.lease, m.damaged, m.forks, m.behind, m.again,
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return m
}

// answered counts a request; reason is empty when it was not refused.
func (m *metrics) answered(route, status string, reason wire.Reason, took time.Duration) {
	m.requests.WithLabelValues(route, status).Observe(took.Seconds())
	if reason != "" {
		m.refused.WithLabelValues(string(reason)).Inc()
	}
}

// overQuota counts a refusal by a quota; others have other rules.
func (m *metrics) overQuota(err error) {
	if quota, ok := limit.QuotaOf(err); ok && slices.Contains(quotas, quota) {
		m.quotas.WithLabelValues(quota).Inc()
	}
}

func (m *metrics) handler() http.Handler {
	return promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{MaxRequestsInFlight: 2})
}
