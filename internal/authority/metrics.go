package authority

import (
	"net/http"
	"time"

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
	sequence prometheus.Gauge
	lease    prometheus.Gauge
}

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
		sequence: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "cohort_authority_policy_sequence", Help: "Sequence of the policy in force.",
		}),
		lease: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "cohort_authority_ring_lease", Help: "1 while this authority gives ring keys, 0 while another of its store does.",
		}),
	}
	m.registry.MustRegister(m.requests, m.issued, m.refused, m.sequence, m.lease,
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

func (m *metrics) handler() http.Handler {
	return promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{MaxRequestsInFlight: 2})
}
